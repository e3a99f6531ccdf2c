"""Means with 95 % confidence intervals."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z_95 = 1.959964  # two-sided 95 % of a normal distribution


@dataclass(frozen=True)
class Estimate:
    """A mean over n independent cases with its interval. Without a case all is None; with one the interval is."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def estimate(values: Iterable[float | None]) -> Estimate:
    """Wilson's interval for shares of yes and no, which is honest near 0 and 1; else mean +- 1.96 standard errors.

    None stands for a case that does not have the figure.
    """
    known = [value for value in values if value is not None]
    n = len(known)
    if n == 0:
        return Estimate(None, None, None, 0)
    mean = math.fsum(known) / n
    if set(known) <= {0.0, 1.0}:
        middle, half = mean + Z_95**2 / (2 * n), Z_95 * math.sqrt(mean * (1 - mean) / n + (Z_95 / (2 * n)) ** 2)
        return Estimate(mean, (middle - half) / (1 + Z_95**2 / n), (middle + half) / (1 + Z_95**2 / n), n)
    return estimate_mean(known)


def estimate_lead(leads: Iterable[float | None]) -> Estimate:
    """As `estimate`, for differences of two figures of the same case.

    Differences of yes and no are -1, 0 or 1. Their interval is Agresti and Min's (2005), which counts half a case
    more for each of the four outcomes: so it stays honest where all cases agree.
    """
    known = [lead for lead in leads if lead is not None]
    if not known or not set(known) <= {-1.0, 0.0, 1.0}:
        return estimate_mean(known)
    n = len(known) + 2
    middle = math.fsum(known) / n
    half = Z_95 * math.sqrt(((math.fsum(lead**2 for lead in known) + 1) / n - middle**2) / n)
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Estimate(math.fsum(known) / len(known), low, high, len(known))


def estimate_mean(values: list[float]) -> Estimate:
    """Mean +- 1.96 standard errors."""
    n = len(values)
    if n < 2:
        return Estimate(*(values or [None]), None, None, n)
    mean = math.fsum(values) / n
    half = Z_95 * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return Estimate(mean, mean - half, mean + half, n)


def estimate_ratio(sums: Sequence[float], sizes: Sequence[float]) -> Estimate:
    """A mean over parts of cases: sum(sums) / sum(sizes), the case being the unit, as parts of one are not independent.

    Interval: normal approximation for a ratio of sums; none with a single case.
    """
    n, size = len(sums), math.fsum(sizes)
    ratio = math.fsum(sums) / size
    if n < 2:
        return Estimate(ratio, None, None, n)
    squares = math.fsum((part - ratio * of) ** 2 for part, of in zip(sums, sizes, strict=True))
    half = Z_95 * math.sqrt(squares * n / (n - 1)) / size
    return Estimate(ratio, ratio - half, ratio + half, n)
