"""Changing what memories hold, for as long as a context lasts: delete, scale, replace or add, then undo bitwise.

The weights and stored pairs of the model are never touched. Inside `edited(...)` the modules that retrieve are stood in
for by ones that see changed memories; outside, the model is what it was.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mosaic_cli.core import ops
from mosaic_cli.core.cache import GrowingPairs
from mosaic_cli.core.memory import PairRead, SlotRead
from mosaic_cli.core.model import LanguageModel
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.errors import NonFiniteError, UsageError
from mosaic_cli.probes.reading import has_slots, nearest, pair_kinds, peek, read_text

_NAME = re.compile(r"L(\d+|\*)\.H(\d+|\*)\.(ctx|short|long|slot)(?:\.(\d+|\*))?")


@dataclass(frozen=True)
class Memories:
    """A set of memories by name: `L1.H0.ctx.17`, `L1.H0.slot.411`; `*` stands for all, and no number for all too.

    Where contextual memories have windows, their pairs are `L1.H0.short.17` and `L1.H0.long.17`.

    layer, head, index: None means all.
    """

    layer: int | None
    head: int | None
    kind: str
    index: int | None

    @classmethod
    def parse(cls, name: str) -> "Memories":
        """Raises: UsageError: not such a name."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise UsageError(
                f"{name!r} does not name a memory",
                hint="Like L1.H0.ctx.17 (the pair stored at position 17), L1.H0.slot.411, or L*.H*.ctx.17 for all.",
            )
        layer, head, index = (None if part in ("*", None) else int(part) for part in match.group(1, 2, 4))
        return cls(layer, head, match[3], index)

    def __str__(self) -> str:
        layer, head = ("*" if part is None else part for part in (self.layer, self.head))
        return f"L{layer}.H{head}.{self.kind}" + ("" if self.index is None else f".{self.index}")

    def check(self, model: LanguageModel, num_pairs: int | None = None) -> None:
        """Raises: UsageError: a layer, head, slot or pair that the model or the text does not have."""
        config = model.config
        kinds = pair_kinds(model)
        if self.kind == "slot" and not has_slots(model):
            what = f"persistent memory is {config.persistent}" if isinstance(model, Mosaic) else "a transformer"
            raise UsageError(
                f"there is no memory {self}: {what} has no slots", hint=f"Its pairs are named {' and '.join(kinds)}."
            )
        if self.kind != "slot" and self.kind not in kinds:
            raise UsageError(
                f"there is no memory {self}: this model's pairs are named {' and '.join(kinds)}",
                hint=f"For example: L0.H0.{kinds[0]}",
            )
        most = {"layer": config.num_layers, "head": config.num_heads}
        most["index"] = config.num_slots if self.kind == "slot" else num_pairs
        for name, count in most.items():
            value = getattr(self, name)
            if value is not None and count is not None and value >= count:
                what = {"index": "slots" if self.kind == "slot" else "stored pairs"}.get(name, f"{name}s")
                raise UsageError(
                    f"there is no memory {self}: of {what} there are {count}, counted from 0",
                    hint="mosaic probe trace shows the names of a text's memories.",
                )

    def layers(self, model: LanguageModel) -> range:
        """The layers it names."""
        return range(model.config.num_layers) if self.layer is None else range(self.layer, self.layer + 1)

    @property
    def heads(self) -> slice:
        """The heads it names."""
        return slice(None) if self.head is None else slice(self.head, self.head + 1)

    @property
    def indices(self) -> slice:
        """The pairs or slots it names."""
        return slice(None) if self.index is None else slice(self.index, self.index + 1)


@dataclass(frozen=True)
class Edit:
    """One change.

    action:
        `delete`: forget it; the others take up its weight.
        `scale`: its value times `factor`, after any replacing.
        `replace`: its value becomes what it would be had `token` been the token it stores: the one after its key in a
            mosaic, whose values peek, and the key's own in a transformer. A slot's value becomes what pushes `token`.
        `add`: one more pair per head, with the key of pair `after` and the value that replacing it would give. Who
            sees pair `after` sees it too.
    """

    action: str
    memories: Memories
    factor: float | None = None
    token: int | None = None
    after: int | None = None


