"""v1's leaky average, and the keys made of it, as Triton kernels for a GPU.

Shapes as in `ops`: x (B, T, H, D). Rows (B, T, H, D) are keys or averages as they lie in memory; lengths (B, T, H).

**Form.** The work is a multiply-add or two for every number moved, so the bound is memory traffic, and what is needed
is many programs with little to wait for. A text is cut into segments of SEGMENT tokens, and each program has one of
them, of one head. Its state before the first token is made of the ends of the segments before: the averages that each
makes by itself, which a first kernel writes. So x is read twice, the second time mostly from the GPU's cache. Inside a
segment, TILE tokens at a time are one product with a TILE x TILE matrix of decays, the same for all tiles. The gradient
is the same recurrence run from the last token to the first.

docs/equations.md has the derivation; `core.leaky` says the same in PyTorch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mosaic_cli.core.kernels.rows import in_rows, row, tile_width

SEGMENT = 64  # tokens of a program: with one warp, as measured fastest forward and back on an H200 (docs/log.md)
TILE = 16  # tokens averaged by one matrix; the least that the matrix units take
NUM_WARPS = 1
ENDS = tl.constexpr(16)  # of segments, put together at once


def leaky_keys(x: Tensor, rate: Tensor) -> Tensor:
    """`core.leaky.leaky_keys`: keys (B, H, T, D) in the dtype of x, with gradients by x and rate (H,)."""
    return _leaky_rows(x, rate, None, True, x.dtype)[0].transpose(1, 2)


def leaky_average(x: Tensor, rate: Tensor, state: Tensor | None = None) -> Tensor:
    """`core.leaky.leaky_average`, forwards in time: (B, H, T, D) in float32, with gradients by x, rate and state."""
    return _leaky_rows(x, rate, state, False, torch.float32)[0].transpose(1, 2)


@triton_op("mosaic::leaky_rows", mutates_args=())
def _leaky_rows(
    x: Tensor, rate: Tensor, state: Tensor | None, normalise: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Keys or averages (B, T, H, D) of this dtype, and the lengths (B, T, H) that keys were divided by."""
    B, T, H, D = x.shape
    x, rate, n = in_rows(x), rate.float().contiguous(), triton.cdiv(T, SEGMENT)
    rows = torch.empty(B, T, H, D, dtype=dtype, device=x.device)
    lengths = torch.empty(B, T, H, dtype=torch.float32, device=x.device)
    ends = torch.empty(B, n, H, D, dtype=torch.float32, device=x.device)
    if n > 1:
        wrap_triton(_keys_ends_kernel)[(B * H, n - 1)](x, rate, ends, T, n, H, D, *x.stride()[:3], **_launch(D))
    first = ends if state is None else state.float().contiguous()
    wrap_triton(_keys_forward_kernel)[(B * H, n)](
        x, rate, first, ends, rows, lengths, T, n, H, D, *x.stride()[:3], state is not None, normalise, **_launch(D)
    )
    return rows, lengths


