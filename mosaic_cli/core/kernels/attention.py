"""Attention for training in bfloat16 on a CPU: torch's products of whole matrices with a compiled loop between.

Torch's fused attention gets little of the speed that products have in bfloat16, least of all in its backward pass.
Here the weights of a block of heads are made at once, and kept for the backward pass: memory for speed, where they are
not too many. Scores are float32, for a memory of small bandwidth has large ones. docs/performance.md has the figures.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import loops, prange, run
from mosaic_cli.core.kernels.halves import bits, exp, narrow

SCORES = 2**23  # of one block at most: 32 MB; shorter blocks are slower, for all their own steps
BANDED = 128  # queries of a block at most, where each sees other pairs: short blocks meet fewer that are not read
KEPT = 2**26  # bytes of weights, beyond which torch's attention is the better


def pays(queries: Tensor, keys: Tensor, window: int | None = None) -> bool:
    """Whether it is worth its memory for queries (..., T, D) and keys (..., S, D): the weights are not too many."""
    met = keys.shape[-2] if window is None else min(keys.shape[-2], window + BANDED)
    return 0 < 2 * queries[..., 0].numel() * met <= KEPT


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention (B, H, T, D) in bfloat16 for queries already scaled (B, H, T, D) and pairs (B, H, S, D)."""
    return _attend(queries, keys, values, seen=keys.shape[2], window=queries.shape[2] + keys.shape[2])


def attend_window(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """The same for the newest T of S positions, each of which sees its own pair and those before it, `window` in all:
    query i the pairs i + S - T - window < j <= i + S - T."""
    T, S = queries.shape[2], keys.shape[2]
    return _attend(queries, keys, values, seen=S - T + 1, window=window)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, seen: int, window: int) -> Tensor:
    """Query i sees the pairs i + seen - window <= j < i + seen, if they are there."""
    B, H = queries.shape[:2]
    with torch.autocast("cpu", enabled=False):
        flat = (tensor.flatten(0, 1) for tensor in (queries, keys, values))
        return _Attention.apply(*flat, seen, window).unflatten(0, (B, H))


class _Block(NamedTuple):
    """Some queries of some heads, the pairs that any of them sees, and `seen` counted from the first of both."""

    heads: slice
    queries: slice
    pairs: slice
    seen: int


class _Attention(torch.autograd.Function):
    """Of queries (G, T, D), keys and values (G, S, D); G counts all heads of the batch."""

    @staticmethod
    def forward(ctx, queries: Tensor, keys: Tensor, values: Tensor, seen: int, window: int) -> Tensor:
        ctx.blocks = _blocks(queries, keys, seen, window)
        reads = torch.empty_like(queries, memory_format=torch.contiguous_format)
        wide = queries.float(), keys.float()
        kept = []
        for block in ctx.blocks:
            weights = _weights(*wide, block, window)
            reads[block.heads, block.queries] = weights @ values[block.heads, block.pairs]
            kept.append(weights)
        ctx.save_for_backward(queries, keys, values, *kept)
        return reads

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        by_queries = torch.empty_like(queries)
        by_keys, by_values = (torch.zeros_like(pairs, dtype=torch.float32) for pairs in (keys, values))
        for (heads, rows, pairs, _), weights in zip(ctx.blocks, kept, strict=True):
            by_reads = gradient[heads, rows]
            by_values[heads, pairs] += weights.mT @ by_reads
            by_scores = by_reads @ values[heads, pairs].mT  # so far those by the weights
            torch.ops.aten._softmax_backward_data.out(by_scores, weights, -1, weights.dtype, grad_input=by_scores)
            by_queries[heads, rows] = by_scores @ keys[heads, pairs]
            by_keys[heads, pairs] += by_scores.mT @ queries[heads, rows]
        return by_queries, by_keys.to(keys.dtype), by_values.to(values.dtype), None, None


def _blocks(queries: Tensor, keys: Tensor, seen: int, window: int) -> list[_Block]:
    """Blocks of as many heads as `SCORES` allows and all their queries, or of a part of one head's queries; of few
    queries where a block of all would meet many pairs that it does not read."""
    G, T, S = len(queries), queries.shape[1], keys.shape[1]
    length = min(T, BANDED if seen < S or window < S else T, max(1, SCORES // S))
    heads = max(1, SCORES // (length * S))
    blocks = []
    for head in range(0, G, heads):
        for start in range(0, T, length):
            stop = min(start + length, T)
            first, last = max(0, start + seen - window), min(S, stop - 1 + seen)
            whose = slice(head, min(head + heads, G))
            blocks.append(_Block(whose, slice(start, stop), slice(first, last), start + seen - first))
    return blocks


def _weights(queries: Tensor, keys: Tensor, block: _Block, window: int) -> Tensor:
    """A block's weights (G, queries, pairs) in bfloat16, for float32 queries and keys."""
    scores = queries[block.heads, block.queries] @ keys[block.heads, block.pairs].mT
    weights = torch.empty_like(scores, dtype=torch.bfloat16)
    run(_softmax, scores, bits(weights), block.seen, window)
    return weights


@loops
def _softmax(scores, weights, seen, window):
    """Weights (G, T, S), the bits of bfloat16, of scores (G, T, S), which are overwritten. Query t sees the pairs
    t + seen - window <= s < t + seen, at least one.

    Integers compare as the floats of the same bits do, once the lower bits of negative ones are turned: a maximum of
    floats would be taken one by one, for the sake of what is not a number.
    """
    G, T, S = scores.shape
    turned, zero, one = np.int32(0x7FFFFFFF), np.float32(0), np.float32(1)
    for row in prange(G * T):
        g, t = row // T, row % T
        first, last = max(0, t + seen - window), min(S, t + seen)
        score, weight = scores[g, t, first:last], weights[g, t, first:last]
        ordered = score.view(np.int32)
        highest = np.int32(-0x80000000)
        for s in range(len(score)):
            highest = max(highest, np.int32(ordered[s] ^ (np.int32(ordered[s] >> np.int32(31)) & turned)))
        greatest = np.int32(highest ^ (np.int32(highest >> np.int32(31)) & turned)).view(np.float32)
        total = zero
        for s in range(len(score)):
            power = exp(score[s] - greatest)
            score[s] = power
            total += power
        inverse = one / total
        for s in range(len(score)):
            weight[s] = narrow(score[s] * inverse)
        weights[g, t, :first] = 0
        weights[g, t, last:] = 0