@dataclass
class Change:
    """What is changed in the memories of one layer and kind. Tensors are padded to the pairs of the text when used.

    dropped: (B, H, n) bool, forgotten memories. scale: (B, H, n) factors of values. values: (B, H, n, D) with
    `replaced` (B, H, n) bool saying where they count. B may be 1 for every text of the batch.
    added_keys, added_values: one (H, D) for each added pair, seen by those who see pair `added_after`, in the heads of
    `added_heads` (H,) bool.
    blanked: (B, H, n) bool, memories that keep their weight but say nothing: their value is zero or, with `to_mean`,
    the mean of the values that the reader sees.
    distances: bounds what is dropped and blanked to pairs that stand (first, last) from their reader, counted from 1,
    the newest pair that it sees.
    """

    dropped: Tensor | None = None
    scale: Tensor | None = None
    replaced: Tensor | None = None
    values: Tensor | None = None
    added_keys: list[Tensor] = field(default_factory=list)
    added_values: list[Tensor] = field(default_factory=list)
    added_after: list[int] = field(default_factory=list)
    added_heads: list[Tensor] = field(default_factory=list)
    blanked: Tensor | None = None
    to_mean: bool = False
    distances: tuple[int, int] | None = None

    def new_values(self, values: Tensor) -> Tensor:
        """Values (B, H, S, D) after replacing and scaling."""
        S = values.shape[2]
        if self.replaced is not None:
            new = nn.functional.pad(self.values, (0, 0, 0, max(0, S - self.values.shape[2])))[:, :, :S]
            values = torch.where(_fitted(self.replaced, S, False)[..., None], new.to(values.dtype), values)
        if self.scale is not None:
            values = values * _fitted(self.scale, S, 1.0)[..., None].to(values.dtype)
        return values


def _fitted(per_memory: Tensor, count: int, filler: float) -> Tensor:
    """(B, H, n) cut or padded to `count` memories."""
    missing = max(0, count - per_memory.shape[2])
    return nn.functional.pad(per_memory, (0, missing), value=filler)[:, :, :count]


