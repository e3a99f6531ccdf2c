"""Attention of one query to the pairs stored so far, as Triton kernels for a GPU; how many, the device itself knows.

So a step of decoding is the same launches for every token and can be recorded once (`mosaic_cli.decoding`). The work is
the reading of the pairs. Where texts times heads are too few programs for that, each reads a share of a text's pairs,
and a second kernel puts the shares together: softmax over shares, as in FlashAttention.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

BLOCK = 64  # pairs read at once
PROGRAMS = 512  # wanted at least: a few for each multiprocessor of a large GPU
MOST_SHARES = 32


def attend_stored(queries: Tensor, keys: Tensor, values: Tensor, scale: Tensor | float, newest: Tensor) -> Tensor:
    """Softmax attention (B, H, 1, D) in the dtype of values, from float32 sums.

    Args:
        queries: (B, H, 1, D).
        keys, values: (B, H, S, D), buffers with room for S pairs.
        scale: of the scores, a number or (H, 1).
        newest: place of the newest pair (1,), an integer; later places are not read.
    """
    H = queries.shape[1]
    if isinstance(scale, Tensor):
        scales = scale.float().flatten().expand(H).contiguous()
    else:
        scales = torch.full((H,), scale, dtype=torch.float32, device=queries.device)
    return _attend(queries, keys, values, scales, newest)


@triton_op("mosaic::attend_stored", mutates_args=())
def _attend(queries: Tensor, keys: Tensor, values: Tensor, scales: Tensor, newest: Tensor) -> Tensor:
    B, H, S, D = keys.shape
    queries, shares = queries.contiguous(), min(MOST_SHARES, triton.cdiv(PROGRAMS, B * H), triton.cdiv(S, BLOCK))
    width = max(16, triton.next_power_of_2(D))
    reads = torch.empty(B, H, 1, D, dtype=values.dtype, device=values.device)
    sums = torch.empty(shares, B * H, D, dtype=torch.float32, device=values.device)
    weights = torch.empty(
        2, shares, B * H, dtype=torch.float32, device=values.device
    )  # highest score, and total weight
    wrap_triton(_share_kernel)[(B * H, shares)](
        queries, keys, values, scales, newest, sums, weights, H, S, D, *keys.stride()[:3], *values.stride()[:3],
        WIDTH=width, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    wrap_triton(_join_kernel)[(B * H,)](
        sums, weights, reads, D, shares, SHARES=triton.next_power_of_2(shares), WIDTH=width, num_warps=1
    )
    return reads


@triton.jit
def _share_kernel(
    queries, keys, values, scales, newest, sums, weights, H, S, D,
    k_batch, k_head, k_pair, v_batch, v_head, v_pair, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = program // H, program % H
    columns, places = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    stored = tl.load(newest).to(tl.int32) + 1
    blocks = tl.cdiv(tl.cdiv(stored, tl.num_programs(1)), BLOCK)  # of each share
    query = tl.load(queries + program * D + columns, mask=columns < D, other=0.0).to(tl.float32) * tl.load(scales + h)
    highest, total, summed = -1e30, 0.0, tl.zeros([WIDTH], tl.float32)
    for block in tl.range(share * blocks, (share + 1) * blocks, num_stages=3):
        pair = block * BLOCK + places
        here = (pair < stored)[:, None] & (columns < D)[None, :]
        key = tl.load(keys + b * k_batch + h * k_head + pair[:, None] * k_pair + columns[None, :], mask=here, other=0.0)
        value = tl.load(
            values + b * v_batch + h * v_head + pair[:, None] * v_pair + columns[None, :], mask=here, other=0.0
        )
        scores = tl.where(pair < stored, tl.sum(key.to(tl.float32) * query[None, :], axis=1), -1e30)
        above = tl.maximum(highest, tl.max(scores, axis=0))
        weight = tl.where(pair < stored, tl.exp(scores - above), 0.0)
        shrink = tl.exp(highest - above)
        total = total * shrink + tl.sum(weight, axis=0)
        summed = summed * shrink + tl.sum(weight[:, None] * value.to(tl.float32), axis=0)
        highest = above
    place = share * tl.num_programs(0) + program
    tl.store(sums + place * D + columns, summed, mask=columns < D)
    tl.store(weights + place, highest)
    tl.store(weights + tl.num_programs(1) * tl.num_programs(0) + place, total)


@triton.jit
def _join_kernel(sums, weights, reads, D, shares, SHARES: tl.constexpr, WIDTH: tl.constexpr):
    program, texts = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    share, columns = tl.arange(0, SHARES), tl.arange(0, WIDTH)
    here = share < shares
    highest = tl.load(weights + share * texts + program, mask=here, other=-1e30)
    total = tl.load(weights + (shares + share) * texts + program, mask=here, other=0.0)
    scale = tl.exp(highest - tl.max(highest, axis=0))
    summed = tl.load(
        sums + (share[:, None] * texts + program) * D + columns[None, :],
        mask=here[:, None] & (columns < D)[None, :],
        other=0.0,
    )
    read = tl.sum(summed * scale[:, None], axis=0) / tl.sum(total * scale, axis=0)
    tl.store(reads + program * D + columns, read.to(reads.dtype.element_ty), mask=columns < D)
