"""Length extrapolation: what a token costs far beyond the training length, against the same token inside it.

Side by side with the long windows, the same text is read in windows of the training length T that begin every T / 2
tokens. So each token also has a loss at a position in the second half of such a window, the reference. A ratio of the
two does not depend on how hard the tokens of a band are, and its interval is that of paired losses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.batches import Tokens
from mosaic_cli.device import Placement
from mosaic_cli.evaluation.language import evaluate_language
from mosaic_cli.intervals import Estimate, estimate_ratio

LONGEST = 16  # training lengths that a window may hold
FEWEST_WINDOWS = 8  # that the text must hold, for an interval
HALVINGS = 3  # bands below the training length


@dataclass(frozen=True)
class Band:
    """Positions start to stop (not included) of long windows: their loss, and its ratio to the reference."""

    start: int
    stop: int
    loss: float
    ratio: Estimate


@dataclass(frozen=True)
class LengthResult:
    """What was found in `windows` windows of `window` tokens; `loss` is that of positions T / 2 to T - 1 of windows of
    the training length, over all of the text."""

    context_length: int
    window: int
    windows: int
    loss: float
    bands: list[Band]

    def ratio(self, times: int) -> float | None:
        """Loss of the positions from times / 2 to `times` training lengths over the reference; None if not read."""
        ends = {band.stop: band.ratio.mean for band in self.bands}
        return ends.get(times * self.context_length)


@dataclass(frozen=True)
class Shifted:
    """Tokens without the first `by`."""

    tokens: Tokens
    by: int

    def __len__(self) -> int:
        return len(self.tokens) - self.by

    def read(self, start: int, stop: int) -> np.ndarray:
        """As `Tokens.read`."""
        return self.tokens.read(start + self.by, stop + self.by)


def longest_window(model: LanguageModel, num_tokens: int) -> int:
    """Tokens of the longest windows, a power of two times the training length, of which a text has enough; 0 if none.

    A transformer reads its own context.
    """
    T, times = model.config.context_length, 1 if model.config.kind == "transformer" else LONGEST
    while times and (num_tokens - 1) // (times * T) < FEWEST_WINDOWS:
        times //= 2
    return times * T


def evaluate_length(
    model: LanguageModel, tokens: Tokens, window: int, placement: Placement, batch_tokens: int = 8192
) -> Iterator[LengthResult | float]:
    """Score a text, yielding the share that is done, then the result.

    Args:
        model: either kind, on the placement's device.
        window: from `longest_window`, not 0.
    """
    T = model.config.context_length
    half = max(1, T // 2)
    passes = [(tokens, 2 * half), (Shifted(tokens, half), 2 * half), (tokens, window)]
    kept = []
    for number, (text, length) in enumerate(passes):
        options = {"context_length": length, "batch_tokens": batch_tokens, "keep_windows": True}
        for result in evaluate_language(model, text, placement, **options):
            yield (number + result.tokens / result.total_tokens) / len(passes)
        kept.append(result.losses_of_windows())
    even, odd, long = kept
    yield _compare(reference(even, odd, len(tokens) - 1), long, T)


def reference(even: np.ndarray, odd: np.ndarray, num_targets: int) -> np.ndarray:
    """Loss of each target in the second half of a window, or nan where no window has it there: (num_targets,).

    Args:
        even, odd: losses (windows, positions) of windows side by side, of the text and of the text without its first
            half window.
    """
    half = even.shape[1] // 2
    found = np.full(num_targets, np.nan)
    for losses, shift in ((even, 0), (odd, half)):
        whole = found[shift : shift + losses.size].reshape(losses.shape)
        whole[:, half:] = losses[:, half:]
    return found


def _compare(known: np.ndarray, long: np.ndarray, T: int) -> LengthResult:
    """Bands of the long windows (windows, positions) against the known losses of their targets."""
    windows, window = long.shape
    beside = known[: long.size].reshape(long.shape)
    there = np.isfinite(beside)
    ends = sorted({T >> power for power in range(HALVINGS + 1)} | {T << n for n in range(window.bit_length())})
    bands = []
    for start, stop in pairwise(ends):
        if start > 0 and stop <= window:
            part = np.s_[:, start:stop]
            ours = np.where(there[part], long[part], 0).sum(axis=1, dtype=np.float64)
            theirs = np.where(there[part], beside[part], 0).sum(axis=1)
            used = theirs > 0
            ratio = estimate_ratio(ours[used].tolist(), theirs[used].tolist())
            bands.append(Band(start, stop, float(long[part].mean(dtype=np.float64)), ratio))
    return LengthResult(T, window, windows, float(np.nanmean(known)), bands)
