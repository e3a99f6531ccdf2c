"""What the persistent slots of a mosaic hold: what each pushes the prediction towards, and which texts call it.

Shapes: N layers, H heads, M slots, C model width, T tokens of a window, V vocabulary, K calls kept of each slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mosaic_cli.core import ops
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.data.batches import Tokens
from mosaic_cli.probes.reading import Reading, count_windows, read_windows

CALLED = 0.01  # a slot that never weighs more than this changes no read of its head by more than about one per cent


class Slot(NamedTuple):
    """One learned pair."""

    layer: int
    head: int
    index: int

    @property
    def id(self) -> str:
        """Its name in traces."""
        return f"L{self.layer}.H{self.head}.slot.{self.index}"


class Call(NamedTuple):
    """A position of the corpus at which a slot was retrieved. window: where the text began that the model had read."""

    position: int
    window: int
    weight: float


@dataclass
class SlotUse:
    """How a corpus used the slots, in memory that does not grow with the corpus.

    sums: retrieval weights summed over positions (N, H, M). wins: positions at which the slot weighed most (N, H, M).
    entropy: of the weights, summed over positions, nats (N, H). weights, places: the largest weights of each slot and
    their positions in the corpus, largest first (N, H, M, K); -1 where the corpus has fewer positions.
    All on the CPU, float64 or int64.
    """

    context: int
    total_windows: int
    sums: Tensor
    wins: Tensor
    entropy: Tensor
    weights: Tensor
    places: Tensor
    windows: int = 0
    positions: int = 0

    def add(self, start: int, reading: Reading) -> None:
        """Take in a window that begins at position `start` of the corpus."""
        for layer, read in enumerate(reading.layers):
            weights = read.slots.all_weights().cpu()  # (H, T, M)
            self.sums[layer] += weights.sum(1)
            ones = weights.new_ones((), dtype=torch.int64).expand(weights.shape[:2])
            self.wins[layer].scatter_add_(1, weights.argmax(-1), ones)
            self.entropy[layer] += torch.special.entr(weights).sum((1, 2))
            self._keep_largest(layer, start, weights)
        self.windows += 1
        self.positions += len(reading.tokens)

    def _keep_largest(self, layer: int, start: int, weights: Tensor) -> None:
        K = self.weights.shape[-1]
        newest, places = weights.mT.topk(min(K, weights.shape[1]))  # (H, M, K)
        newest = torch.cat([self.weights[layer], newest], -1)
        places = torch.cat([self.places[layer], places + start], -1)
        self.weights[layer], kept = newest.topk(K)
        self.places[layer] = places.gather(-1, kept)

    @property
    def mean_weight(self) -> Tensor:
        """Share of all retrieval weight of the head that went to each slot (N, H, M); sums to one over slots."""
        return self.sums / self.positions

    @property
    def top_share(self) -> Tensor:
        """Share of positions at which each slot weighed most in its head (N, H, M)."""
        return self.wins / self.positions

    @property
    def effective_slots(self) -> Tensor:
        """exp of the entropy of the mean weights (N, H): how many slots a head uses over the whole corpus."""
        return torch.special.entr(self.mean_weight).sum(-1).exp()

    @property
    def effective_at_once(self) -> Tensor:
        """exp of the mean entropy of the weights (N, H): how many slots answer at one position."""
        return (self.entropy / self.positions).exp()

    @property
    def never_called(self) -> Tensor:
        """Whether a slot's weight never exceeded `CALLED` (N, H, M)."""
        return self.weights[..., 0] <= CALLED

    def calls(self, slot: Slot) -> list[Call]:
        """The positions that called a slot most, the largest weight first."""
        found = zip(self.places[slot].tolist(), self.weights[slot].tolist(), strict=True)
        return [Call(place, place - place % self.context, weight) for place, weight in found if place >= 0]

    def most_called(self, count: int, layer: int | None = None, head: int | None = None) -> list[Slot]:
        """The slots with the largest mean weight, of all heads or of those of a layer, a head number or both."""
        layers, heads = (slice(None) if i is None else slice(i, i + 1) for i in (layer, head))
        chosen = self.mean_weight[layers, heads]
        best = chosen.flatten().topk(min(count, chosen.numel())).indices
        places = torch.stack(torch.unravel_index(best, chosen.shape), 1).tolist()
        return [Slot(n + (layer or 0), h + (head or 0), m) for n, h, m in places]


def slot_use(
    model: Mosaic, tokens: Tokens, *, windows: int = 32, context: int | None = None, calls: int = 3
) -> Iterator[SlotUse]:
    """Read a corpus and record which slots it calls, yielding the growing result after each window.

    Args:
        windows: at most so many, side by side from the start of the text; a shorter text is read as one window.
        context: tokens a window reads; default the model's own.
        calls: how many of the largest weights of each slot are kept (K).

    Raises:
        DataError: fewer than two tokens.
        NonFiniteError: the model's logits are not numbers.
    """
    config = model.config
    T = min(context or config.context_length, len(tokens))
    shape = (config.num_layers, config.num_heads, config.num_slots)
    use = SlotUse(
        context=T,
        total_windows=count_windows(tokens, T, windows),
        sums=torch.zeros(shape, dtype=torch.float64),
        wins=torch.zeros(shape, dtype=torch.int64),
        entropy=torch.zeros(shape[:2], dtype=torch.float64),
        weights=torch.full((*shape, calls), -1.0, dtype=torch.float64),
        places=torch.full((*shape, calls), -1),
    )
    for start, reading in read_windows(model, tokens, T, windows):
        use.add(start, reading)
        yield use


@torch.no_grad()
def pushes(model: Mosaic, slots: list[Slot]) -> Tensor:
    """What each slot's value, retrieved with weight one, adds to the logits (slots, V), against their mean.

    alpha P_v goes through W_o, the last norm's centring and weight, and the head. The norm's standard deviation is
    left out, as it depends on the text: logits move by these numbers over that deviation. This is the direct way
    alone; what later blocks make of the slot's answer is not in it. The mean over the vocabulary is taken off because
    a softmax does not see it.
    """
    streams = torch.stack([_written(model, slot) for slot in slots])  # (slots, C)
    normed = (streams - streams.mean(-1, keepdim=True)) * model.norm.weight
    logits = model.head(normed * model.logit_scale)
    return logits - logits.mean(-1, keepdim=True)


def _written(model: Mosaic, slot: Slot) -> Tensor:
    """What a slot's value writes into the residual stream (C,)."""
    memory = model.blocks[slot.layer].persistent
    value = ops.value_scale(memory.read.scale[slot.head]) * memory.slot_values[slot.head, slot.index]  # (D,)
    first = slot.head * len(value)
    return memory.output.weight[:, first : first + len(value)] @ value
