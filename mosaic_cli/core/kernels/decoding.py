"""What a single token of each text reads, as Triton kernels for a GPU: the pairs stored so far, and slots.

How many pairs there are lies on the device, so a step of decoding is the same launches for every token and can be
recorded once (`mosaic_cli.decoding`). The work is the reading of pairs and slots. So that enough programs share it,
each reads a share of them, and a second kernel puts the shares together: a softmax over shares, as in FlashAttention.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mosaic_cli.core.kernels.rows import row, tile_width

BLOCK = 64  # pairs read at once
ROWS = tl.constexpr(16)  # the least that the matrix units take
SLOTS = 128  # of a program
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


def attend_slots(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """`ops.slot_read` of one token a text: alpha times softmax attention (B, H, 1, D), in the dtype of values.

    Args:
        queries: (B, H, 1, D).
        keys, values: (H, M, D).
        beta, alpha: (H,) scale of the scores and of the answer.
    """
    return _attend_slots(queries, keys, values, beta.float(), alpha.float())


@triton_op("mosaic::attend_slots", mutates_args=())
def _attend_slots(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    (B, H, _, D), M = queries.shape, keys.shape[1]
    queries, shares, rows = queries.contiguous(), triton.cdiv(M, SLOTS), min(64, max(16, triton.next_power_of_2(B)))
    # many shares are written and read again, so their sums are no wider than the read that is made of them
    reads, sums, weights = _room(queries, values.dtype, shares, values.dtype)
    wrap_triton(_slots_kernel)[(H, shares, triton.cdiv(B, rows))](
        queries, keys, values, beta, sums, weights, B, H, M, D, *keys.stride()[:2], *values.stride()[:2],
        ROWS=rows, WIDTH=tile_width(D), SLOTS=SLOTS, num_warps=4,
    )  # fmt: skip
    wrap_triton(_join_kernel)[(B * H,)](sums, weights, alpha, reads, H, D, shares, True, **_joining(shares, D))
    return reads


@triton_op("mosaic::attend_stored", mutates_args=())
def _attend(queries: Tensor, keys: Tensor, values: Tensor, scales: Tensor, newest: Tensor) -> Tensor:
    B, H, S, D = keys.shape
    queries, shares = queries.contiguous(), min(MOST_SHARES, triton.cdiv(PROGRAMS, B * H), triton.cdiv(S, BLOCK))
    reads, sums, weights = _room(queries, values.dtype, shares, torch.float32)
    wrap_triton(_share_kernel)[(B * H, shares)](
        queries, keys, values, scales, newest, reads, sums, weights, H, S, D, *keys.stride()[:3], *values.stride()[:3],
        ALONE=shares == 1, WIDTH=tile_width(D), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    if shares > 1:
        wrap_triton(_join_kernel)[(B * H,)](sums, weights, scales, reads, H, D, shares, False, **_joining(shares, D))
    return reads


def _room(
    queries: Tensor, dtype: torch.dtype, shares: int, dtype_of_sums: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """For the reads (B, H, 1, D), and for what each share leaves: sums (shares, B * H, D), and in float32 highest
    scores and total weights (2, shares, B * H)."""
    B, H, _, D = queries.shape
    sums = torch.empty(shares, B * H, D, dtype=dtype_of_sums, device=queries.device)
    weights = torch.empty(2, shares, B * H, dtype=torch.float32, device=queries.device)
    return torch.empty(B, H, 1, D, dtype=dtype, device=queries.device), sums, weights


def _joining(shares: int, D: int) -> dict[str, int]:
    return {"SHARES": triton.next_power_of_2(shares), "WIDTH": tile_width(D), "num_warps": 1}


@triton.jit
def _share_kernel(
    queries, keys, values, scales, newest, reads, sums, weights, H, S, D,
    k_batch, k_head, k_pair, v_batch, v_head, v_pair, ALONE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program, share = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = program // H, program % H
    columns, places = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    stored = tl.load(newest).to(tl.int32) + 1
    blocks = tl.cdiv(tl.cdiv(stored, tl.num_programs(1)), BLOCK)  # of each share
    query = tl.load(queries + program * D + columns, mask=columns < D, other=0.0).to(tl.float32) * tl.load(scales + h)
    query = tl.broadcast_to(query[None, :], [ROWS, WIDTH]).to(keys.dtype.element_ty)  # as many as the matrix units take
    highest, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, WIDTH], tl.float32)
    for block in tl.range(share * blocks, (share + 1) * blocks, num_stages=3):
        pair = block * BLOCK + places
        here = (pair < stored)[:, None] & (columns < D)[None, :]
        key = tl.load(keys + b * k_batch + h * k_head + pair[:, None] * k_pair + columns[None, :], mask=here, other=0.0)
        value = tl.load(
            values + b * v_batch + h * v_head + pair[:, None] * v_pair + columns[None, :], mask=here, other=0.0
        )
        scores = tl.dot(query, tl.trans(key), input_precision="tf32x3")  # (ROWS, BLOCK)
        scores = tl.where((pair < stored)[None, :], scores, -1e30)
        above = tl.maximum(highest, tl.max(scores, axis=1))
        weight = tl.where((pair < stored)[None, :], tl.exp(scores - above[:, None]), 0.0)
        shrink = tl.exp(highest - above)
        total = total * shrink + tl.sum(weight, axis=1)
        summed = tl.dot(weight.to(value.dtype), value, summed * shrink[:, None], input_precision="tf32x3")
        highest = above
    read = row(summed, 0, ROWS)
    if ALONE:
        read /= tl.max(total, axis=0)
        tl.store(reads + program * D + columns, read.to(reads.dtype.element_ty), mask=columns < D)
    else:
        place = share * tl.num_programs(0) + program
        tl.store(sums + place * D + columns, read, mask=columns < D)
        tl.store(weights + place, tl.max(highest, axis=0))
        tl.store(weights + tl.num_programs(1) * tl.num_programs(0) + place, tl.max(total, axis=0))


@triton.jit
def _slots_kernel(
    queries, keys, values, beta, sums, weights, B, H, M, D, k_head, k_slot, v_head, v_slot,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    h, share = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    b, columns = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)[None, :]
    texts, slot = b * H + h, share * SLOTS + tl.arange(0, SLOTS)
    asks, there = (b < B)[:, None] & (columns < D), (slot < M)[:, None] & (columns < D)
    key = tl.load(keys + h * k_head + slot[:, None] * k_slot + columns, mask=there, other=0.0)
    value = tl.load(values + h * v_head + slot[:, None] * v_slot + columns, mask=there, other=0.0)
    query = tl.load(queries + texts[:, None] * D + columns, mask=asks, other=0.0).to(tl.float32) * tl.load(beta + h)
    scores = tl.dot(query.to(key.dtype), tl.trans(key), input_precision="tf32x3")  # (ROWS, SLOTS)
    scores = tl.where((slot < M)[None, :], scores, -1e30)
    highest = tl.max(scores, axis=1)
    weight = tl.exp(scores - highest[:, None])
    summed = tl.dot(weight.to(value.dtype), value, input_precision="tf32x3")
    place = share * B * H + texts
    tl.store(sums + place[:, None] * D + columns, summed.to(sums.dtype.element_ty), mask=asks)
    tl.store(weights + place, highest, mask=b < B)
    tl.store(weights + tl.num_programs(1) * B * H + place, tl.sum(weight, axis=1), mask=b < B)


@triton.jit
def _join_kernel(
    sums, weights, factors, reads, H, D, shares,
    HAS_FACTORS: tl.constexpr, SHARES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
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
    ).to(tl.float32)
    read = tl.sum(summed * scale[:, None], axis=0) / tl.sum(total * scale, axis=0)
    if HAS_FACTORS:
        read *= tl.load(factors + program % H)
    tl.store(reads + program * D + columns, read.to(reads.dtype.element_ty), mask=columns < D)
