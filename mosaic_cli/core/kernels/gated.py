"""v2's gated keys (arXiv 2507.03285) as Triton kernels for a GPU.

One recurrence, a_T = g_T x_T + lambda_T a_{T-1} with scalars per head. Shapes are those of `ops`: x (B, T, H, D), keys
(B, H, T, D), gates (B, T, H).

**Form.** One program per sequence and head walks over the tokens in tiles, with the average carried in registers:
everything is read once and written once, forward and backward. That wants B * H of at least a few programs per
multiprocessor; `leaky`, whose decays do not depend on the token, cuts the text into segments instead.

Inside a tile of n tokens the recurrence is a product with an n x n matrix of decays, which the matrix units do beside
the memory's work; three TF32 products keep float32's precision.

**Scale.** Gates are exponentials, so a is kept as exp(m) times a vector of moderate size: row T of a tile is scaled by
its own largest exponent m_T, as in a softmax. All exponentials are then of numbers <= 0 and one of them is 1, whatever
the gates. Normalised keys do not see m. In the backward pass the lengths |a| play the part of the gates.
docs/equations.md has the derivation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mosaic_cli.core.kernels.rows import in_rows, row, tile_width

TILE = 32  # tokens averaged by one matrix; at least 16 for the matrix units
NUM_WARPS = 4
NUM_STAGES = 2  # tiles under way from memory
NEVER = tl.constexpr(-1e30)  # log of a weight that is zero; finite, so that differences of two are


def gated_keys(
    x: Tensor, log_gate: Tensor, log_decay: Tensor, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Normalised k_bar_T = g_T x_T + lambda_T k_bar_{T-1} (v2, the gated time-variant key), in float32.

    Args:
        x: (B, T, H, D).
        log_gate: log g (B, T, H), of any sign and size.
        log_decay: log lambda (B, T, H), not positive.
        state: k_bar_{-1} as a vector (B, H, D) and the log of its scale (B, H); None means zero. It gets no gradient.

    Returns:
        Keys (B, H, T, D), with gradients by x, log_gate and log_decay; and the state to go on with.
    """
    keys, average, log_scale = _GatedKeys.apply(x, log_gate, log_decay, *(state or (None, None)))
    return keys, (average, log_scale)


class _GatedKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, log_gate, log_decay, state, state_scale) -> tuple[Tensor, Tensor, Tensor]:
        gates = (log_gate.float().contiguous(), log_decay.float().contiguous())
        keys, log_length, average, log_scale = _forward(x, *gates, state, state_scale)
        ctx.save_for_backward(x, *gates, keys, log_length, state, state_scale)
        ctx.mark_non_differentiable(average, log_scale)
        ctx.gate_dtypes = log_gate.dtype, log_decay.dtype
        return keys.transpose(1, 2), average, log_scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, log_gate, log_decay, keys, log_length, state, state_scale = ctx.saved_tensors
        by_x, by_gate, by_decay = _backward(
            gradient.transpose(1, 2), keys, log_length, x, log_gate, log_decay, state, state_scale
        )
        of_gate, of_decay = ctx.gate_dtypes
        return by_x, by_gate.to(of_gate), by_decay.to(of_decay), None, None


def _forward(x, log_gate, log_decay, state, state_scale) -> tuple[Tensor, ...]:
    """Keys (B, T, H, D), log |a| (B, T, H), and the last average (B, H, D) with its log scale (B, H)."""
    B, T, H, D = x.shape
    x = in_rows(x)
    rows, log_length = torch.empty(B, T, H, D, device=x.device), torch.empty(B, T, H, device=x.device)
    last, last_scale = torch.empty(B, H, D, device=x.device), torch.empty(B, H, device=x.device)
    _forward_kernel[(B * H,)](
        x,
        log_gate,
        log_decay,
        None if state is None else state.float().contiguous(),
        None if state is None else state_scale.float().contiguous(),
        rows,
        log_length,
        last,
        last_scale,
        T,
        H,
        D,
        *x.stride()[:3],
        **_launch(D),
    )
    return rows, log_length, last, last_scale


def _backward(gradient, rows, log_length, x, log_gate, log_decay, state, state_scale) -> tuple[Tensor, ...]:
    """Gradients by x (B, T, H, D), in its dtype, and by log gates and log decays (B, T, H)."""
    B, T, H, D = rows.shape
    gradient, x = in_rows(gradient), in_rows(x)
    by_x = torch.empty(B, T, H, D, dtype=x.dtype, device=rows.device)
    by_gate, by_decay = (torch.empty(B, T, H, device=rows.device) for _ in range(2))
    _backward_kernel[(B * H,)](
        gradient,
        rows,
        log_length,
        x,
        log_gate,
        log_decay,
        None if state is None else state.float().contiguous(),
        None if state is None else state_scale.float().contiguous(),
        by_x,
        by_gate,
        by_decay,
        T,
        H,
        D,
        *gradient.stride()[:3],
        *x.stride()[:3],
        **_launch(D),
    )
    return by_x, by_gate, by_decay


def _launch(D: int) -> dict[str, int]:
    return {"TILE": TILE, "WIDTH": tile_width(D), "STAGES": NUM_STAGES, "num_warps": NUM_WARPS}


