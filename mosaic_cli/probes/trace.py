"""Following a prediction to the memories it came from.

With retrieval weights and norms held at what they were, a mosaic's logit is exactly linear in what its memories hold:

    logit = sum over heads and stored pairs of  w_i (v_i . g)  + the same over slots + the embedding's own part,

where g is the logit's direction seen through W_o and the last norm (v1; docs/probes.md). The same arithmetic serves the
transformer, whose MLP then is one piece. Contributions are computed in float64 from what the model itself produced.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_cli.errors import UsageError
from mosaic_cli.probes.reading import PAIR_KINDS, LayerReading, Reading, Retrieval


@dataclass(frozen=True)
class Share:
    """What the memories of one layer and kind gave to a number, by head and memory (H, S).

    kinds: of memory that stand side by side as heads, in order.
    contributions: w_i (v_i . g). They add up, over heads and memories, to what the layer gave.
    leave_one_out: what the number changes by, directly, when memory i is forgotten and the others take up its weight:
    w_i / (1 - w_i) (y - v_i) . g. Not the same as minus the contribution: others may say the same.
    """

    kinds: tuple[str, ...]
    weights: Tensor
    contributions: Tensor
    leave_one_out: Tensor

    def by_kind(self) -> list[tuple[str, float]]:
        """What each kind of memory gave in all."""
        chunks = self.contributions.chunk(len(self.kinds))
        return [(kind, chunk.sum().item()) for kind, chunk in zip(self.kinds, chunks, strict=True)]

    def parts(self, layer: int, places: list[list[int]]) -> Iterator["Contribution"]:
        """The parts of some memories, named by row and index; rows count the heads of all kinds."""
        numbers = [tensor.tolist() for tensor in (self.weights, self.contributions, self.leave_one_out)]
        for row, index in places:
            number, head = divmod(row, len(self.weights) // len(self.kinds))
            kind = self.kinds[number]
            weight, given, lost = (tensor[row][index] for tensor in numbers)
            name = f"L{layer}.H{head}.{kind}.{index}"
            yield Contribution(name, kind, layer, head, row, index, weight, given, lost)


@dataclass(frozen=True)
class Decomposition:
    """A linear functional of the residual stream at one place, taken apart. The parts add up to its value.

    position, depth: the place; depth counts blocks below it (0 is the embedding).
    embedding: the token's own part. pairs, slots, mlp: one entry for each block below.
    """

    position: int
    depth: int
    functional: Tensor
    embedding: float
    pairs: list[Share]
    slots: list[Share | None]
    mlp: list[float | None]

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(part.sum().item() for part in self._tensors())

    @property
    def size(self) -> float:
        """The sum of the sizes of all parts: what a part is small or large beside."""
        return sum(part.abs().sum().item() for part in self._tensors())

    def nth_size(self, n: int) -> float:
        """Size of the n-th largest part, counted from 0; 0 where there are not so many."""
        sizes = torch.cat([part.abs().flatten() for part in self._tensors()])
        return sizes.topk(n + 1).values[n].item() if n < len(sizes) else 0.0

    def _tensors(self) -> list[Tensor]:
        shares = [share.contributions for share in (*self.pairs, *self.slots) if share is not None]
        alone = [self.embedding, *(part for part in self.mlp if part is not None)]
        return [torch.tensor(alone, dtype=torch.float64, device=self.functional.device), *shares]


@dataclass(frozen=True)
class Contribution:
    """One part of a number, small enough to print.

    id: `embedding`, `L3.H2.ctx.17` (pair 17 of head 2 in layer 3; `short.17` or `long.17` where memories have windows),
        `L1.H0.slot.411` or `L2.mlp`.
    kind: embedding, ctx, short, long, slot or mlp. row: of the head among those of all kinds that stand side by side.
    index: of the pair or slot. weight and leave_one_out: None where not retrieved.
    """

    id: str
    kind: str
    layer: int | None
    head: int | None
    row: int | None
    index: int | None
    weight: float | None
    contribution: float
    leave_one_out: float | None

    @property
    def is_pair(self) -> bool:
        """Whether it is a pair that the text stored."""
        return self.kind in PAIR_KINDS


@dataclass(frozen=True)
class Trace:
    """Where the logit of `target` after `position` came from (with `versus`: its lead over that token's).

    logit: as the model gave it. parts: what adds up to it.
    """

    position: int
    target: int
    versus: int | None
    logit: float
    parts: Decomposition

    @property
    def completeness_error(self) -> float:
        """|sum of all contributions - logit|: what float32 arithmetic in the model leaves, about 1e-6."""
        return abs(self.parts.total - self.logit)


def trace(reading: Reading, position: int, target: int, versus: int | None = None) -> Trace:
    """Take the logit of `target` apart, as predicted after the token at `position`.

    Raises:
        UsageError: a position outside of the text, or a token outside of the vocabulary.
    """
    T, V = reading.logits.shape
    if not -T <= position < T:
        raise UsageError(
            f"position {position} is outside of a text of {T} tokens (0 to {T - 1})",
            where="--position",
            hint="Count the text's tokens from 0, or back from the end: -1 is the last token.",
        )
    for token in (target, versus):
        if token is not None and not 0 <= token < V:
            raise UsageError(f"there is no token {token} in a vocabulary of {V}")
    position %= T
    logits = reading.logits[position].double()
    logit = logits[target] if versus is None else logits[target] - logits[versus]
    functional = reading.final.back(position, reading.direction(target, versus))
    return Trace(position, target, versus, logit.item(), decompose(reading, position, len(reading.layers), functional))


def decompose(reading: Reading, position: int, depth: int, functional: Tensor) -> Decomposition:
    """Take a functional (C,) of the residual stream apart, at a position, before block number `depth`."""
    below = reading.layers[:depth]
    return Decomposition(
        position=position,
        depth=depth,
        functional=functional,
        embedding=(reading.embedded[position] @ functional).item(),
        pairs=[_share(layer.pairs, position, functional) for layer in below],
        slots=[_share(layer.slots, position, functional) if layer.slots else None for layer in below],
        mlp=[(layer.mlp[position] @ functional).item() if layer.mlp is not None else None for layer in below],
    )


def _share(retrieval: Retrieval, position: int, functional: Tensor) -> Share:
    scores = retrieval.scores(position)
    weights = scores.softmax(-1).nan_to_num(0.0)  # (H, S)
    worth = said(retrieval, functional)[:, : weights.shape[1]]
    contributions = weights * worth
    return Share(retrieval.kinds, weights, contributions, _leave_one_out(scores, weights, worth))


def said(retrieval: Retrieval, functional: Tensor) -> Tensor:
    """v_i . g (H, S): what each memory would add to the number if it alone were retrieved."""
    return (retrieval.values @ (retrieval.output @ functional)[..., None])[..., 0]


def _leave_one_out(scores: Tensor, weights: Tensor, worth: Tensor) -> Tensor:
    """Change (H, S) of the read when one memory is dropped and the rest renormalised.

    w / (1 - w) loses all digits as w nears 1, which only a head's largest weight can: that one is computed again
    without its memory. A memory that was alone leaves an empty one, which answers zero.
    """
    if not weights.shape[1]:
        return weights
    read = (weights * worth).sum(-1, keepdim=True)
    largest = weights.argmax(-1, keepdim=True)
    others = scores.scatter(-1, largest, -torch.inf).softmax(-1).nan_to_num(0.0)
    without_largest = (others * worth).sum(-1, keepdim=True)
    change = weights / (1 - weights).scatter(-1, largest, 1.0) * (read - worth)
    return change.scatter(-1, largest, without_largest - read)


def contributions(parts: Decomposition, smallest: float = 0.0) -> list[Contribution]:
    """All parts of a number, the largest in size first; those not above `smallest` in size are left out."""
    found = [Contribution("embedding", "embedding", None, None, None, None, None, parts.embedding, None)]
    for layer, value in enumerate(parts.mlp):
        if value is not None:
            found.append(Contribution(f"L{layer}.mlp", "mlp", layer, None, None, None, None, value, None))
    for shares in (parts.pairs, parts.slots):
        for layer, share in enumerate(shares):
            if share is not None:
                found.extend(share.parts(layer, (share.contributions.abs() > smallest).nonzero().tolist()))
    return sorted((c for c in found if abs(c.contribution) > smallest), key=lambda c: -abs(c.contribution))


def pair_contribution(parts: Decomposition, layer: int, row: int, pair: int) -> Contribution:
    """What one stored pair gave to a number."""
    (part,) = parts.pairs[layer].parts(layer, [[row, pair]])
    return part


@dataclass(frozen=True)
class Path:
    """A contribution, and what the stored value was made of: parts of the same number, one level further down.

    position: where the part stands in the text. amount: its part of the traced number.
    rest: what the children that were too small to follow add up to.
    """

    contribution: Contribution
    position: int
    amount: float
    children: tuple["Path", ...]
    rest: float


def paths(reading: Reading, parts: Decomposition, share: float = 0.05) -> list[Path]:
    """Follow contributions down to the tokens they began from (exact while weights and norms are held).

    A stored value was made from one token, or two where values peek; what stood there came from memories further down.
    Parts of a size below `share` of the sum of all sizes are not followed.

    Raises:
        UsageError: a share that is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise UsageError(
            f"share {share:g} is not in (0, 1]",
            where="--share",
            hint="0.02 follows what is at least 2 % of all.",
        )
    return list(_follow(reading, parts, share * parts.size)[0])


def _follow(reading: Reading, parts: Decomposition, smallest: float) -> tuple[tuple[Path, ...], float]:
    """The paths through the parts above `smallest`, and what the others add up to."""
    kept = contributions(parts, smallest)
    found = []
    for part in kept:
        children, rest = _origins(reading, parts, part, smallest) if part.is_pair else ((), 0.0)
        found.append(Path(part, parts.position, part.contribution, children, rest))
    return tuple(found), parts.total - sum(part.contribution for part in kept)


def _origins(
    reading: Reading, parts: Decomposition, part: Contribution, smallest: float
) -> tuple[tuple[Path, ...], float]:
    """What a stored value was made of, one decomposition for each token it was made from."""
    layer = reading.layers[part.layer]
    functional = part.weight * (layer.pairs.output[part.row] @ parts.functional)  # (D,), on the value
    children, rest = (), 0.0
    for position, through in layer.values.sources(part.row, part.index, functional):
        below = decompose(reading, position, part.layer, layer.norm.back(position, through))
        followed, remaining = _follow(reading, below, smallest)
        children, rest = children + followed, rest + remaining
    return children, rest


@dataclass(frozen=True)
class Match:
    """Two tokens that made a key asked with and a key stored alike: their part of the cosine between the keys."""

    asked: int
    stored: int
    share: float


def matches(layer: LayerReading, head: int, position: int, pair: int, count: int = 3) -> list[Match]:
    """Why a memory answered: the pairs of tokens that did most to make the keys alike, the largest first.

    Keys are leaky averages, so their product is a sum over one token behind each of the keys; the sum of all shares
    is the cosine. Only a mosaic's keys are made so.

    Raises:
        UsageError: a layer of the baseline.
    """
    if layer.keys is None:
        raise UsageError("attention's queries and keys are made from one token each; only a mosaic's keys are averages")
    shares = layer.keys.share(head, position) @ layer.keys.share(head, pair).mT  # (position + 1, pair + 1)
    values, places = shares.flatten().topk(min(count, shares.numel()))
    width = shares.shape[1]
    return [Match(p // width, p % width, v) for v, p in zip(values.tolist(), places.tolist(), strict=True)]
