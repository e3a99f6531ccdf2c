"""Reading slots in float32 on a CPU by one query of each text, as in decoding: see `ops.slot_read`."""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import inner, loops, prange, run
from mosaic_cli.core.kernels.halves import dot, powers
from mosaic_cli.core.kernels.parts import join, parts_for
from mosaic_cli.core.kernels.prefetch import request_once
from mosaic_cli.core.kernels.tile import FEW_COLUMNS, FEW_ROWS, multiply_add, multiply_few
from mosaic_cli.core.kernels.weighted import AHEAD, add_weighted


def read_slots(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """alpha times the softmax reads (B, H, 1, D) by queries (B, H, 1, D) of slots (H, M, D); beta and alpha are (H,).
    All are float32 and contiguous. With several texts M is a multiple of 8 and D of 32, which tiles cover."""
    B, H, _, D = queries.shape
    reads = torch.empty_like(queries)
    if B == 1:
        run(_one_text, queries.view(H, D), keys, values, beta, alpha, torch.get_num_threads(), reads.view(H, D))
    else:
        run(_few_texts, queries.view(B, H, D), keys, values, beta, alpha, reads.view(B, H, D))
    return reads


@loops
def _one_text(queries, keys, values, beta, alpha, threads, reads):
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
    scores, weights = np.empty(len(keys), np.float32), np.empty(len(keys), np.float32)
    for s in range(len(keys)):
        request_once(keys[s], AHEAD, keys.strides[0])
        scores[s] = dot(query, keys[s]) * beta
    total, greatest = powers(scores, np.float32(1), weights)
    read[:] = 0
    add_weighted(weights, values, read)
    return total, greatest


@loops
def _few_texts(queries, keys, values, beta, alpha, reads):
    """Fill reads (B, H, D) by queries (B, H, D). A task is a head of as many texts as a tile of scores has columns."""
    (B, H, D), M = queries.shape, keys.shape[1]
    groups = -(-B // FEW_COLUMNS)
    for task in prange(H * groups):
        h, begin = task // groups, task % groups * FEW_COLUMNS
        texts = min(FEW_COLUMNS, B - begin)
        columns, tile = np.zeros((D, FEW_COLUMNS), np.float32), np.empty((FEW_ROWS, FEW_COLUMNS), np.float32)
        scores, weights = np.empty((FEW_COLUMNS, M), np.float32), np.empty((FEW_COLUMNS, M), np.float32)
        totals = np.empty(FEW_COLUMNS, np.float32)
        sums = np.zeros((FEW_COLUMNS, D), np.float32)
        for text in range(texts):
            for d in range(D):
                columns[d, text] = queries[begin + text, h, d] * beta[h]
        for s in range(0, M, FEW_ROWS):
            request_once(keys[h, s], 2 * AHEAD, FEW_ROWS * keys.strides[1])
            multiply_few(keys[h, s : s + FEW_ROWS], columns, tile)
            for text in range(FEW_COLUMNS):
                for k in range(s, s + FEW_ROWS):
                    scores[text, k] = tile[k - s, text]
        for text in range(texts):
            totals[text] = powers(scores[text], np.float32(1), weights[text])[0]
        weights[texts:] = 0
        multiply_add(weights, values[h], sums)
        for text in range(texts):
            for d in range(D):
                reads[begin + text, h, d] = sums[text, d] * (alpha[h] / totals[text])
