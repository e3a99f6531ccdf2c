"""Attention on a CPU in compiled loops: neither scores nor weights are ever all in memory.

In bfloat16 torch's fused attention gets little of the speed that products have there, least of all in its backward
pass; in float32 that of the past multiplies much that no query sees. Here the scores of eight queries are made in the
processor's cache, in float32, for a memory of small bandwidth has large ones; and made again in the backward pass
(FlashAttention, arXiv 2205.14135). docs/performance.md has the figures.
"""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core import kernels
from mosaic_cli.core.kernels.compiled import inner, keep, loops, prange, run, uncounted
from mosaic_cli.core.kernels.halves import bits, dot, exp, powers, stored
from mosaic_cli.core.kernels.tile import (
    COLUMNS,
    ROWS,
    down,
    in_words,
    lay_down,
    matrix,
    multiply,
    multiply_add,
    to_lay_down,
    turned,
    turned_back,
    words,
)

BLOCK = 64  # queries that are added to the gradients of keys and values at a time
PARTS = 16  # at least so many threads find work: fewer heads than that are cut up


def attend(queries: Tensor, keys: Tensor, values: Tensor, scale: Tensor | float) -> Tensor:
    """Softmax attention (B, H, T, D) for queries (B, H, T, D) and pairs (B, H, S, D), all of them taken in the dtype of
    products, which must be float32 or bfloat16.

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
    scales = torch.as_tensor(scale, dtype=torch.float32).expand(queries.shape[:3])
    dtype = kernels.product_dtype(values)
    return _Attention.apply(queries.to(dtype), keys.to(dtype), values.to(dtype), scales, seen, window)


class _Attention(torch.autograd.Function):
    """Of queries (B, H, T, D), keys and values (B, H, S, D) and scales (B, H, T). Reads and gradients lie in memory as
    the heads of a residual stream do: (B, T, H, D)."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, scales: Tensor, seen: int, window: int) -> Tensor:
        ctx.sees = keys.shape[2], seen, window
        scales, reads = scales.contiguous(), _beside(queries)
        logs = torch.empty_like(scales)
        run(_forward, *_runs(queries, keys, values), scales, bits(reads), logs, *ctx.sees, PARTS)
        ctx.save_for_backward(queries, keys, values, scales, reads, logs)
        return reads.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, scales, reads, logs = ctx.saved_tensors
        by_inputs, by_scales = [_beside(tensor) for tensor in inputs], torch.empty_like(scales)
        results = *(bits(tensor) for tensor in by_inputs), by_scales
        run(_backward, *_runs(*inputs, gradient), scales, bits(reads), logs, *results, *ctx.sees, PARTS)
        return *(tensor.transpose(1, 2) for tensor in by_inputs), by_scales, None, None


def _beside(heads: Tensor) -> Tensor:
    """Room for as many heads (B, H, N, D), side by side: (B, N, H, D)."""
    return heads.new_empty(heads.transpose(1, 2).shape)


def _runs(*tensors: Tensor) -> list[Tensor | tuple[int, ...]]:
    """For each (B, H, N, D) the numbers, of bfloat16 the bits, as one run, and the steps in it from text to text, head
    to head and row to row. So the loops need no copies, and one form of them serves tensors however they lie."""
    arguments = []
    for tensor in tensors:
        tensor = tensor if tensor.stride(3) == 1 else tensor.contiguous()
        extent = 1 + sum(step * (size - 1) for step, size in zip(tensor.stride(), tensor.shape, strict=True))
        arguments += [bits(tensor.as_strided((extent,), (1,))), tensor.stride()[:3]]
    return arguments


@inner
def _clear(rows):
    for row in rows:
        _clear_but(row, 0, 0)


@inner
def _clear_but(row, start, stop):
    """Zeros outside of a part of a row. (An assignment to a slice would be a parallel loop of its own, which Numba may
    move past what is written through another view of the row.)"""
    for s in range(start):
        row[s] = 0
    for s in range(stop, len(row)):
        row[s] = 0


@inner
def _rows(run, steps, b, h, start, count, width):
    """Rows of a head, from `start` on, as `tile` takes them."""
    return matrix(run, b * steps[0] + h * steps[1] + start * steps[2], steps[2], count, width)


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


