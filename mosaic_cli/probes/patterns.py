"""How retrieval weights depend on distance, and the scalars that each head learned (v1, the retrieval pattern).

Shapes: N layers, H heads, T tokens of a window, S stored pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mosaic_cli.core import ops
from mosaic_cli.core.features import KeyExtractor
from mosaic_cli.core.memory import PersistentMemory, WindowedMemory
from mosaic_cli.core.model import LanguageModel
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.data.batches import Tokens
from mosaic_cli.probes.reading import Reading, count_windows, nearest, pair_kinds, read_windows


@dataclass
class DistancePattern:
    """Retrieval weights summed by distance, over positions and windows.

    Distance d is that of the pair stored d tokens before the position: a mosaic's strict past begins at 1, attention
    at 0, the token itself. In a window of T tokens T - d positions have a pair at distance d.

    nearest: the smallest distance. kinds: of memory whose heads H counts, in order; those with windows see no pair
    outside. sums: (N, H, T), index is the distance, float64 on the CPU.
    """

    context: int
    total_windows: int
    nearest: int
    kinds: tuple[str, ...]
    sums: Tensor
    windows: int = 0

    def add(self, reading: Reading) -> None:
        """Take in one window."""
        for sums, layer in zip(self.sums, reading.layers, strict=True):
            sums += by_distance(layer.pairs.all_weights()).cpu()
        self.windows += 1

    @property
    def distances(self) -> range:
        """The distances that a window holds."""
        return range(self.nearest, self.context)

    @property
    def mean_weight(self) -> Tensor:
        """Mean weight (N, H, distances) of the pair at each distance, over exactly the positions that have one."""
        return self.sums[..., self.nearest :] / (self.windows * self._positions)

    @property
    def even(self) -> Tensor:
        """The same mean (distances) for a head that weighs all its pairs alike: position t has t + 1 - nearest."""
        shares = 1 / (torch.arange(self.nearest, self.context, dtype=torch.float64) + 1 - self.nearest)
        return shares.flip(0).cumsum(0).flip(0) / self._positions

    @property
    def _positions(self) -> Tensor:
        """Positions of a window (distances) that have a pair at each distance."""
        return self.context - torch.arange(self.nearest, self.context, dtype=torch.float64)


def by_distance(weights: Tensor) -> Tensor:
    """Sum weights (H, T, S), zero where a pair is not seen, over positions at equal distance t - j: (H, T)."""
    H, T, S = weights.shape
    positions = torch.arange(T, device=weights.device)
    distances = (positions[:, None] - positions[:S]).clamp(min=0)  # (T, S); what is not seen adds zero somewhere
    return weights.new_zeros(H, T).index_add_(1, distances.flatten(), weights.flatten(1))


def distance_pattern(
    model: LanguageModel, tokens: Tokens, *, context: int | None = None, windows: int = 32
) -> Iterator[DistancePattern]:
    """Measure mean weight against distance, yielding the growing result after each window; the last is the answer.

    Args:
        model: either kind; left in the mode it was in.
        context: tokens a window reads; default the model's own. The baseline cannot read more than that.
        windows: at most so many, side by side from the start of the text; a shorter text is read as one window.

    Raises:
        DataError: fewer than two tokens.
        UsageError: a window that the baseline cannot read.
        NonFiniteError: the model's logits are not numbers.
    """
    config = model.config
    T = min(context or config.context_length, len(tokens))
    kinds = pair_kinds(model)
    sums = torch.zeros(config.num_layers, len(kinds) * config.num_heads, T, dtype=torch.float64)
    total = count_windows(tokens, T, windows)
    pattern = DistancePattern(T, total, nearest(model), kinds, sums)
    for _, reading in read_windows(model, tokens, T, windows):
        pattern.add(reading)
        yield pattern


@dataclass(frozen=True)
class HeadScalars:
    """What one head of a mosaic learned besides its matrices: of its contextual memory, then (`slot_`) of its slots.

    decay: lambda = exp(-rho), what the leaky average keeps per token. half_life: ln 2 / rho tokens, after which half
    is left; infinite for rho = 0. beta: inverse bandwidth. gamma: the share of a value that is the stored token's own,
    not the next one's. alpha: length of a value (of slots: factor). beta_0, beta_1, power: where the bandwidth grows
    with the n pairs in memory, beta = beta_1 n^power + beta_0. None for what a model has not.
    """

    layer: int
    head: int
    decay: float | None = None
    half_life: float | None = None
    beta: float | None = None
    beta_0: float | None = None
    beta_1: float | None = None
    power: float | None = None
    gamma: float | None = None
    alpha: float | None = None
    slot_decay: float | None = None
    slot_half_life: float | None = None
    slot_beta: float | None = None
    slot_alpha: float | None = None


@torch.no_grad()
def learned_scalars(model: Mosaic) -> list[HeadScalars]:
    """The scalars of every head, layer by layer; heads of several kinds of memory as a `DistancePattern` has them."""
    found = []
    for layer, block in enumerate(model.blocks):
        windowed = isinstance(block.contextual, WindowedMemory)
        for memory in block.contextual.memories() if windowed else [block.contextual]:
            names = ("beta_0", "beta_1", "power") if memory.read.adaptive else ("beta",)
            columns = _fading(memory.keys) | dict(zip(names, memory.read.scalars(), strict=True))
            columns |= {"gamma": memory.values.peek, "alpha": memory.values.alpha()}
            if isinstance(block.persistent, PersistentMemory):
                slots = _fading(block.persistent.keys)
                slots |= dict(zip(("beta", "alpha"), block.persistent.read.scalars(), strict=True))
                columns |= {f"slot_{name}": column for name, column in slots.items()}
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            found += [HeadScalars(layer, head, **dict(zip(columns, row, strict=True))) for head, row in enumerate(rows)]
    return found


def _fading(keys: nn.Module) -> dict[str, Tensor]:
    """lambda and half life (H,) of a leaky average; nothing where keys are made otherwise."""
    if not isinstance(keys, KeyExtractor):
        return {}
    rate = ops.leak_rate(keys.leak)
    return {"decay": torch.exp(-rate), "half_life": torch.log(torch.tensor(2.0)) / rate}
