"""Reading slots in float32 on a CPU by the query of a single text, as in decoding: see `ops.slot_read`."""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import inner, loops, prange, run
from mosaic_cli.core.kernels.halves import powers
from mosaic_cli.core.kernels.parts import AHEAD, add_weighted, join, parts_for
from mosaic_cli.core.kernels.prefetch import request_once


def read_slots(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """alpha times the softmax reads (1, H, 1, D) by queries (1, H, 1, D) of slots (H, M, D); beta and alpha are (H,).
    All are float32 and contiguous."""
    reads = torch.empty_like(queries)
    rows = (len(keys), -1)
    run(_read, queries.view(rows), keys, values, beta, alpha, torch.get_num_threads(), reads.view(rows))
    return reads


@loops
def _read(queries, keys, values, beta, alpha, threads, reads):
    """Fill reads (H, D) by queries (H, D) of slots (H, M, D)."""
    H, M, D = keys.shape
    parts = min(parts_for(H, threads), M)
    sums = np.empty((H * parts, D), np.float32)
    totals, greatest = np.empty(H * parts, np.float32), np.empty(H * parts, np.float32)
    for task in prange(H * parts):
        h, first, stop = task // parts, task % parts * M // parts, (task % parts + 1) * M // parts
        totals[task], greatest[task] = _read_some(
            queries[h], keys[h, first:stop], values[h, first:stop], beta[h], sums[task]
        )
    for h in range(H):
        own = slice(h * parts, (h + 1) * parts)
        join(sums[own], greatest[own], totals[own], reads[h])
        for d in range(D):
            reads[h, d] *= alpha[h]


@inner
def _read_some(query, keys, values, beta, read):
    """Fill read (D,) with the sum of values (n, D) by their weights, which are e^(score - m); returns the sum of the
    weights, and m, the greatest score."""
    weights = np.empty(len(keys), np.float32)
    for s in range(len(keys)):
        request_once(keys[s], AHEAD, keys.strides[0])
        score = np.float32(0)
        for d in range(len(query)):
            score += query[d] * keys[s, d]
        weights[s] = score * beta
    total, greatest = powers(weights, np.float32(1), weights)
    read[:] = 0
    add_weighted(weights, values, read)
    return total, greatest
