"""Three moons (v1, predictive disentanglement): one contextual memory that predicts the sky, with one head or three.

Memories of several seeds are trained at once: parameters and sequences have a leading dimension S, across which nothing
is shared. Sizes: S seeds, B sequences, T observations, H heads, D = 6 / H head width. Moon m, from 0, fills the columns
2m and 2m + 1 of an observation.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_cli.errors import NonFiniteError

PERIODS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
PHASE = 0.3  # radians, the same for every moon
NUM_TRIPLES = 9  # of the 35; the last one is held out
HORIZON = 18.0  # units of time in a sequence: the longest joint period, three times
BETA = 50.0
CLIP = 0.5  # a larger error has no gradient: what cannot be known yet teaches nothing
START_STD = 0.2  # of real and imaginary parts: the memories begin blurred and sharpen as the maps grow
EVALUATED = 8  # sequences for each triple, beginning at times of their own, the same for every model
MOST_WITH_THREE_HEADS = 1.3
LEAST_WITH_ONE_HEAD = 2.0


@dataclass(frozen=True)
class Triple:
    """The periods of three moons, rising, in units of time."""

    periods: tuple[float, float, float]

    @property
    def longest(self) -> float:
        """The longest single period."""
        return self.periods[-1]

    @property
    def joint(self) -> float:
        """The joint period: the least time after which all three moons are back where they were."""
        return math.lcm(*(round(2 * period) for period in self.periods)) / 2


def lowest_triples() -> list[Triple]:
    """The nine triples of the lowest joint periods. Equal ones stand in the order of their periods."""
    triples = map(Triple, itertools.combinations(PERIODS, 3))
    return sorted(triples, key=lambda triple: triple.joint)[:NUM_TRIPLES]


TRIPLES = lowest_triples()
HELD_OUT = NUM_TRIPLES - 1


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the memories are trained. The defaults take about a minute on two cores."""

    observations: int = 400
    """Observations in a sequence; a sequence always spans `HORIZON`."""
    batch_size: int = 4
    """Sequences in a step, for each seed."""
    steps: int = 300
    """Updates by AdamW without weight decay."""
    learning_rate: float = 3e-2
    """At the first step; falls linearly to `min_lr`."""
    min_lr: float = 5e-6
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each decides the starting values and the sequences of one memory."""
    device: str = "cpu"

    @property
    def rate(self) -> float:
        """Observations a unit of time."""
        return self.observations / HORIZON

    def lr(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.learning_rate + (self.min_lr - self.learning_rate) * step / self.steps


PAPER = Setting(observations=800, batch_size=64, steps=500, learning_rate=1e-2)


def observe(periods: Tensor, start: Tensor, length: int, rate: float) -> Tensor:
    """What is seen of three moons: sine and cosine of 2 pi t / period + 0.3 for each.

    Args:
        periods: (..., 3) in units of time.
        start: (...) time of the first observation.
        length: observations T.
        rate: observations a unit of time.

    Returns:
        (..., T, 6).
    """
    times = start[..., None] + torch.arange(length) / rate  # (..., T)
    angles = 2 * math.pi * times[..., None] / periods[..., None, :] + PHASE  # (..., T, 3)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def draw_sequences(which: Tensor, length: int, rate: float, generator: torch.Generator) -> Tensor:
    """Sequences (B, T, 6) of the triples with the indices `which` (B,), each beginning at a random time."""
    joint = torch.tensor([triple.joint for triple in TRIPLES])[which]
    periods = torch.tensor([triple.periods for triple in TRIPLES])[which]
    start = joint * torch.rand(len(which), generator=generator)
    return observe(periods, start, length, rate)


class ComplexMaps(nn.Module):
    """A complex 3 x 3 matrix for each seed, acting on sine and cosine as real and imaginary part.

    Only real and imaginary parts are parameters, so the real 6 x 6 matrix has the complex structure at every step.
    """

    def __init__(self, generators: Iterable[torch.Generator]):
        super().__init__()
        parts = [START_STD * torch.randn(2, 3, 3, generator=generator) for generator in generators]
        self.parts = nn.Parameter(torch.stack(parts))  # (S, 2, 3, 3)

    def real(self) -> Tensor:
        """The same matrices as (S, 6, 6): each entry a + ib becomes ((a, -b), (b, a))."""
        a, b = self.parts.unbind(dim=1)  # (S, 3, 3)
        rows = torch.stack([a, -b], dim=-1), torch.stack([b, a], dim=-1)  # (S, 3, 3, 2) each
        return torch.stack(rows, dim=2).flatten(3).flatten(1, 2)  # (S, 3, 2, 3, 2) -> (S, 6, 6)

    def matrices(self) -> Tensor:
        """The complex matrices (S, 3, 3) on the CPU."""
        return torch.view_as_complex(self.parts.detach().cpu().movedim(1, -1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, T, 6) -> (S, B, T, 6)."""
        return torch.bmm(x.flatten(1, 2), self.real().transpose(1, 2)).view_as(x)


