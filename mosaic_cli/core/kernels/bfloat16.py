"""Attention and cross-entropy in bfloat16 on a CPU, for training: torch's products with compiled loops between.

Products of bfloat16 matrices are the fast ones there, but torch's fused attention gets little of that speed, least of
all in its backward pass. Here it is made of whole products, a block of queries at a time; scores are float32, for a
memory of small bandwidth has large ones. docs/performance.md has the figures.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import inner, loops, prange, run

SCORES = 2**23  # of one block at most: 32 MB; shorter blocks are slower, for all their own steps
BANDED = 128  # queries of a block at most, where each sees other pairs: short blocks meet fewer that are not read
KEPT = 2**25  # bytes of weights, from which on they are not kept but made again in the backward pass
LOG2_E = np.float32(math.log2(math.e))
TAYLOR = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(6))  # of 2^x: 2e-6 for |x| <= 1/2


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention (B, H, T, D) in bfloat16 for queries already scaled (B, H, T, D) and pairs (B, H, S, D)."""
    return _attend(queries, keys, values, seen=keys.shape[2], window=queries.shape[2] + keys.shape[2])


def attend_window(queries: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """The same for the newest T of S positions, each of which sees its own pair and those before it, `window` in all:
    query i the pairs i + S - T - window < j <= i + S - T."""
    T, S = queries.shape[2], keys.shape[2]
    return _attend(queries, keys, values, seen=S - T + 1, window=window)


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats (), float32, of logits (N, V) in bfloat16, which its gradient by them replaces.

    Targets are (N,); one below zero does not count: its loss and its row of the gradient are zero.
    """
    losses = torch.empty(len(logits))
    run(_cross_entropy, _bits(logits), targets, losses)
    return losses.sum()


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
        ctx.blocks, ctx.window = _blocks(queries, keys, seen, window), window
        reads = torch.empty_like(queries, memory_format=torch.contiguous_format)
        wide = queries.float(), keys.float()
        keeps = 2 * len(queries) * queries.shape[1] * keys.shape[1] <= KEPT
        kept = []
        for block in ctx.blocks:
            heads, rows, pairs, _ = block
            weights = _weights(*wide, block, window)
            reads[heads, rows] = weights @ values[heads, pairs]
            if keeps:
                kept.append(weights)
        ctx.save_for_backward(queries, keys, values, *kept)
        return reads

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *kept = ctx.saved_tensors
        by_queries = torch.empty_like(queries)
        by_keys, by_values = (torch.zeros_like(pairs, dtype=torch.float32) for pairs in (keys, values))
        wide = () if kept else (queries.float(), keys.float())
        for number, block in enumerate(ctx.blocks):
            heads, rows, pairs, _ = block
            weights = kept[number] if kept else _weights(*wide, block, ctx.window)
            by_reads = gradient[heads, rows]
            by_values[heads, pairs] += weights.mT @ by_reads
            by_scores = by_reads @ values[heads, pairs].mT
            run(_softmax_backward, _bits(weights), _bits(by_scores))
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
    run(_softmax, scores, _bits(weights), block.seen, window)
    return weights


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.uint16)  # NumPy has no bfloat16


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
        bits = score.view(np.int32)
        highest = np.int32(-0x80000000)
        for s in range(len(bits)):
            highest = max(highest, np.int32(bits[s] ^ (np.int32(bits[s] >> np.int32(31)) & turned)))
        greatest = np.int32(highest ^ (np.int32(highest >> np.int32(31)) & turned)).view(np.float32)
        total = zero
        for s in range(len(score)):
            power = _exp(score[s] - greatest)
            score[s] = power
            total += power
        inverse = one / total
        for s in range(len(score)):
            weight[s] = _narrow(score[s] * inverse)
        weights[g, t, :first] = 0
        weights[g, t, last:] = 0


@loops
def _softmax_backward(weights, by_weights):
    """From the gradient by the weights (G, T, S), in its place that by the scores; all are bits of bfloat16."""
    G, T, S = weights.shape
    for row in prange(G * T):
        weight, gradient = weights[row // T, row % T], by_weights[row // T, row % T]
        along = np.float32(0)
        for s in range(S):
            along += _widen(weight[s]) * _widen(gradient[s])
        for s in range(S):
            gradient[s] = _narrow(_widen(weight[s]) * (_widen(gradient[s]) - along))


@loops
def _cross_entropy(logits, targets, losses):
    """Logits (N, V) are the bits of bfloat16. The maximum is taken as in `_softmax`."""
    N, V = logits.shape
    turned, zero, one = np.int16(0x7FFF), np.float32(0), np.float32(1)
    for n in prange(N):
        row, target = logits[n], targets[n]
        if target < 0:
            losses[n] = zero
            row[:] = 0
            continue
        bits = row.view(np.int16)
        highest = np.int16(-0x8000)
        for v in range(V):
            highest = max(highest, np.int16(bits[v] ^ (np.int16(bits[v] >> np.int16(15)) & turned)))
        greatest = _widen(np.int16(highest ^ (np.int16(highest >> np.int16(15)) & turned)).view(np.uint16))
        own, total = _widen(row[target]) - greatest, zero
        for v in range(V):
            total += _exp(_widen(row[v]) - greatest)
        inverse = one / total
        for v in range(V):
            row[v] = _narrow(_exp(_widen(row[v]) - greatest) * inverse)
        row[target] = _narrow(_exp(own) * inverse - one)
        losses[n] = np.log(total) - own


@inner
def _exp(x):
    """e^x for x <= 0 to a few millionths, never less than 2^-126; what is not a number stays so."""
    x *= LOG2_E
    x = np.float32(-126) if x < np.float32(-126) else x
    whole = np.floor(x + np.float32(0.5))
    x -= whole
    power = TAYLOR[5]
    power = power * x + TAYLOR[4]
    power = power * x + TAYLOR[3]
    power = power * x + TAYLOR[2]
    power = power * x + TAYLOR[1]
    power = power * x + TAYLOR[0]
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@inner
def _narrow(x):
    """The bits of the bfloat16 nearest to a float32, of two the even one."""
    bits = np.float32(x).view(np.uint32)
    last = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + last) >> np.uint32(16))


@inner
def _widen(bits):
    """The float32 that the bits of a bfloat16 are."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
