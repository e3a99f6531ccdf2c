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
from mosaic_cli.core.memory import PairRead, SlotRead
from mosaic_cli.core.model import LanguageModel
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.errors import UsageError
from mosaic_cli.probes.reading import read_text

_NAME = re.compile(r"L(\d+|\*)\.H(\d+|\*)\.(ctx|slot)(?:\.(\d+|\*))?")


@dataclass(frozen=True)
class Memories:
    """A set of memories by name: `L1.H0.ctx.17`, `L1.H0.slot.411`; `*` stands for all, and no number for all too.

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
        layer, head, index = ("*" if part is None else part for part in (self.layer, self.head, self.index))
        return f"L{layer}.H{head}.{self.kind}.{index}"

    def check(self, model: LanguageModel, num_pairs: int | None = None) -> None:
        """Raises: UsageError: a layer, head, slot or pair that the model or the text does not have."""
        config = model.config
        if self.kind == "slot" and not isinstance(model, Mosaic):
            raise UsageError(f"{self} cannot be: a transformer has no slots", hint="Its pairs are named ctx.")
        most = {"layer": config.num_layers, "head": config.num_heads}
        most["index"] = config.num_slots if self.kind == "slot" else num_pairs
        for name, count in most.items():
            value = getattr(self, name)
            if value is not None and count is not None and value >= count:
                what = {"index": "slots" if self.kind == "slot" else "stored pairs"}.get(name, f"{name}s")
                raise UsageError(f"there is no memory {self}: of {what} there are {count}, counted from 0")

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

    action: `delete` (forget it; the others take up its weight), `scale` (its value times `factor`), `replace` (its
    value becomes what it would be had `token` stood there), `add` (a pair with the key of position `after` and the
    value it would have had `token` come next).
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
    added_keys, added_values: one (H, D) for each added pair, seen from positions later than `added_after` by the heads
    of `added_heads` (H,) bool.
    """

    dropped: Tensor | None = None
    scale: Tensor | None = None
    replaced: Tensor | None = None
    values: Tensor | None = None
    added_keys: list[Tensor] = field(default_factory=list)
    added_values: list[Tensor] = field(default_factory=list)
    added_after: list[int] = field(default_factory=list)
    added_heads: list[Tensor] = field(default_factory=list)

    def new_values(self, values: Tensor) -> Tensor:
        """Values (B, H, S, D) after scaling and replacing."""
        S = values.shape[2]
        if self.scale is not None:
            values = values * _fitted(self.scale, S, 1.0)[..., None].to(values.dtype)
        if self.replaced is not None:
            new = nn.functional.pad(self.values, (0, 0, 0, max(0, S - self.values.shape[2])))[:, :, :S]
            values = torch.where(_fitted(self.replaced, S, False)[..., None], new.to(values.dtype), values)
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

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, *scalars: Tensor) -> Tensor:
        """As the module stood in for: queries (B, H, T, D) -> reads (B, H, T, D)."""
        inner, change = self._inner[0], self._change
        if isinstance(inner, SlotRead):
            keys, values = keys[None], values[None] * ops.value_scale(inner.scale)[:, None, None]
            reach = None
        else:
            reach = 1
        if isinstance(inner, PairRead | SlotRead):
            queries = queries * ops.inverse_bandwidth(inner.bandwidth)[:, None, None]
        else:
            queries = queries / queries.shape[-1] ** 0.5
        return _dense_read(queries, keys, change.new_values(values), change, reach).to(values.dtype)


def _dense_read(queries: Tensor, keys: Tensor, values: Tensor, change: Change, reach: int | None) -> Tensor:
    """Softmax reads (B, H, T, D); query i of T sees the memories j <= i + S - T, those dropped excepted."""
    (T, S), device = (queries.shape[2], keys.shape[2]), queries.device
    hidden = torch.zeros(1, 1, 1, S, dtype=torch.bool, device=device)
    if reach is not None:
        hidden = torch.ones(T, S, dtype=torch.bool, device=device).triu(S - T + 1)[None, None]
    if change.dropped is not None:
        hidden = hidden | _fitted(change.dropped, S, False)[:, :, None, :]
    scores = (queries @ keys.mT).masked_fill(hidden, -torch.inf)
    if change.added_keys:
        scores = torch.cat([scores, _added_scores(queries, S, change)], dim=-1)
        more = torch.stack(change.added_values, 1).to(values.dtype)
        values = torch.cat([values.expand(len(scores), -1, -1, -1), more.expand(len(scores), -1, -1, -1)], dim=2)
    return scores.softmax(-1).nan_to_num(0.0) @ values  # a reader that sees nothing reads zero


