"""Means with 95 % confidence intervals."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Z_95 = 1.959964  # two-sided 95 % of a normal distribution
T_95 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139)
"""Two-sided 95 % of Student's t with 1, 2, ... 10 degrees of freedom."""


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


def estimate_few(values: list[float]) -> Estimate:
    """Mean with Student's interval: for a handful of cases (seeds), where 1.96 standard errors would be far too few."""
    normal = estimate_mean(values)
    if normal.low is None:
        return normal
    half = (normal.high - normal.low) / 2 * student_95(normal.n - 1) / Z_95
    return Estimate(normal.mean, normal.mean - half, normal.mean + half, normal.n)


def student_95(degrees: int) -> float:
    """Two-sided 95 % of Student's t; beyond the table the first terms of its expansion about the normal's, to 0.1 %."""
    if degrees <= len(T_95):
        return T_95[degrees - 1]
    first = (Z_95**3 + Z_95) / 4
    second = (5 * Z_95**5 + 16 * Z_95**3 + 3 * Z_95) / 96
    return Z_95 + first / degrees + second / degrees**2