@loops
def _forward(
    queries, query_steps, keys, key_steps, values, value_steps, scales, reads, logs, S, seen, window, most_parts
):
    """Reads (B, T, H, D), and the logarithm of each query's sum of powers (B, H, T), of runs of queries, keys and
    values, and scales (B, H, T); S pairs are there."""
    B, T, H, D = reads.shape
    parts = max(1, most_parts // (B * H))
    width, size = D + -D % COLUMNS, S + -S % COLUMNS
    for piece in prange(B * H * parts):
        b, h, part = piece // parts // H, piece // parts % H, piece % parts
        memory = (
            turned(words(_rows(keys, key_steps, b, h, 0, S, D))),
            down(_rows(values, value_steps, b, h, 0, S, D)),
            np.empty((ROWS, size), np.float32),
            np.empty((ROWS, size), queries.dtype),
            np.empty((ROWS, width), np.float32),
            np.empty(ROWS, np.float32),
        )
        keys_turned, values_down, scores, weights, read, totals = uncounted(memory)
        for block in range(part * BLOCK, T, parts * BLOCK):
            block_memory = (words(_rows(queries, query_steps, b, h, block, min(BLOCK, T - block), D)),)
            (asked,) = uncounted(block_memory)
            for start in range(block, min(block + BLOCK, T), ROWS):
                rows = min(ROWS, T - start)
                first, last = _span(start, start + rows, S, seen, window)
                multiply(asked[start - block :], keys_turned[:, first:last], scores[:, : last - first])
                for row in range(rows):
                    own, end = _own_span(start + row, S, seen, window, first)
                    weight, scale = weights[row, : last - first], scales[b, h, start + row]
                    totals[row], greatest = powers(scores[row, own:end], scale, weight[own:end])
                    _clear_but(weight, own, end)
                    logs[b, h, start + row] = greatest * scale + np.log(totals[row])
                weight_words = words(weights)[:, : in_words(last - first, weights)]
                multiply(weight_words, values_down[in_words(first, weights) :], read)
                for row in range(rows):
                    for d in range(D):
                        reads[b, start + row, h, d] = stored(read[row, d] / totals[row], reads)
            keep(block_memory)
        keep(memory)


@loops
def _backward(
    queries,
    query_steps,
    keys,
    key_steps,
    values,
    value_steps,
    gradient,
    gradient_steps,
    scales,
    reads,
    logs,
    by_queries,
    by_keys,
    by_values,
    by_scales,
    S,
    seen,
    window,
    most_parts,
):
    """The gradients by queries (B, T, H, D), keys and values (B, S, H, D) and by scales (B, H, T), from that by the
    reads, which is a run as the first three are."""
    B, T, H, D = by_queries.shape
    parts = max(1, most_parts // (B * H))
    width, size = D + -D % COLUMNS, S + -S % COLUMNS
    by_pairs = np.empty((2, B * H * parts, width, size), np.float32)  # by values and by keys, turned
    for piece in prange(B * H * parts):
        b, h, part = piece // parts // H, piece // parts % H, piece % parts
        key_rows = _rows(keys, key_steps, b, h, 0, S, D)
        memory = (
            turned(words(key_rows)),
            down(key_rows),
            turned(words(_rows(values, value_steps, b, h, 0, S, D))),
            np.empty((2, ROWS, size), np.float32),
            np.empty((2, ROWS, size), queries.dtype),
            np.empty((ROWS, width), np.float32),
        )
        keys_turned, keys_down, values_turned, products, results, read = uncounted(memory)
        scores, by_weights = products[0], products[1]
        by_values_turned, by_keys_turned = by_pairs[0, piece], by_pairs[1, piece]
        # where all queries see all pairs, the first block of them leaves nothing to clear
        whole = seen >= S and window >= T + S and part * BLOCK < T
        if not whole:
            _clear(by_values_turned)
            _clear(by_keys_turned)
        for block in range(part * BLOCK, T, parts * BLOCK):
            stop = min(block + BLOCK, T)
            begin, end = _span(block, stop, S, seen, window)
            asked_rows = _rows(queries, query_steps, b, h, block, stop - block, D)
            given_rows = _rows(gradient, gradient_steps, b, h, block, stop - block, D)
            block_memory = (
                asked_rows,
                given_rows,
                np.zeros((2, in_words(len(asked_rows), asked_rows), end - begin), words(asked_rows).dtype),
            )
            asked, given, laid = uncounted(block_memory)  # laid: weights and gradients by scores, down
            asked_words, given_words = words(asked), words(given)
            for start in range(block, stop, ROWS):
                first, last = _span(start, min(start + ROWS, stop), S, seen, window)
                eight = slice(start - block, start - block + ROWS)
                multiply(asked_words[eight], keys_turned[:, first:last], scores[:, : last - first])
                multiply(given_words[eight], values_turned[:, first:last], by_weights[:, : last - first])
                weights, by_scores, top, left = to_lay_down(laid, results, start - block, first - begin)
                for row in range(ROWS):
                    t = start + row
                    weight = weights[top + row, left : left + last - first]
                    by_score = by_scores[top + row, left : left + last - first]
                    own, over = _own_span(t, S, seen, window, first) if t < stop else (0, 0)
                    if t < stop:
                        by_scales[b, h, t] = _gradients(
                            scores[row, own:over],
                            by_weights[row, own:over],
                            scales[b, h, t],
                            logs[b, h, t],
                            dot(given[t - block], reads[b, t, h]),
                            weight[own:over],
                            by_score[own:over],
                        )
                    _clear_but(weight, own, over)
                    _clear_but(by_score, own, over)
                for kind in range(2):
                    lay_down(results[kind], laid[kind], start - block, first - begin, last - begin)
                score_words = words(by_scores)[top:, in_words(left, by_scores) :]
                score_words = score_words[:, : in_words(last - first, by_scores)]
                multiply(score_words, keys_down[in_words(first, by_scores) :], read)
                for t in range(start, min(start + ROWS, stop)):
                    for d in range(D):
                        by_queries[b, t, h, d] = stored(read[t - start, d], by_queries)
            if whole and block == part * BLOCK:
                multiply(turned(down(given)), laid[0], by_values_turned)
                multiply(turned(down(asked)), laid[1], by_keys_turned)
            else:
                multiply_add(turned(down(given)), laid[0], by_values_turned[:, begin:end])
                multiply_add(turned(down(asked)), laid[1], by_keys_turned[:, begin:end])
            keep(block_memory)
        keep(memory)
    for head in prange(B * H):
        b, h = head // H, head % H
        _add_up(by_pairs[0, head * parts : (head + 1) * parts], by_values, b, h)
        _add_up(by_pairs[1, head * parts : (head + 1) * parts], by_keys, b, h)


@inner
def _gradients(scores, by_weights, scale, log, mean, weights, by_scores):
    """Fill a query's weights and the gradients by its scores; returns the gradient by its scale.

    That by a scaled score is its weight times the difference of the gradient by the weight from their mean, which is
    the product of the read and the gradient by it. And as these add up to nothing, scores may be counted from
    anywhere in the gradient by the scale: from where they are smallest, so that what was rounded counts for least.
    """
    by_scale = np.float32(0)
    for s in range(len(scores)):
        log_power = scores[s] * scale - log
        power = exp(log_power)
        by_scaled = power * (by_weights[s] - mean)
        weights[s] = stored(power, weights)
        by_scores[s] = stored(by_scaled * scale, by_scores)
        by_scale += by_scaled * log_power
    return by_scale / scale if scale > 0 else np.float32(0)  # all weights are the same then


@inner
def _add_up(parts, totals, b, h):
    """Fill a head of totals (B, S, H, D) with the sum of parts (., D or more, S or more) turned."""
    for part in range(1, len(parts)):
        for row in range(parts.shape[1]):
            sums, more = parts[0, row], parts[part, row]
            for s in range(len(sums)):
                sums[s] += more[s]
    rows = turned_back(parts[0], totals)
    for s in range(totals.shape[1]):
        row, total = rows[s], totals[b, s, h]
        for d in range(len(total)):
            total[d] = row[d]