def _added_scores(queries: Tensor, num_pairs: int, change: Change) -> Tensor:
    """Scores (B, H, T, E) of the added pairs. The last reader is the one that sees every stored pair."""
    T, device = queries.shape[2], queries.device
    keys = torch.stack(change.added_keys, 1).to(queries.dtype)  # (H, E, D)
    newest_seen = torch.arange(num_pairs - T, num_pairs, device=device)  # by each reader
    hidden = newest_seen[:, None] < torch.tensor(change.added_after, device=device)  # (T, E)
    hidden = hidden | ~torch.stack(change.added_heads, 1)[:, None, :]  # (H, T, E)
    return (queries @ keys.mT).masked_fill(hidden, -torch.inf)


Changes = dict[tuple[int, str], Change]
"""What is changed, by layer and kind (`ctx` or `slot`)."""


@contextmanager
def edited(model: LanguageModel, changes: Changes) -> Iterator[None]:
    """Let the model retrieve from changed memories while the context is open; bitwise as before afterwards."""
    parents = {key: _retriever(model, *key) for key in changes}
    originals = {key: parent.read for key, parent in parents.items()}
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
    return block.contextual if kind == "ctx" else block.persistent


def resolve(model: LanguageModel, tokens: list[int], edits: list[Edit]) -> Changes:
    """What edits mean for a text: names become tensors, tokens become the values that they would have stored.

    Args:
        tokens: the text that positions count in.

    Raises:
        UsageError: a memory that does not exist, or an action that its kind does not have.
    """
    changes: Changes = {}
    for edit in edits:
        _check(model, edit, len(tokens))
        for layer in edit.memories.layers(model):
            change = changes.setdefault((layer, edit.memories.kind), Change())
            {"delete": _delete, "scale": _scale, "replace": _replace, "add": _add}[edit.action](
                model, tokens, layer, edit, change
            )
    return changes


def _check(model: LanguageModel, edit: Edit, num_tokens: int) -> None:
    pairs = num_tokens - 1 if isinstance(model, Mosaic) else num_tokens  # the newest token's pair is not complete
    edit.memories.check(model, pairs)
    if edit.action == "add":
        if edit.memories.kind == "slot":
            raise UsageError("slots cannot be added", hint="Replace one that nothing calls: mosaic probe memories")
        replace(edit.memories, index=edit.after).check(model, pairs)
    if edit.action == "replace" and edit.memories.index is None:
        raise UsageError(f"{edit.memories} is more than one memory per head: name the one to replace")


def _sizes(model: LanguageModel, tokens: list[int], kind: str) -> tuple[int, int, int]:
    """A batch of one, H, and the number of memories."""
    return 1, model.config.num_heads, model.config.num_slots if kind == "slot" else len(tokens)


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
    keys = read_text(model, tokens[: edit.after + 2]).layers[layer].pairs.keys[:, edit.after]  # (H, D)
    values = _pair_saying(model, tokens, layer, edit, edit.after)
    heads = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    heads[edit.memories.heads] = True
    change.added_keys.append(keys)
    change.added_values.append(values)
    change.added_after.append(edit.after)
    change.added_heads.append(heads)


def _pair_saying(model: LanguageModel, tokens: list[int], layer: int, edit: Edit, pair: int) -> Tensor:
    """The values (H, D) that pair `pair` of a layer would hold, had the token it stores been `edit.token`."""
    stored_at = pair + 1 if isinstance(model, Mosaic) else pair  # a mosaic's value peeks at the token after its key
    reading = read_text(model, [*tokens[:stored_at], edit.token])
    return reading.layers[layer].pairs.values[:, pair]


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
