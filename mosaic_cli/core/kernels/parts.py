"""What reads of memories by single queries share: parts, so that all threads have their share, and sums of values."""

import numpy as np

from mosaic_cli.core.kernels.compiled import inner
from mosaic_cli.core.kernels.halves import exp, greatest_of
from mosaic_cli.core.kernels.prefetch import request_once

AHEAD = 4096  # bytes that are asked for before they are needed


@inner
def parts_for(rows, threads):
    """In how many parts to cut each of so many rows."""
    return 1 if rows % threads == 0 else threads


@inner
def join(sums, largest, totals, read):
    """Fill read (D,) with the weighted mean of all values, for the sums (parts, D) of the values of each part by their
    weights, e^(score - largest of the part), and the totals of those."""
    most, total = greatest_of(largest), np.float32(0)
    read[:] = 0
    for part in range(len(sums)):
        weight = exp(largest[part] - most)
        total += weight * totals[part]
        for d in range(len(read)):
            read[d] += weight * sums[part, d]
    for d in range(len(read)):
        read[d] /= total


@inner
def add_weighted(weights, values, read):
    """read (D,) += the sum of values (n, D), of numbers of any kind, by their weights."""
    fours = len(values) - len(values) % 4
    for i in range(0, fours, 4):
        a, b, c, e = values[i], values[i + 1], values[i + 2], values[i + 3]
        request_once(a, AHEAD, 4 * a.nbytes)
        p, q, r, t = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for d in range(len(read)):
            read[d] += p * np.float32(a[d]) + q * np.float32(b[d]) + r * np.float32(c[d]) + t * np.float32(e[d])
    for i in range(fours, len(values)):
        for d in range(len(read)):
            read[d] += weights[i] * np.float32(values[i, d])