@triton.jit
def _entry(column, index, TILE: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, TILE) == index, column, 0.0), axis=0)


@triton.jit
def _forward_kernel(
    x, log_gate, log_decay, state, state_scale, rows, log_length, last, last_scale, T, H, D, x_batch, x_token, x_head,
    TILE: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    places, columns = tl.arange(0, TILE), tl.arange(0, WIDTH)
    inside = columns < D
    past = places[:, None] >= places[None, :]
    average, scale = tl.zeros([WIDTH], tl.float32), NEVER
    if state is not None:
        average = tl.load(state + program * D + columns, mask=inside, other=0.0)
        scale = tl.load(state_scale + program)
    for tile in tl.range(0, tl.cdiv(T, TILE), num_stages=STAGES):
        t = tile * TILE + places
        valid, offsets = t < T, (b * T + t) * H + h
        here = valid[:, None] & inside[None, :]
        new = tl.load(x + b * x_batch + h * x_head + t[:, None] * x_token + columns[None, :], mask=here, other=0.0)
        gate = tl.load(log_gate + offsets, mask=valid, other=NEVER)
        decay = tl.cumsum(tl.load(log_decay + offsets, mask=valid, other=0.0), axis=0)
        exponents = tl.where(past, decay[:, None] - decay[None, :] + gate[None, :], NEVER)
        largest = tl.maximum(tl.max(exponents, axis=1), decay + scale)
        weights = tl.exp(exponents - largest[:, None])
        averages = tl.dot(weights, new.to(tl.float32), input_precision="tf32x3")
        averages += tl.exp(decay + scale - largest)[:, None] * average[None, :]
        length = tl.maximum(tl.sqrt(tl.sum(averages * averages, axis=1)), 1e-12)
        tl.store(rows + offsets[:, None] * D + columns[None, :], averages / length[:, None], mask=here)
        tl.store(log_length + offsets, largest + tl.log(length), mask=valid)
        average, scale = row(averages, TILE - 1, TILE), _entry(largest, TILE - 1, TILE)
    tl.store(last + program * D + columns, average, mask=inside)
    tl.store(last_scale + program, scale)


@triton.jit
def _backward_kernel(
    gradient, rows, log_length, x, log_gate, log_decay, state, state_scale, by_x, by_gate, by_decay, T, H, D,
    gradient_batch, gradient_token, gradient_head, x_batch, x_token, x_head,
    TILE: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    places, columns = tl.arange(0, TILE), tl.arange(0, WIDTH)
    inside = columns < D
    future = places[:, None] <= places[None, :]
    carried, scale = tl.zeros([WIDTH], tl.float32), NEVER
    tiles = tl.cdiv(T, TILE)
    for back in tl.range(0, tiles, num_stages=STAGES):
        t = (tiles - 1 - back) * TILE + places
        valid, offsets = t < T, (b * T + t) * H + h
        here = valid[:, None] & inside[None, :]
        places_of_rows = offsets[:, None] * D + columns[None, :]
        by_row = tl.load(
            gradient + b * gradient_batch + h * gradient_head + t[:, None] * gradient_token + columns[None, :],
            mask=here,
            other=0.0,
        ).to(tl.float32)
        before = tl.load(rows + places_of_rows - H * D, mask=here & (t > 0)[:, None], other=0.0)  # a or k of t - 1
        key = tl.load(rows + places_of_rows, mask=here, other=0.0)
        by_row -= key * tl.sum(by_row * key, axis=1)[:, None]
        shrink = -tl.load(log_length + offsets, mask=valid, other=-NEVER)  # what the length does to the gradient
        stretch = tl.load(log_length + offsets - H, mask=valid & (t > 0), other=0.0)  # log |a| of t - 1
        if state is not None:
            first = tl.load(state + program * D + columns, mask=inside, other=0.0)
            before += tl.where((t == 0)[:, None], first[None, :], 0.0)
            stretch += tl.where(t == 0, tl.load(state_scale + program), 0.0)
        own = tl.load(log_decay + offsets, mask=valid, other=0.0)
        decay = tl.cumsum(own, axis=0)
        exponents = tl.where(future, decay[None, :] - decay[:, None] + shrink[None, :], NEVER)
        rest = tl.sum(own, axis=0) - decay + scale
        largest = tl.maximum(tl.max(exponents, axis=1), rest)
        by_average = tl.dot(tl.exp(exponents - largest[:, None]), by_row, input_precision="tf32x3")
        by_average += tl.exp(rest - largest)[:, None] * carried[None, :]  # times exp(largest): that by a_t
        dots = tl.exp(own + stretch + largest) * tl.sum(by_average * before, axis=1)
        by_new = by_average * tl.exp(tl.load(log_gate + offsets, mask=valid, other=0.0) + largest)[:, None]
        tl.store(by_x + places_of_rows, by_new.to(by_x.dtype.element_ty), mask=here)
        new = tl.load(x + b * x_batch + h * x_head + t[:, None] * x_token + columns[None, :], mask=here, other=0.0)
        tl.store(by_gate + offsets, tl.sum(by_new * new.to(tl.float32), axis=1), mask=valid)
        tl.store(by_decay + offsets, dots, mask=valid)
        carried = row(by_average, 0, TILE)
        scale = _entry(largest + own, 0, TILE)
