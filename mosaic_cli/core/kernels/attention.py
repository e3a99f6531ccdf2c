"""Attention in bfloat16 on a CPU, in compiled loops: neither scores nor weights are ever all in memory.

Torch's fused attention gets little of the speed that products have in bfloat16, least of all in its backward pass.
Here the scores of eight queries are made in the processor's cache, in float32, for a memory of small bandwidth has
large ones; and made again in the backward pass (FlashAttention, arXiv 2205.14135). docs/performance.md has the figures.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_cli.core.kernels.compiled import inner, loops, prange, run
from mosaic_cli.core.kernels.halves import bits, exp, narrow
from mosaic_cli.core.kernels.tile import (
    COLUMNS,
    ROWS,
    down,
    down_transposed,
    multiply,
    multiply_add,
    padded,
    rows,
)

BLOCK = 64  # queries that are added to the gradients of keys and values at a time
PARTS = 16  # at least so many threads find work: fewer heads than that are cut up


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: Tensor | float) -> Tensor:
    """Softmax attention (B, H, T, D) for queries (B, H, T, D) and pairs (B, H, S, D), all of them taken as bfloat16.

    Args:
        scale: of the scores, above 0: a number, or float32 that can be expanded to (B, H, T).
    """
    return _attend(queries, keys, values, scale, seen=keys.shape[2], window=queries.shape[2] + keys.shape[2])


def attend_window(queries: Tensor, keys: Tensor, values: Tensor, scale: Tensor | float, window: int) -> Tensor:
    """The same for the newest T of S positions, each of which sees its own pair and those before it, `window` in all:
    query i the pairs i + S - T - window < j <= i + S - T."""
    T, S = queries.shape[2], keys.shape[2]
    return _attend(queries, keys, values, scale, seen=S - T + 1, window=window)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: Tensor | float, seen: int, window: int) -> Tensor:
    """Query i sees the pairs i + seen - window <= j < i + seen, if they are there."""
    heads = queries.shape[:2]
    flat = (tensor.bfloat16().flatten(0, 1) for tensor in (queries, keys, values))
    scales = torch.as_tensor(scale, dtype=torch.float32).expand(queries.shape[:3]).flatten(0, 1)
    return _Attention.apply(*flat, scales, seen, window).unflatten(0, heads)


class _Attention(torch.autograd.Function):
    """Of queries (G, T, D), keys and values (G, S, D) and scales (G, T); G counts all heads of the batch."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, scales: Tensor, seen: int, window: int) -> Tensor:
        ctx.shape, ctx.sees = (queries.shape[1], keys.shape[1], keys.shape[2]), (keys.shape[1], seen, window)
        queries, keys, values = padded(queries), padded(keys), padded(values)
        scales = F.pad(scales, (0, queries.shape[1] - scales.shape[1]))
        reads, logs = torch.empty_like(queries), torch.empty(queries.shape[:2])
        run(_forward, rows(queries), down_transposed(keys), down(values), scales, bits(reads), logs, *ctx.sees)
        ctx.save_for_backward(queries, keys, values, scales, logs)
        T, _, D = ctx.shape
        return reads[:, :T, :D]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, scales, logs = ctx.saved_tensors
        gradient, (T, S, D) = padded(gradient), ctx.shape
        parts = max(1, PARTS // len(keys))
        by_queries, by_scales = torch.empty_like(queries), torch.empty_like(scales)
        by_pairs = torch.zeros(2, len(keys), parts, *keys.mT.shape[1:])
        run(
            _backward,
            *(rows(tensor) for tensor in (queries, gradient)),
            down_transposed(keys),
            down_transposed(values),
            down(keys),
            scales,
            logs,
            bits(by_queries),
            by_scales,
            by_pairs[0],
            by_pairs[1],
            *ctx.sees,
        )
        whole = by_pairs[:, :, 0] if parts == 1 else by_pairs.sum(dim=2)
        by_keys, by_values = whole[..., :D, :S].mT.to(keys.dtype)
        return by_queries[:, :T, :D], by_keys, by_values, by_scales[:, :T], None, None


@inner
def _span(start, stop, S, seen, window):
    """The pairs that queries see: first and last, first in a tile's columns; and the end of the last one's tile."""
    first, last = _first(start, S, seen, window), min(S, stop - 1 + seen)
    return first - first % COLUMNS, last + -last % COLUMNS


@inner
def _own_span(t, S, seen, window, start):
    """The pairs that query t sees, counted from `start`."""
    return _first(t, S, seen, window) - start, min(S, t + seen) - start


@inner
def _first(t, S, seen, window):
    """The first pair that query t sees; of the queries that only fill a tile, any."""
    return min(max(0, t + seen - window), S - 1)


@inner
def _greatest(scores):
    """The largest of some float32, or what is not a number.

    Integers compare as the floats of the same bits do, once the lower bits of negative ones are turned: a maximum of
    floats would be taken one by one, for the sake of what is not a number.
    """
    turned, ordered, highest = np.int32(0x7FFFFFFF), scores.view(np.int32), np.int32(-0x80000000)
    for s in range(len(scores)):
        highest = max(highest, np.int32(ordered[s] ^ (np.int32(ordered[s] >> np.int32(31)) & turned)))
    return np.int32(highest ^ (np.int32(highest >> np.int32(31)) & turned)).view(np.float32)


@loops
def _forward(queries, keys, values, scales, reads, logs, S, seen, window):
    """Reads (G, T, D), the bits of bfloat16, and the logarithm of each query's sum of powers (G, T), of queries
    (G, T, D / 2), keys (G, D / 2, S) and values (G, S / 2, D) as `tile` takes them, and scales (G, T); S pairs are
    there."""
    G, T, _ = queries.shape
    D = values.shape[2]
    blocks = (T + BLOCK - 1) // BLOCK
    for number in prange(G * blocks):
        g, block = number // blocks, number % blocks * BLOCK
        read = np.empty((ROWS, D), dtype=np.float32)
        for start in range(block, min(block + BLOCK, T), ROWS):
            first, last = _span(start, start + ROWS, S, seen, window)
            scores = np.empty((ROWS, last - first), dtype=np.float32)
            weights = np.empty((ROWS, last - first), dtype=np.uint16)
            multiply(queries[g, start:], keys[g, :, first:last], scores)
            totals = np.zeros(ROWS, dtype=np.float32)
            for row in range(ROWS):
                own, end = _own_span(start + row, S, seen, window, first)
                score, weight = scores[row, own:end], weights[row, own:end]
                scale, greatest, total = scales[g, start + row], _greatest(score), np.float32(0)
                for s in range(len(score)):
                    power = exp((score[s] - greatest) * scale)
                    weight[s] = narrow(power)
                    total += power
                weights[row, :own] = 0
                weights[row, end:] = 0
                totals[row] = total
                logs[g, start + row] = greatest * scale + np.log(total)
            multiply(weights.view(np.int32), values[g, first // 2 :], read)
            for row in range(ROWS):
                for d in range(D):
                    reads[g, start + row, d] = narrow(read[row, d] / totals[row])


@loops
def _backward(
    queries,
    gradient,
    keys,
    values,
    keys_down,
    scales,
    logs,
    by_queries,
    by_scales,
    by_keys,
    by_values,
    S,
    seen,
    window,
):
    """The gradients by queries (G, T, D), the bits of bfloat16, by scales (G, T), and by keys and values
    (G, parts, D, S), which are added to, from that by the reads (G, T, D / 2)."""
    G, T, _ = queries.shape
    parts, D, _ = by_keys.shape[1:]
    for number in prange(G * parts):
        g, part = number // parts, number % parts
        read = np.empty((ROWS, D), dtype=np.float32)
        for block in range(part * BLOCK, T, parts * BLOCK):
            stop = min(block + BLOCK, T)
            begin, end = _span(block, stop, S, seen, window)
            weights = np.empty(((stop - block) // 2, end - begin), dtype=np.uint32)  # of two queries interleaved
            by_scores = np.empty_like(weights)
            for start in range(block, stop, ROWS):
                first, last = _span(start, start + ROWS, S, seen, window)
                scores = np.empty((ROWS, last - first), dtype=np.float32)
                by_weights = np.empty_like(scores)
                power = np.empty(last - first, dtype=np.float32)
                multiply(queries[g, start:], keys[g, :, first:last], scores)
                multiply(gradient[g, start:], values[g, :, first:last], by_weights)
                halves = np.empty((2, ROWS, last - first), dtype=np.uint16)  # of weights, of the gradients by scores
                for row in range(ROWS):
                    own, over = _own_span(start + row, S, seen, window, first)
                    score, by_weight = scores[row, own:over], by_weights[row, own:over]
                    scale, log, mean = scales[g, start + row], logs[g, start + row], np.float32(0)
                    for s in range(len(score)):
                        power[s] = exp(score[s] * scale - log)
                        mean += power[s] * by_weight[s]
                    weight, by_score, by_scale = halves[0, row, own:over], halves[1, row, own:over], np.float32(0)
                    for s in range(len(score)):
                        change = power[s] * (by_weight[s] - mean)
                        weight[s] = narrow(power[s])
                        by_score[s] = narrow(change * scale)
                        by_scale += change * score[s]
                    by_scales[g, start + row] = by_scale
                    halves[:, row, :own] = 0
                    halves[:, row, over:] = 0
                for row in range(0, ROWS, 2):
                    pair = (start + row - block) // 2
                    _interleave(halves[0, row], halves[0, row + 1], weights[pair], first - begin)
                    _interleave(halves[1, row], halves[1, row + 1], by_scores[pair], first - begin)
                multiply(halves[1].view(np.int32), keys_down[g, first // 2 :], read)
                for row in range(ROWS):
                    for d in range(D):
                        by_queries[g, start + row, d] = narrow(read[row, d])
            multiply_add(_transposed(gradient[g, block:stop]), weights, by_values[g, part, :, begin:end])
            multiply_add(_transposed(queries[g, block:stop]), by_scores, by_keys[g, part, :, begin:end])


@inner
def _interleave(even, odd, both, start):
    """Two rows of 16 bits as one of 32, which begins at `start` of a longer one and is zero elsewhere."""
    both[:start] = 0
    for s in range(len(even)):
        both[start + s] = np.uint32(even[s]) | np.uint32(np.uint32(odd[s]) << np.uint32(16))
    both[start + len(even) :] = 0


@inner
def _transposed(block):
    """The `rows` (D, T / 2) of a transposed matrix, for its own (T, D / 2)."""
    T, pairs = block.shape
    turned = np.empty((2 * pairs, T // 2), dtype=np.uint32)
    for t in range(0, T, 2):
        for pair in range(pairs):
            even, odd = np.uint32(block[t, pair]), np.uint32(block[t + 1, pair])
            turned[2 * pair, t // 2] = (even & np.uint32(0xFFFF)) | np.uint32(odd << np.uint32(16))
            turned[2 * pair + 1, t // 2] = np.uint32(even >> np.uint32(16)) | (odd & np.uint32(0xFFFF0000))
    return turned
