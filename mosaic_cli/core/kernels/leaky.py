"""v1's leaky average, and the keys made of it, as Triton kernels for a GPU.

Shapes as in `ops`: x (B, T, H, D). Rows (B, T, H, D) are keys or averages as they lie in memory; lengths (B, H, T).

**Form.** The work is a multiply-add or two for every number moved, so the bound is memory traffic: every number is to
be read once. A program goes through a segment of a text, of one head, TILE tokens at a time: their averages are one
product with a TILE x TILE matrix of decays, the same for all tiles, and what earlier tokens have left; a second product
hands that on. A longer text is cut into segments, so that there is work for all of the GPU. What earlier tokens have
left a segment is made of those that still weigh 2^-64 or more: for a head that forgets as fast as they start, the 9 to
89 tokens before it. The gradient is the same recurrence run from the last token to the first.

docs/equations.md has the derivation; `core.leaky` says the same in PyTorch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mosaic_cli.core.kernels.rows import in_rows, tile_width

TILE = 16  # tokens averaged by one matrix; the least that the matrix units take
LEAST_SEGMENT, MOST_SEGMENTS = 512, 16  # the more segments, the more often a head that forgets slowly is read again
FORWARD, BACKWARD = (5, 1), (3, 2)  # tiles on their way, and warps for 64 columns: fastest on an H200 (docs/log.md)


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
    """Keys or averages (B, T, H, D) of this dtype, and the lengths (B, H, T) that keys were divided by."""
    B, T, H, D = x.shape
    x, rate, segment = in_rows(x), rate.float().contiguous(), _segment(T)
    rows = torch.empty(B, T, H, D, dtype=dtype, device=x.device)
    lengths = torch.empty(B, H, T if normalise else 0, dtype=torch.float32, device=x.device)
    first = rate if state is None else state.float().contiguous()  # rate: to have something, it is not read
    wrap_triton(_keys_forward_kernel)[(B * H, triton.cdiv(T, segment))](
        x, rate, first, rows, lengths, T, segment, H, D, *x.stride()[:3], state is not None, normalise,
        **_launch(D, *FORWARD),
    )  # fmt: skip
    return rows, lengths


@triton_op("mosaic::leaky_rows_backward", mutates_args=())
def _leaky_rows_backward(
    gradient: Tensor, rows: Tensor, lengths: Tensor, rate: Tensor, normalise: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients by x (B, T, H, D), of this dtype, and by rate (H,), from that by the rows; a state's part left out."""
    B, T, H, D = rows.shape
    gradient, rate, segment = in_rows(gradient), rate.float().contiguous(), _segment(T)
    n = triton.cdiv(T, segment)
    by_x = torch.empty(B, T, H, D, dtype=dtype, device=rows.device)
    by_rate = torch.empty(B, H, n, dtype=torch.float32, device=rows.device)
    wrap_triton(_keys_backward_kernel)[(B * H, n)](
        gradient, rows, lengths, rate, by_x, by_rate, T, segment, H, D, *gradient.stride()[:3], normalise,
        **_launch(D, *BACKWARD),
    )  # fmt: skip
    return by_x, by_rate.sum(dim=(0, 2))


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


def _segment(T: int) -> int:
    """Tokens of a program."""
    return max(LEAST_SEGMENT, TILE * triton.cdiv(T, TILE * MOST_SEGMENTS))


def _launch(D: int, ahead: int, warps: int) -> dict[str, int]:
    width = tile_width(D)
    return {"AHEAD": ahead, "TILE": TILE, "WIDTH": width, "num_warps": warps * triton.cdiv(width, 64)}


@triton.jit
def _tiles_in_reach(rate, tokens, TILE: tl.constexpr):
    """Tiles of the nearest of so many tokens that hold all those that weigh 2^-64 or more."""
    return tl.minimum(tl.cdiv(tokens, TILE), (44.4 / tl.maximum(rate * TILE, 1e-5)).to(tl.int32) + 1)


@triton.jit
def _decayed(weights, rows, more, like):
    """weights @ rows + more, as exact as numbers `like` these need: where they are halves, one product in TF32, which
    rounds to 11 bits, else three of them."""
    if like.dtype.element_ty == tl.float32:
        return tl.dot(weights, rows, more, input_precision="tf32x3")
    else:
        return tl.dot(weights, rows, more, input_precision="tf32")