class EditedRead(nn.Module):
    """Stands in for a module that retrieves, and retrieves from changed memories, by a dense softmax."""

    def __init__(self, inner: nn.Module, change: Change):
        super().__init__()
        self._inner = [inner]  # in a list, so that it does not become part of this module's parameters
        self._change = change

    def scalars(self) -> tuple[()]:
        """Nothing that a cache need keep."""
        return ()

    @property
    def window(self) -> None:
        """A cache made meanwhile holds all pairs, so that a pair's place is its number; see `whole_cache`."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, *_: Tensor, attend_one: None = None) -> Tensor:
        """As the module stood in for: queries (B, H, T, D) -> reads (B, H, T, D). What a cache has ready for faster
        reads is not used: it knows nothing of the change."""
        inner, change = self._inner[0], self._change
        window = None
        if isinstance(inner, SlotRead):
            keys, values = keys[None], values[None] * inner.scalars()[1][:, None, None]
            reach = None
        else:
            reach = 1
        if isinstance(inner, PairRead):
            beta, window = inner.beta(queries.shape[2], keys.shape[2], *inner.scalars()), inner.window
            queries = queries * beta.view(len(beta), -1, 1)
        elif isinstance(inner, SlotRead):
            queries = queries * inner.scalars()[0][:, None, None]
        else:
            queries = queries / queries.shape[-1] ** 0.5
        return _dense_read(queries, keys, change.new_values(values), change, reach, window).to(values.dtype)


def _dense_read(
    queries: Tensor, keys: Tensor, values: Tensor, change: Change, reach: int | None, window: int | None
) -> Tensor:
    """Softmax reads (B, H, T, D); query i of T sees the memories j <= i + S - T, or the newest `window` of them, those
    dropped excepted."""
    (T, S), device = (queries.shape[2], keys.shape[2]), queries.device
    unseen = torch.zeros(T, S, dtype=torch.bool, device=device)
    if reach is not None:
        unseen = torch.ones(T, S, dtype=torch.bool, device=device).triu(S - T + 1)
    if window is not None:
        unseen = unseen | torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T - window)
    near = _at_distances(T, S, change.distances, device)
    hidden = unseen[None, None]
    if change.dropped is not None:
        hidden = hidden | _fitted(change.dropped, S, False)[:, :, None] & near
    scores = (queries @ keys.mT).masked_fill(hidden, -torch.inf)
    if change.added_keys:
        scores = torch.cat([scores, _added_scores(queries, S, change, window)], dim=-1)
        more = torch.stack(change.added_values, 1).to(values.dtype).expand(len(scores), -1, -1, -1)
        values = torch.cat([values.expand(len(scores), -1, -1, -1), more], dim=2)
    weights = scores.softmax(-1).nan_to_num(0.0).to(values.dtype)  # a reader that sees nothing reads zero
    if change.blanked is None:
        return weights @ values
    blanked = _fitted(change.blanked, S, False)[:, :, None] & near  # (B, H, T, S)
    return _blanked_read(weights, values, nn.functional.pad(blanked, (0, values.shape[2] - S)), ~unseen, change.to_mean)


def _at_distances(num_readers: int, num_pairs: int, distances: tuple[int, int] | None, device: torch.device) -> Tensor:
    """Whether a pair stands at these distances from its reader (T, S); the last reader sees every pair."""
    if distances is None:
        return torch.ones(1, 1, dtype=torch.bool, device=device)
    newest = torch.arange(num_pairs - num_readers, num_pairs, device=device)  # that each reader sees
    away = newest[:, None] - torch.arange(num_pairs, device=device) + 1
    return (away >= distances[0]) & (away <= distances[1])


def _blanked_read(weights: Tensor, values: Tensor, blanked: Tensor, seen: Tensor, to_mean: bool) -> Tensor:
    """Reads (B, H, T, D) in which blanked memories say zero, or the mean of the stored values (T, S) that are seen."""
    reads = weights.masked_fill(blanked, 0) @ values
    if not to_mean:
        return reads
    share = (seen / seen.sum(-1, keepdim=True).clamp(min=1)).to(values.dtype)  # (T, S)
    return reads + (weights * blanked).sum(-1, keepdim=True) * (share @ values[:, :, : seen.shape[1]])


def _added_scores(queries: Tensor, num_pairs: int, change: Change, window: int | None) -> Tensor:
    """Scores (B, H, T, E) of the added pairs. The last reader is the one that sees every stored pair."""
    T, device = queries.shape[2], queries.device
    keys = torch.stack(change.added_keys, 1).to(queries.dtype)  # (H, E, D)
    newest_seen = torch.arange(num_pairs - T, num_pairs, device=device)  # by each reader
    age = newest_seen[:, None] - torch.tensor(change.added_after, device=device)  # (T, E)
    hidden = (age < 0) if window is None else (age < 0) | (age >= window)
    hidden = hidden | ~torch.stack(change.added_heads, 1)[:, None, :]  # (H, T, E)
    return (queries @ keys.mT).masked_fill(hidden, -torch.inf)


Changes = dict[tuple[int, str], Change]
"""What is changed, by layer and kind (`ctx`, `short`, `long` or `slot`)."""


@contextmanager
def edited(model: LanguageModel, changes: Changes) -> Iterator[None]:
    """Let the model retrieve from changed memories while the context is open; bitwise as before afterwards.

    Raises:
        UsageError: the memories are changed already: contexts do not nest.
    """
    parents = {key: _retriever(model, *key) for key in changes}
    originals = {key: parent.read for key, parent in parents.items()}
    for (layer, kind), original in originals.items():
        if isinstance(original, EditedRead):
            raise UsageError(f"the {kind} memories of layer {layer} are edited already", hint="Make it one change.")
    for key, parent in parents.items():
        parent.read = EditedRead(parent.read, changes[key])
    try:
        yield
    finally:
        for key, parent in parents.items():
            parent.read = originals[key]


def _retriever(model: LanguageModel, layer: int, kind: str) -> nn.Module:
    """The memory whose `read` retrieves."""
    block = model.blocks[layer]
    if not isinstance(model, Mosaic):
        return block.attention
    if kind == "slot":
        return block.persistent
    return block.contextual if kind == "ctx" else getattr(block.contextual, kind)


def without_pairs(model: LanguageModel, dropped: Tensor, first: int = 0) -> Changes:
    """The changes that drop pairs, from layer `first` on.

    `dropped` is (B, N, H, S) bool, with the heads of all kinds behind one another, as a reading has them.
    """
    kinds = pair_kinds(model)
    return {
        (layer, kind): Change(dropped=chunk)
        for layer in range(first, dropped.shape[1])
        for kind, chunk in zip(kinds, dropped[:, layer].chunk(len(kinds), dim=1), strict=True)
    }


def whole_cache(model: LanguageModel) -> object:
    """An empty cache of a model that keeps the pairs of short windows too when they are too old to be read, so that
    the text's pairs can be told apart by their number."""
    cache = model.make_cache()
    for layer in getattr(cache, "contextual", []):
        for memory in getattr(layer, "memories", []):
            memory.pairs = GrowingPairs()
    return cache


