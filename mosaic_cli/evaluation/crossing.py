"""Where one model overtakes another: loss against position in the window, with an interval.

The paper does this on a text unlike the training text (arXiv 2405.06394): what a model gains along the window there, it
owes to the window alone.
"""

from dataclasses import dataclass

import numpy as np

SMOOTHING = 8  # positions averaged on each side beyond the first ones, where a single position is noisy
RESAMPLES = 2000
_AT_ONCE = 100  # resamples in memory


@dataclass(frozen=True)
class Crossing:
    """The first position from which on, to the end of the window, the smoothed loss is below the other model's."""

    position: int | None
    """From 0; 0 where it is below everywhere, None where it is not below at the end."""
    low: int | None
    high: int | None
    """95 % interval of the position; `high` is None where more than 2.5 % of the resamples have no crossing."""
    share: float
    """Share of the resamples that have a crossing."""
    windows: int


def find_crossing(below: np.ndarray, above: np.ndarray, seed: int = 0) -> Crossing:
    """Where `below` comes to lie below `above` for good, with a bootstrap over windows.

    Both models read the same windows, so windows are drawn in pairs, and what makes a window hard for both cancels out.

    Args:
        below, above: losses (windows, positions) of the two models.
        seed: of the bootstrap.

    Raises:
        ValueError: losses of different windows, or of none.
    """
    if below.shape != above.shape or not len(below):
        raise ValueError(f"losses of shapes {below.shape} and {above.shape} cannot be paired")
    difference = below.astype(np.float64) - above
    num_windows, T = difference.shape
    found = _position(difference.mean(axis=0, keepdims=True))[0]
    generator = np.random.default_rng(seed)
    drawn = np.concatenate(
        [
            _position(generator.multinomial(num_windows, np.full(num_windows, 1 / num_windows), _AT_ONCE) @ difference)
            for _ in range(RESAMPLES // _AT_ONCE)
        ]
    )
    share = float((drawn < T).mean())
    if found == T:
        return Crossing(None, None, None, share, num_windows)
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return Crossing(int(found), int(low), int(high) if high < T else None, share, num_windows)


def smooth(curves: np.ndarray) -> np.ndarray:
    """A running mean over the last axis, whose width grows with the position: the steep beginning stays as it is."""
    T = curves.shape[-1]
    half = np.minimum(SMOOTHING, np.arange(T) // 4)
    start, stop = np.arange(T) - half, np.minimum(np.arange(T) + half + 1, T)
    sums = np.concatenate([np.zeros_like(curves[..., :1]), np.cumsum(curves, axis=-1)], axis=-1)
    return (sums[..., stop] - sums[..., start]) / (stop - start)


def _position(differences: np.ndarray) -> np.ndarray:
    """For each curve (curves, T) the first position from which on, smoothed, it is negative; T where there is none."""
    T = differences.shape[1]
    not_below = smooth(differences)[:, ::-1] >= 0  # from the end of the window
    return T - np.where(not_below.any(axis=1), not_below.argmax(axis=1), T)
