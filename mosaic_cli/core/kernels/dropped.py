"""Attention that drops weights, on a CPU, where no fused kernel does: torch's products with compiled loops between.

It goes through blocks of queries, so that a block's weights stay in the processor's caches, and a causal block does not
meet the pairs behind it.
"""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import inner, loops, prange, run

ATTENDED = 64  # queries whose weights are made at a time: they and their products stay in the processor's caches


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, dropout: float, attn_mask: Tensor | None, is_causal: bool
) -> Tensor:
    """`ops.attend` with weights dropped, for queries already scaled; computed in float32 or better."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        wide = (tensor.to(dtype) for tensor in (queries, keys, values))
        return _DroppedAttention.apply(*wide, dropout, attn_mask, is_causal).to(values.dtype)


class _DroppedAttention(torch.autograd.Function):
    """Saves the weights, those that are dropped with a minus sign."""

    @staticmethod
    def forward(
        ctx, queries: Tensor, keys: Tensor, values: Tensor, dropout: float, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        dropped = round(dropout * 2**32)
        ctx.blocks, ctx.rise = _blocks(queries.shape[2], keys.shape[2], is_causal), 2**32 / (2**32 - dropped)
        seed = int(torch.randint(2**62, ()))
        reads, signed = [], []
        for rows, stop in ctx.blocks:
            scores = queries[:, :, rows] @ keys[:, :, :stop].mT  # (B, H, rows, stop)
            if is_causal:
                scores.masked_fill_(~scores.new_ones(scores.shape[2:], dtype=torch.bool).tril(rows.start), -torch.inf)
            elif attn_mask is not None:
                scores.masked_fill_(~attn_mask[rows], -torch.inf)
            weights = scores.softmax(-1)
            run(_drop, weights.flatten(0, 2), scores.flatten(0, 2), seed + rows.start, dropped, ctx.rise)
            reads.append(scores @ values[:, :, :stop])  # the scores' place has the weights that were kept
            signed.append(weights)
        ctx.save_for_backward(queries, keys, values, *signed)
        return torch.cat(reads, dim=2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, *signed = ctx.saved_tensors
        by_queries, by_keys, by_values = [], torch.zeros_like(keys), torch.zeros_like(values)
        for (rows, stop), weights in zip(ctx.blocks, signed, strict=True):
            by_reads = gradient[:, :, rows]
            by_scores = by_reads @ values[:, :, :stop].mT
            kept = torch.empty_like(weights)
            run(_drop_backward, weights.flatten(0, 2), by_scores.flatten(0, 2), kept.flatten(0, 2), ctx.rise)
            by_queries.append(by_scores @ keys[:, :, :stop])
            by_keys[:, :, :stop] += by_scores.mT @ queries[:, :, rows]
            by_values[:, :, :stop] += kept.mT @ by_reads
        return torch.cat(by_queries, dim=2), by_keys, by_values, None, None, None


def _blocks(T: int, S: int, is_causal: bool) -> list[tuple[slice, int]]:
    """Blocks of queries, and how many pairs each sees at most."""
    starts = range(0, T, ATTENDED)
    return [(slice(start, min(start + ATTENDED, T)), min(start + ATTENDED, T) if is_causal else S) for start in starts]


@loops
def _drop(weights, kept, seed, dropped, rise):
    """Turn the sign of weights (rows, S) with a probability of dropped / 2^32; `kept` has zeros there.

    What is random is a function of seed, row and place: the place is mixed by MurmurHash3's last steps, with two keys
    of the row put in between.
    """
    rows, S = weights.shape
    zero, factor = weights.dtype.type(0), weights.dtype.type(rise)
    for row in prange(rows):
        key = _mixed(np.uint64(seed) + _mixed(np.uint64(row)))
        first, second = np.uint32(key), np.uint32(key >> np.uint64(32))
        for s in range(S):
            bits = np.uint32(np.uint32(s) * np.uint32(0x9E3779B9)) + first
            bits = np.uint32(bits ^ (np.uint32(bits) >> np.uint32(16)))
            bits = np.uint32(np.uint32(bits * np.uint32(0x85EBCA6B)) + second)
            bits = np.uint32(bits ^ (bits >> np.uint32(13)))
            bits = np.uint32(bits * np.uint32(0xC2B2AE35))
            bits = np.uint32(bits ^ (bits >> np.uint32(16)))
            weight, stays = weights[row, s], bits >= np.uint32(dropped)
            weights[row, s] = weight if stays else -weight
            kept[row, s] = factor * weight if stays else zero


@inner
def _mixed(state):
    """SplitMix64's output for a state (Steele, Lea, Flood 2014)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@loops
def _drop_backward(weights, by_kept, kept, rise):
    """From the gradient by the weights that were kept, in its place that by the scores; and those weights again."""
    rows, S = weights.shape
    zero, factor = weights.dtype.type(0), weights.dtype.type(rise)
    for row in prange(rows):
        along = zero
        for s in range(S):
            weight = weights[row, s]
            stays = factor * weight if weight > zero else zero
            kept[row, s] = stays
            along += stays * by_kept[row, s]
        for s in range(S):
            by_kept[row, s] = kept[row, s] * by_kept[row, s] - abs(weights[row, s]) * along