@dataclass(frozen=True)
class Effect:
    """What a change did to the prediction after a text: logits (V,) before and after.

    undone: whether the model, asked again without the change, gave the same logits bit for bit.
    """

    before: Tensor
    after: Tensor
    undone: bool


@torch.no_grad()
def effect(model: LanguageModel, tokens: list[int], changes: Changes) -> Effect:
    """Predict what follows a text without the change, with it, and without it again. The model is in evaluation mode.

    Raises:
        UsageError: the baseline and a text longer than its context.
        NonFiniteError: with the change, logits are infinite or not numbers.
    """
    before = _prediction(model, tokens)
    with edited(model, changes):
        after = _prediction(model, tokens)
    if not after.isfinite().all():
        raise NonFiniteError("with these edits the logits are not finite", hint="Use smaller factors.")
    return Effect(before, after, torch.equal(_prediction(model, tokens), before))


def _prediction(model: LanguageModel, tokens: list[int]) -> Tensor:
    """Logits (V,) after the last token."""
    return model.head(model.hidden(torch.tensor([tokens], device=_device(model)))[0, -1])


def resolve(model: LanguageModel, tokens: list[int], edits: list[Edit]) -> Changes:
    """What edits mean for a text: names become tensors, tokens become the values that they would have stored.

    All are resolved against the text as the unedited model reads it; of two replacements of a memory the last counts.
    `*` stands for the pairs that this text stores, not for those that writing on adds.

    Args:
        tokens: the text that positions count in.

    Raises:
        UsageError: a memory that does not exist, or an action that its kind does not have.
    """
    changes: Changes = {}
    for edit in edits:
        _check(model, edit, stored_pairs(model, len(tokens)))
        for layer in edit.memories.layers(model):
            change = changes.setdefault((layer, edit.memories.kind), Change())
            {"delete": _delete, "scale": _scale, "replace": _replace, "add": _add}[edit.action](
                model, tokens, layer, edit, change
            )
    return changes


def stored_pairs(model: LanguageModel, num_tokens: int) -> int:
    """Pairs that a text stores: a mosaic stores a pair when the token after it comes."""
    return num_tokens - nearest(model)


def _check(model: LanguageModel, edit: Edit, pairs: int) -> None:
    memories = edit.memories
    memories.check(model, pairs)
    if edit.action == "add":
        if memories.kind == "slot":
            raise UsageError("slots cannot be added", hint="Replace one that nothing calls: mosaic probe memories")
        if memories.index is not None:
            raise UsageError(f"{memories} is there already", hint="Name heads, like L*.H*.ctx, and where to add.")
        replace(memories, index=edit.after).check(model, pairs)
    if edit.action == "replace" and memories.index is None:
        raise UsageError(f"{memories} is more than one memory per head", hint=f"Name one: {memories}.0")