@triton_op("mosaic::leaky_rows_backward", mutates_args=())
def _leaky_rows_backward(
    gradient: Tensor, rows: Tensor, lengths: Tensor, rate: Tensor, normalise: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients by x (B, T, H, D), of this dtype, and by rate (H,), from that by the rows; a state's part left out."""
    B, T, H, D = rows.shape
    gradient, rate, n = in_rows(gradient), rate.float().contiguous(), triton.cdiv(T, SEGMENT)
    by_x = torch.empty(B, T, H, D, dtype=dtype, device=rows.device)
    by_rate = torch.empty(B, n, H, dtype=torch.float32, device=rows.device)
    begins = torch.empty(B, n, H, D, dtype=torch.float32, device=rows.device)
    if n > 1:
        wrap_triton(_keys_begins_kernel)[(B * H, n - 1)](
            gradient, rows, lengths, rate, begins, T, n, H, D, *gradient.stride()[:3], normalise, **_launch(D)
        )
    wrap_triton(_keys_backward_kernel)[(B * H, n)](
        gradient, rows, lengths, rate, begins, by_x, by_rate, T, n, H, D, *gradient.stride()[:3], normalise,
        **_launch(D),
    )  # fmt: skip
    return by_x, by_rate.sum(dim=(0, 1))


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, rate, state, ctx.normalise, _ = inputs
    rows, lengths = output
    ctx.mark_non_differentiable(lengths)
    ctx.save_for_backward(rows, lengths, rate, state)
    ctx.dtype = x.dtype


def _differentiate(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    rows, lengths, rate, state = ctx.saved_tensors
    by_x, by_rate = _leaky_rows_backward(gradient, rows, lengths, rate, ctx.normalise, ctx.dtype)
    by_state = None
    if state is not None:
        by_state = by_x[:, 0].float() * torch.exp(-rate.float())[:, None]
        by_rate = by_rate - (by_state * state).sum(dim=(0, 2))
    return by_x, by_rate.to(rate.dtype), by_state, None, None


_leaky_rows.register_autograd(_differentiate, setup_context=_save)


def _launch(D: int) -> dict[str, int]:
    return {"SEGMENT": SEGMENT, "TILE": TILE, "WIDTH": tile_width(D), "num_warps": NUM_WARPS}


@triton.jit
def _places(T, H, D, first, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Of the tile that begins at token `first`: its tokens (TILE, 1), the columns (1, WIDTH), and which are there."""
    t, columns = first + tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    return t, columns, (t < T) & (columns < D)


@triton.jit
def _decayed(weights, rows, more, like):
    """weights @ rows + more, as exact as numbers `like` these need: where they are halves, one product in TF32, which
    rounds to 11 bits, else three of them."""
    if like.dtype.element_ty == tl.float32:
        return tl.dot(weights, rows, more, input_precision="tf32x3")
    else:
        return tl.dot(weights, rows, more, input_precision="tf32")


@triton.jit
def _folded(ends, decay, b, h, n, H, D, nearest, step, count, WIDTH: tl.constexpr):
    """ends[nearest] + exp(-decay) ends[nearest + step] + exp(-2 decay) ends[nearest + 2 step] .. (WIDTH,): `count`."""
    columns = tl.arange(0, WIDTH)[None, :]
    folded = tl.zeros([WIDTH], tl.float32)
    for first in range(0, count, ENDS):
        i = first + tl.arange(0, ENDS)[:, None]
        place = (b * n + nearest + i * step) * H + h
        end = tl.load(ends + place * D + columns, mask=(i < count) & (columns < D), other=0.0)
        folded += tl.sum(end * tl.exp(-decay * i), axis=0)
    return folded


@triton.jit
def _by_averages(
    gradient, rows, lengths, b, h, first, T, H, D, g_batch, g_token, g_head,
    NORMALISE: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient by a tile's averages as such, float32 (TILE, WIDTH): (g - k (g . k)) / |a| for keys k = a / |a|."""
    t, columns, here = _places(T, H, D, first, TILE, WIDTH)
    by_row = tl.load(gradient + b * g_batch + t * g_token + h * g_head + columns, mask=here, other=0.0).to(tl.float32)
    if NORMALISE:
        places = (b * T + t) * H + h
        key = tl.load(rows + places * D + columns, mask=here, other=0.0).to(tl.float32)
        by_row -= key * tl.sum(by_row * key, axis=1)[:, None]
        by_row /= tl.load(lengths + places, mask=t < T, other=1.0)
    return by_row


@triton.jit
def _keys_ends_kernel(
    x, rate, ends, T, n, H, D, x_batch, x_token, x_head,
    SEGMENT: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The average at the last token of each segment but the last, as if nothing stood before it."""
    program, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = program // H, program % H
    rho = tl.load(rate + h)
    fade = tl.exp(-rho * TILE)
    summed = tl.zeros([TILE, WIDTH], tl.float32)  # of token i, TILE + i, 2 TILE + i ..
    for tile in tl.static_range(SEGMENT // TILE):
        t, columns, here = _places(T, H, D, segment * SEGMENT + tile * TILE, TILE, WIDTH)
        new = tl.load(x + b * x_batch + t * x_token + h * x_head + columns, mask=here, other=0.0)
        summed = summed * fade + new.to(tl.float32)
    weights = tl.exp(-rho * (TILE - 1 - tl.arange(0, TILE)))
    columns = tl.arange(0, WIDTH)
    end = tl.sum(summed * weights[:, None], axis=0)
    tl.store(ends + ((b * n + segment) * H + h) * D + columns, end, mask=columns < D)


@triton.jit
def _keys_forward_kernel(
    x, rate, state, ends, rows, lengths, T, n, H, D, x_batch, x_token, x_head,
    HAS_STATE: tl.constexpr, NORMALISE: tl.constexpr,
    SEGMENT: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = program // H, program % H
    rho = tl.load(rate + h)
    width = tl.arange(0, WIDTH)
    average = _folded(ends, rho * SEGMENT, b, h, n, H, D, segment - 1, -1, segment, WIDTH)
    if HAS_STATE:
        first = tl.load(state + program * D + width, mask=width < D, other=0.0)
        average += first * tl.exp(-rho * SEGMENT * segment)
    place = tl.arange(0, TILE)
    steps = place[:, None] - place[None, :]
    weights = tl.where(steps >= 0, tl.exp(-rho * tl.maximum(steps, 0)), 0.0)
    fades = tl.exp(-rho * (place + 1))[:, None]
    for tile in range(SEGMENT // TILE):
        t, columns, here = _places(T, H, D, segment * SEGMENT + tile * TILE, TILE, WIDTH)
        new = tl.load(x + b * x_batch + t * x_token + h * x_head + columns, mask=here, other=0.0)
        averages = _decayed(weights, new.to(tl.float32), fades * average[None, :], x)
        average = row(averages, TILE - 1, TILE)
        places = (b * T + t) * H + h
        if NORMALISE:
            length = tl.maximum(tl.sqrt(tl.sum(averages * averages, axis=1)), 1e-12)[:, None]
            tl.store(lengths + places, length, mask=t < T)
            averages /= length
        tl.store(rows + places * D + columns, averages.to(rows.dtype.element_ty), mask=here)


@triton.jit
def _keys_begins_kernel(
    gradient, rows, lengths, rate, begins, T, n, H, D, g_batch, g_token, g_head,
    NORMALISE: tl.constexpr, SEGMENT: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient by the first token of each segment but the first, as if nothing came after the segment."""
    program, segment = tl.program_id(0).to(tl.int64), tl.program_id(1) + 1
    b, h = program // H, program % H
    rho = tl.load(rate + h)
    fade = tl.exp(-rho * TILE)
    summed = tl.zeros([TILE, WIDTH], tl.float32)
    for back in tl.static_range(SEGMENT // TILE):
        first = (segment + 1) * SEGMENT - (back + 1) * TILE
        summed = summed * fade + _by_averages(
            gradient, rows, lengths, b, h, first, T, H, D, g_batch, g_token, g_head, NORMALISE, TILE, WIDTH
        )
    weights = tl.exp(-rho * tl.arange(0, TILE))
    columns = tl.arange(0, WIDTH)
    begin = tl.sum(summed * weights[:, None], axis=0)
    tl.store(begins + ((b * n + segment) * H + h) * D + columns, begin, mask=columns < D)


@triton.jit
def _keys_backward_kernel(
    gradient, rows, lengths, rate, begins, by_x, by_rate, T, n, H, D, g_batch, g_token, g_head,
    NORMALISE: tl.constexpr, SEGMENT: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = program // H, program % H
    rho = tl.load(rate + h)
    # the gradient by the first token after those at hand
    later = _folded(begins, rho * SEGMENT, b, h, n, H, D, segment + 1, 1, n - 1 - segment, WIDTH)
    place = tl.arange(0, TILE)
    steps = place[None, :] - place[:, None]
    weights = tl.where(steps >= 0, tl.exp(-rho * tl.maximum(steps, 0)), 0.0)
    fades = tl.exp(-rho * (TILE - place))[:, None]
    by_decay = tl.zeros([TILE], tl.float32)
    for back in range(SEGMENT // TILE):
        first = (segment + 1) * SEGMENT - (back + 1) * TILE
        t, columns, here = _places(T, H, D, first, TILE, WIDTH)
        by_averages = _by_averages(
            gradient, rows, lengths, b, h, first, T, H, D, g_batch, g_token, g_head, NORMALISE, TILE, WIDTH
        )
        by_new = _decayed(weights, by_averages, fades * later[None, :], rows)
        later = row(by_new, 0, TILE)
        places = (b * T + t) * H + h
        tl.store(by_x + places * D + columns, by_new.to(by_x.dtype.element_ty), mask=here)
        before = tl.load(rows + (places - H) * D + columns, mask=here & (t > 0), other=0.0).to(tl.float32)
        if NORMALISE:
            before *= tl.load(lengths + places - H, mask=(t > 0) & (t < T), other=0.0)
        by_decay += tl.sum(by_new * before, axis=1)  # of the decay from token t - 1 to t
    tl.store(by_rate + (b * n + segment) * H + h, -tl.exp(-rho) * tl.sum(by_decay, axis=0))