@triton.jit
def _average_before(x, rate, begin, D, x_token, AHEAD: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """The average (WIDTH,) at the token before token `begin`, a multiple of TILE."""
    columns = tl.arange(0, WIDTH)[None, :]
    summed = tl.zeros([TILE, WIDTH], tl.float32)  # of token i, TILE + i, 2 TILE + i ..
    tiles = _tiles_in_reach(rate, begin, TILE)
    for tile in tl.range(tiles, num_stages=AHEAD):
        t = begin + (tile - tiles) * TILE + tl.arange(0, TILE)[:, None]
        new = tl.load(x + t * x_token + columns, mask=columns < D, other=0.0)
        summed = summed * tl.exp(-rate * TILE) + new.to(tl.float32)
    return tl.sum(summed * tl.exp(-rate * (TILE - 1 - tl.arange(0, TILE)))[:, None], axis=0)


@triton.jit
def _keys_forward_kernel(
    x, rate, state, rows, lengths, T, segment, H, D, x_batch, x_token, x_head,
    HAS_STATE: tl.constexpr, NORMALISE: tl.constexpr, AHEAD: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    x += b * x_batch + h * x_head
    rows += (b * T * H + h) * D
    lengths += program * T
    rho = tl.load(rate + h)
    begin, width, place = tl.program_id(1) * segment, tl.arange(0, WIDTH), tl.arange(0, TILE)
    before = _average_before(x, rho, begin, D, x_token, AHEAD, TILE, WIDTH)
    if HAS_STATE:
        before += tl.load(state + program * D + width, mask=width < D, other=0.0) * tl.exp(-rho * begin)
    carried = tl.exp(-rho * (place + 1))[:, None] * before[None, :]  # what is left of it at each token of the tile
    steps, columns = place[:, None] - place[None, :], width[None, :]
    weights = tl.where(steps >= 0, tl.exp(-rho * tl.maximum(steps, 0)), 0.0)
    onward = tl.exp(-rho * (steps + TILE))  # from a token of this tile to one of the next
    for tile in tl.range(tl.cdiv(tl.minimum(segment, T - begin), TILE), num_stages=AHEAD):
        t = begin + tile * TILE + place[:, None]
        here = (t < T) & (columns < D)
        new = tl.load(x + t * x_token + columns, mask=here, other=0.0).to(tl.float32)
        averages = _decayed(weights, new, carried, x)
        carried = _decayed(onward, new, carried * tl.exp(-rho * TILE), x)
        if NORMALISE:
            length = tl.maximum(tl.sqrt(tl.sum(averages * averages, axis=1)), 1e-12)[:, None]
            tl.store(lengths + t, length, mask=t < T)
            averages *= 1 / length  # a division of each would take as long as all the rest
        tl.store(rows + t * (H * D) + columns, averages.to(rows.dtype.element_ty), mask=here)


@triton.jit
def _by_averages(gradient, rows, lengths, t, T, H, D, g_token, NORMALISE: tl.constexpr, WIDTH: tl.constexpr):
    """Of tokens t (n, 1) the gradient by their averages a as such, which for keys k = a / |a| is (g - k (g . k)) / |a|,
    and the averages: float32 (n, WIDTH)."""
    columns = tl.arange(0, WIDTH)[None, :]
    here = (t < T) & (columns < D)
    by_row = tl.load(gradient + t * g_token + columns, mask=here, other=0.0).to(tl.float32)
    average = tl.load(rows + t * (H * D) + columns, mask=here, other=0.0).to(tl.float32)
    if NORMALISE:
        length = tl.load(lengths + t, mask=t < T, other=1.0)
        by_row = (by_row - average * tl.sum(by_row * average, axis=1)[:, None]) * (1 / length)
        average *= length
    return by_row, average


@triton.jit
def _gradient_after(
    gradient, rows, lengths, rate, end, T, H, D, g_token,
    NORMALISE: tl.constexpr, AHEAD: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient (WIDTH,) by token `end`, zero where the text has ended."""
    summed = tl.zeros([TILE, WIDTH], tl.float32)
    tiles = _tiles_in_reach(rate, tl.maximum(T - end, 0), TILE)
    for tile in tl.range(tiles, num_stages=AHEAD):
        t = end + (tiles - 1 - tile) * TILE + tl.arange(0, TILE)[:, None]
        by_averages, _ = _by_averages(gradient, rows, lengths, t, T, H, D, g_token, NORMALISE, WIDTH)
        summed = summed * tl.exp(-rate * TILE) + by_averages
    return tl.sum(summed * tl.exp(-rate * tl.arange(0, TILE))[:, None], axis=0)


@triton.jit
def _keys_backward_kernel(
    gradient, rows, lengths, rate, by_x, by_rate, T, segment, H, D, g_batch, g_token, g_head,
    NORMALISE: tl.constexpr, AHEAD: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """With G the gradient by x, that by rate is minus the sum of lambda G_{t+1} . a_t."""
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    gradient += b * g_batch + h * g_head
    rows += (b * T * H + h) * D
    by_x += (b * T * H + h) * D
    lengths += program * T
    rho = tl.load(rate + h)
    begin, place = tl.program_id(1) * segment, tl.arange(0, TILE)
    later = _gradient_after(
        gradient, rows, lengths, rho, begin + segment, T, H, D, g_token, NORMALISE, AHEAD, TILE, WIDTH
    )
    carried = tl.exp(-rho * (TILE - place))[:, None] * later[None, :]  # what of it comes to each token of the tile
    steps, columns = place[None, :] - place[:, None], tl.arange(0, WIDTH)[None, :]
    weights = tl.where(steps > 0, tl.exp(-rho * tl.maximum(steps, 0)), 0.0)
    onward = tl.exp(-rho * (steps + TILE))
    by_decay = tl.zeros([TILE, WIDTH], tl.float32)
    tiles = tl.cdiv(tl.minimum(segment, T - begin), TILE)
    for tile in tl.range(tiles, num_stages=AHEAD):
        t = begin + (tiles - 1 - tile) * TILE + place[:, None]
        by_averages, averages = _by_averages(gradient, rows, lengths, t, T, H, D, g_token, NORMALISE, WIDTH)
        from_later = _decayed(weights, by_averages, carried, rows)  # lambda G_{t+1}
        carried = _decayed(onward, by_averages, carried * tl.exp(-rho * TILE), rows)
        by_decay += from_later * averages
        by_new = by_averages + from_later
        tl.store(by_x + t * (H * D) + columns, by_new.to(by_x.dtype.element_ty), mask=(t < T) & (columns < D))
    tl.store(by_rate + program * tl.num_programs(1) + tl.program_id(1), -tl.sum(by_decay))