def _sizes(model: LanguageModel, tokens: list[int], kind: str) -> tuple[int, int, int]:
    """A batch of one, H, and the number of memories."""
    config = model.config
    return 1, config.num_heads, config.num_slots if kind == "slot" else stored_pairs(model, len(tokens))


def _delete(model: LanguageModel, tokens: list[int], layer: int, edit: Edit, change: Change) -> None:
    if change.dropped is None:
        change.dropped = torch.zeros(_sizes(model, tokens, edit.memories.kind), dtype=torch.bool, device=_device(model))
    change.dropped[:, edit.memories.heads, edit.memories.indices] = True


def _scale(model: LanguageModel, tokens: list[int], layer: int, edit: Edit, change: Change) -> None:
    if change.scale is None:
        change.scale = torch.ones(_sizes(model, tokens, edit.memories.kind), device=_device(model))
    change.scale[:, edit.memories.heads, edit.memories.indices] *= edit.factor


def _replace(model: LanguageModel, tokens: list[int], layer: int, edit: Edit, change: Change) -> None:
    heads, index = edit.memories.heads, edit.memories.index
    sizes = _sizes(model, tokens, edit.memories.kind)
    if change.replaced is None:
        change.replaced = torch.zeros(sizes, dtype=torch.bool, device=_device(model))
        change.values = torch.zeros(*sizes, model.config.head_dim, device=_device(model))
    slot = edit.memories.kind == "slot"
    values = _slot_saying(model, layer, edit.token, index) if slot else _pair_saying(model, tokens, layer, edit, index)
    change.replaced[:, heads, index] = True
    change.values[:, heads, index] = values[heads].to(change.values.dtype)


def _add(model: LanguageModel, tokens: list[int], layer: int, edit: Edit, change: Change) -> None:
    pairs = read_text(model, tokens[: edit.after + 2]).layers[layer].pairs
    keys = pairs.keys[_rows(model, edit.memories.kind), edit.after]  # (H, D)
    values = _pair_saying(model, tokens, layer, edit, edit.after)
    heads = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    heads[edit.memories.heads] = True
    change.added_keys.append(keys)
    change.added_values.append(values)
    change.added_after.append(edit.after)
    change.added_heads.append(heads)


def _pair_saying(model: LanguageModel, tokens: list[int], layer: int, edit: Edit, pair: int) -> Tensor:
    """The values (H, D) that pair `pair` of a layer would hold, had the token it stores been `edit.token`."""
    text = [*tokens[: pair + peek(model)], edit.token]
    text += [edit.token] * (pair + 1 - stored_pairs(model, len(text)))  # one that does not peek waits for any token
    return read_text(model, text).layers[layer].pairs.values[_rows(model, edit.memories.kind), pair]


def _rows(model: LanguageModel, kind: str) -> slice:
    """The heads of one kind of pairs among those of a reading."""
    H = model.config.num_heads
    first = pair_kinds(model).index(kind) * H
    return slice(first, first + H)


def _slot_saying(model: Mosaic, layer: int, token: int, slot: int) -> Tensor:
    """Values (H, D), alpha included, that push a token as loudly as the slot pushed what it did before.

    The direction is the token's logit seen through the last norm's weight and W_o; the length is the old value's.
    """
    persistent = model.blocks[layer].persistent
    functional = model.embedding.weight[token] * model.norm.weight
    pushed = persistent.output.weight.mT @ (functional - functional.mean())  # (H D)
    direction = ops.normalise(pushed.detach().unflatten(0, (model.config.num_heads, -1)))
    old = persistent.slot_values[:, slot].detach() * ops.value_scale(persistent.read.scale.detach())[:, None]
    return direction * old.norm(dim=-1, keepdim=True)


def _device(model: LanguageModel) -> torch.device:
    return model.embedding.weight.device