class MoonMemory(nn.Module):
    """One contextual memory without leak or norm: k = W_phi x, v_t = W_psi x_{t+1}, y = W_z softmax(50 k.k) v."""

    def __init__(self, num_heads: int, generators: list[torch.Generator]):
        super().__init__()
        self.num_heads = num_heads
        self.keys = ComplexMaps(generators)  # W_phi
        self.values = ComplexMaps(generators)  # W_psi
        self.output = ComplexMaps(generators)  # W_z

    def forward(self, x: Tensor) -> Tensor:
        """Predictions (S, B, T, 6) of the observation after each of x (S, B, T, 6), read from the strict past.

        The pair of position t holds observation t + 1, so at position T the pairs t < T hold what is known. The first
        position has an empty memory and predicts zero.
        """
        keys, values = self._heads(self.keys(x)), self._heads(self.values(x))
        reads = F.scaled_dot_product_attention(
            BETA * keys[:, :, 1:], keys[:, :, :-1], values[:, :, 1:], is_causal=True, scale=1.0
        )  # (S B, H, T - 1, D)
        reads = F.pad(reads, (0, 0, 1, 0)).transpose(1, 2).reshape(x.shape)
        return self.output(reads)

    @torch.no_grad()
    def last_weights(self, x: Tensor) -> Tensor:
        """Retrieval weights (S, B, H, T - 1) with which the last position of x (S, B, T, 6) reads the pairs before."""
        keys = self._heads(self.keys(x))  # (S B, H, T, D)
        scores = BETA * keys[:, :, -1:] @ keys[:, :, :-1].transpose(-1, -2)  # (S B, H, 1, T - 1)
        return scores.squeeze(2).softmax(dim=-1).unflatten(0, x.shape[:2])

    def _heads(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (S B, H, T, D)


class Experiment:
    """The memories of one number of heads, from every seed of a setting. Starts and data do not depend on the heads."""

    def __init__(self, num_heads: int, setting: Setting):
        self.setting = setting
        self._generators = [torch.Generator().manual_seed(seed) for seed in setting.seeds]
        self.memory = MoonMemory(num_heads, self._generators).to(setting.device)

    def train(self) -> Iterator[float]:
        """Train; yields the mean loss over the seeds after each step.

        Raises:
            NonFiniteError: the loss of some seed is infinite or not a number.
        """
        optimizer = torch.optim.AdamW(self.memory.parameters(), weight_decay=0.0)
        for step in range(self.setting.steps):
            optimizer.param_groups[0]["lr"] = self.setting.lr(step)
            x = self._batch()
            errors = self.memory(x[:, :, :-1]) - x[:, :, 1:]
            losses = errors.clamp(-CLIP, CLIP).square().mean(dim=(1, 2, 3))  # (S,)
            optimizer.zero_grad()
            losses.sum().backward()  # each seed's gradient is that of its own loss
            optimizer.step()
            loss = losses.mean().item()
            if not math.isfinite(loss):
                raise NonFiniteError(f"the loss is {loss} at step {step}", hint="Try another --seed.")
            yield loss

    def _batch(self) -> Tensor:
        sequences = []
        for generator in self._generators:
            which = torch.randint(HELD_OUT, (self.setting.batch_size,), generator=generator)
            sequences.append(draw_sequences(which, self.setting.observations + 1, self.setting.rate, generator))
        return torch.stack(sequences).to(self.setting.device)  # (S, B, T + 1, 6)

    @torch.no_grad()
    def measure(self) -> "Measurement":
        """What the memories are worth on sequences they have not seen, of every triple."""
        setting, generator = self.setting, torch.Generator().manual_seed(0)
        curves = []
        for index in range(NUM_TRIPLES):
            which = torch.full((EVALUATED,), index)
            x = draw_sequences(which, setting.observations + 1, setting.rate, generator).to(setting.device)
            x = x.expand(len(setting.seeds), *x.shape)
            errors = (self.memory(x[:, :, :-1]) - x[:, :, 1:]).abs()
            curves.append(errors.mean(dim=(1, 3)).cpu())
        maps = (self.memory.keys, self.memory.values, self.memory.output)
        matrices = torch.stack([one.matrices() for one in maps], dim=1)
        return Measurement(self.memory.num_heads, setting.rate, torch.stack(curves, dim=1), matrices)

    @torch.no_grad()
    def demonstrate(self, index: int) -> "Demonstration":
        """The memory of one seed, by its index, on one sequence of the held-out triple, for drawing."""
        setting, triple = self.setting, TRIPLES[HELD_OUT]
        generator = torch.Generator().manual_seed(0)
        x = draw_sequences(torch.tensor([HELD_OUT]), setting.observations + 1, setting.rate, generator)
        x = x.to(setting.device).expand(len(setting.seeds), 1, -1, -1)
        prefix = round((triple.longest + triple.joint) / 2 * setting.rate)  # all single periods seen, the joint not yet
        predicted = self.memory(x[:, :, :-1])
        free = free_run(self.memory, x[:, :, :prefix], setting.observations + 1 - prefix)
        weights = self.memory.last_weights(x[:, :, :-1])
        shown = (one[index, 0].cpu() for one in (x, predicted, free, weights))
        return Demonstration(self.memory.num_heads, setting.rate, prefix, *shown)


@torch.no_grad()
def free_run(memory: MoonMemory, x: Tensor, length: int) -> Tensor:
    """The `length` observations after x (S, B, T, 6) as the memory predicts them, each read from its own predictions.

    Returns:
        (S, B, length, 6).
    """
    known = x
    for _ in range(length):
        known = torch.cat([known, memory(known)[:, :, -1:]], dim=2)
    return known[:, :, x.shape[2] :]


@dataclass(frozen=True)
class Demonstration:
    """One sequence of the held-out triple, and one memory on it."""

    num_heads: int
    rate: float
    prefix: int
    """Observations after which the free-running memory is on its own."""
    truth: Tensor
    """(T + 1, 6) what is seen."""
    predicted: Tensor
    """(T, 6) predictions of observations 1 .. T, each from the true past."""
    free: Tensor
    """(T + 1 - prefix, 6) the observations from `prefix` on as the free-running memory has them."""
    weights: Tensor
    """(H, T - 1) with which each head reads the stored pairs at the last position."""


def split_errors(curve: Tensor, triple: Triple, rate: float) -> tuple[Tensor | None, Tensor]:
    """Mean error before and after the joint period.

    Args:
        curve: (..., T) error of the prediction made T / rate units of time after the first observation.
        triple: whose periods divide the time.
        rate: observations a unit of time.

    Returns:
        (...) from the longest single period up to the joint one, None when the two are equal and nothing lies between;
        and (...) from the joint period on.
    """
    time = torch.arange(curve.shape[-1]) / rate
    between = (time >= triple.longest) & (time < triple.joint)
    before = curve[..., between].mean(dim=-1) if triple.joint > triple.longest else None
    return before, curve[..., time >= triple.joint].mean(dim=-1)


def disentanglement(keys: Tensor, values: Tensor, output: Tensor, num_heads: int) -> float:
    """How much of each head is about one moon: 1 when each head has a moon of its own, 1/3 for even mixing.

    A head's share of a moon is the least of three shares of squared moduli: of the moon's column in its key map W_phi,
    of the moon's column (what is stored) and of its row (what is predicted) in its end-to-end map W_z W_psi. The score
    is the mean over heads of the share of the moon each is given, for the best way to give them different moons.

    Args:
        keys, values, output: complex (3, 3) matrices W_phi, W_psi, W_z. Head h has the h-th part of the rows of the
            first two and of the columns of the last.
        num_heads: 1 or 3.
    """
    width = 3 // num_heads
    shares = []
    for h in range(num_heads):
        own = slice(h * width, (h + 1) * width)
        end_to_end = (output[:, own] @ values[own]).abs().square()
        asked = keys[own].abs().square().sum(dim=0)
        of_moon = torch.stack([asked, end_to_end.sum(dim=0), end_to_end.sum(dim=1)])  # (3, moons)
        shares.append((of_moon / of_moon.sum(dim=1, keepdim=True)).amin(dim=0))
    givings = itertools.permutations(range(3), num_heads)
    return max(sum(float(shares[h][moon]) for h, moon in enumerate(giving)) for giving in givings) / num_heads


@dataclass(frozen=True)
class Measurement:
    """What the memories of one number of heads are worth; seeds in the order of the setting."""

    num_heads: int
    rate: float
    curves: Tensor
    """(S, 9, T) mean absolute error, over sequences and the six numbers, of the prediction at each position."""
    matrices: Tensor
    """(S, 3, 3, 3) complex W_phi, W_psi and W_z."""

    def by_seed(self) -> dict[str, list[float]]:
        """The figures of every seed. The errors are those of the training triples that have a time between."""
        pairs = [self.split(index) for index in range(HELD_OUT)]
        before = torch.stack([before for before, _ in pairs if before is not None]).mean(dim=0)  # (S,)
        after = torch.stack([after for before, after in pairs if before is not None]).mean(dim=0)
        held_before, held_after = self.split(HELD_OUT)
        return {
            "error_before_joint": before.tolist(),
            "error_after_joint": after.tolist(),
            "ratio": (before / after).tolist(),
            "ratio_heldout": (held_before / held_after).tolist(),
            "disentanglement": [disentanglement(*maps, self.num_heads) for maps in self.matrices],
        }

    def typical_seed(self) -> int:
        """Index of the seed of median disentanglement, the lower one of two."""
        scores = self.by_seed()["disentanglement"]
        return sorted(range(len(scores)), key=scores.__getitem__)[(len(scores) - 1) // 2]

    def split(self, index: int) -> tuple[Tensor | None, Tensor]:
        """Errors (S,) before and after the joint period of one triple, as `split_errors` has them."""
        return split_errors(self.curves[:, index], TRIPLES[index], self.rate)


def claim_holds(measurements: list[Measurement]) -> bool:
    """Whether, in the mean over seeds, three heads need not wait for the joint period and one head must.

    Both on training triples and on the held-out one.
    """
    return all(
        ratio <= MOST_WITH_THREE_HEADS if one.num_heads == 3 else ratio >= LEAST_WITH_ONE_HEAD
        for one in measurements
        for ratio in (mean(one.by_seed()[key]) for key in ("ratio", "ratio_heldout"))
    )


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def interval(values: list[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean by Student's t distribution; None for a single value."""
    n = len(values)
    if n < 2:
        return None
    variance = sum((value - mean(values)) ** 2 for value in values) / (n - 1)
    half = _t_quantile(n - 1) * math.sqrt(variance / n)
    return mean(values) - half, mean(values) + half


def _t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution: where the density, summed from 0, reaches 0.475."""
    t = torch.linspace(0, 16, 160_001, dtype=torch.float64)  # one degree of freedom, the widest, reaches 12.7
    scale = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    density = torch.exp(scale - (degrees + 1) / 2 * torch.log1p(t.square() / degrees))
    reached = torch.cumulative_trapezoid(density, t)
    return float(t[1:][reached >= 0.475][0])
