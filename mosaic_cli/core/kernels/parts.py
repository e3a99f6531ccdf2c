"""Parts of reads of memories by single queries, so that all threads have their share."""

import numpy as np

from mosaic_cli.core.kernels.compiled import inner
from mosaic_cli.core.kernels.halves import exp, greatest_of


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
