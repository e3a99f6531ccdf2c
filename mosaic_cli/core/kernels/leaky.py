"""The leaky average and the keys made of it as Triton kernels: constant decay (v1) and gated (v2, arXiv 2507.03285).

Both are one recurrence, a_T = g_T x_T + lambda_T a_{T-1} with scalars per head; v1 has g = 1 and the same lambda for
all tokens. Shapes are those of `ops`: x (B, T, H, D), keys (B, H, T, D), gates (B, T, H).

**Form.** The work is one multiply-add for every number moved, so the bound is memory traffic, and the form is the one
that moves least: one program per sequence and head walks over the tokens in tiles, with the average carried in
registers. Everything is read once and written once, forward and backward. A scan in two passes over segments of T would
have more programs, but would read x twice (six bytes a number become eight in bfloat16, ten become eighteen in the
backward pass). So the kernels want B * H of at least a few programs per multiprocessor, which training has.

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

TILE = 32  # tokens averaged by one matrix; at least 16 for the matrix units
NUM_WARPS = 4
NUM_STAGES = 2  # tiles under way from memory
NEVER = tl.constexpr(-1e30)  # log of a weight that is zero; finite, so that differences of two are


def leaky_average(x: Tensor, rate: Tensor, state: Tensor | None = None) -> Tensor:
    """`core.leaky.leaky_average`, forwards in time: (B, H, T, D) in float32, with gradients by x, rate and state."""
    return _LeakyAverage.apply(x, rate, state)


def leaky_keys_forward(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (B, H, T, D) in float32 of x (B, T, H, D), and log |a| (B, H, T, 1) for the backward pass."""
    keys, log_length, _, _ = _forward(x, rate, None, None, normalise=True)
    return keys.transpose(1, 2), log_length.transpose(1, 2)[..., None]


def leaky_keys_backward(
    gradient: Tensor, keys: Tensor, log_length: Tensor, rate: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients by x (B, T, H, D), in x's dtype, and by rate (H,), from that by the keys."""
    by_x, _, by_decay, _ = _backward(
        gradient.transpose(1, 2),
        keys.transpose(1, 2),
        log_length[..., 0].transpose(1, 2),
        rate,
        None,
        None,
        dtype=dtype,
    )
    return by_x, -by_decay.sum(dim=0)


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


class _LeakyAverage(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rate: Tensor, state: Tensor | None) -> Tensor:
        averages, _, _, _ = _forward(x, rate, None, state, normalise=False)
        ctx.save_for_backward(averages, rate, state)
        ctx.dtype = x.dtype
        return averages.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        averages, rate, state = ctx.saved_tensors
        by_x, _, by_decay, by_state = _backward(
            gradient.transpose(1, 2), averages, None, rate, None, state, dtype=ctx.dtype
        )
        return by_x, -by_decay.sum(dim=0), None if state is None else by_state


class _GatedKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, log_gate, log_decay, state, state_scale) -> tuple[Tensor, Tensor, Tensor]:
        gates = (log_gate.float().contiguous(), log_decay.float().contiguous())
        keys, log_length, average, log_scale = _forward(x, None, gates, state, state_scale, normalise=True)
        ctx.save_for_backward(x, *gates, keys, log_length, state, state_scale)
        ctx.mark_non_differentiable(average, log_scale)
        ctx.gate_dtypes = log_gate.dtype, log_decay.dtype
        return keys.transpose(1, 2), average, log_scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, log_gate, log_decay, keys, log_length, state, state_scale = ctx.saved_tensors
        by_x, by_gate, by_decay, _ = _backward(
            gradient.transpose(1, 2),
            keys,
            log_length,
            None,
            (x, log_gate, log_decay),
            state,
            state_scale,
            dtype=x.dtype,
        )
        of_gate, of_decay = ctx.gate_dtypes
        return by_x, by_gate.to(of_gate), by_decay.to(of_decay), None, None


def _forward(x, rate, gates, state, state_scale=None, *, normalise: bool) -> tuple[Tensor, ...]:
    """Keys or averages (B, T, H, D), log |a| (B, T, H) of keys, and the last average (B, H, D) with its log scale."""
    B, T, H, D = x.shape
    x = _rows(x)
    log_gate, log_decay = gates or (None, None)
    rows = torch.empty(B, T, H, D, device=x.device)
    log_length = torch.empty(B, T, H, device=x.device) if normalise else None
    last, last_scale = torch.empty(B, H, D, device=x.device), torch.empty(B, H, device=x.device)
    _forward_kernel[(B * H,)](
        x,
        None if rate is None else rate.float().contiguous(),
        log_gate,
        log_decay,
        None if state is None else state.float().contiguous(),
        None if state_scale is None else state_scale.float().contiguous(),
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


def _backward(
    gradient, rows, log_length, rate, gated, state, state_scale=None, *, dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """Gradients by x (B, T, H, D), log gates, log decays (B, T, H) or their sum over tokens (B, H), and the state."""
    B, T, H, D = rows.shape
    gradient = _rows(gradient)
    x, log_gate, log_decay = gated or (None, None, None)
    x = None if x is None else _rows(x)
    by_x = torch.empty(B, T, H, D, dtype=dtype, device=rows.device)
    by_gate = None if gated is None else torch.empty(B, T, H, device=rows.device)
    by_decay = torch.empty((B, H) if gated is None else (B, T, H), device=rows.device)
    by_state = torch.empty(B, H, D, device=rows.device)
    _backward_kernel[(B * H,)](
        gradient,
        rows,
        log_length,
        None if rate is None else rate.float().contiguous(),
        x,
        log_gate,
        log_decay,
        None if state is None else state.float().contiguous(),
        None if state_scale is None else state_scale.float().contiguous(),
        by_x,
        by_gate,
        by_decay,
        by_state,
        T,
        H,
        D,
        *gradient.stride()[:3],
        *((0, 0, 0) if x is None else x.stride()[:3]),
        **_launch(D),
    )
    return by_x, by_gate, by_decay, by_state


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(D: int) -> dict[str, int]:
    return {
        "TILE": TILE,
        "WIDTH": max(16, triton.next_power_of_2(D)),
        "STAGES": NUM_STAGES,
        "num_warps": NUM_WARPS,
    }


@triton.jit
def _decays(rate, log_decay, offsets, valid):
    """log lambda of a tile's tokens (TILE,); zero behind the text, where nothing decays."""
    return tl.where(valid, -rate, 0.0) if log_decay is None else tl.load(log_decay + offsets, mask=valid, other=0.0)


@triton.jit
def _row(tile, index, TILE: tl.constexpr):
    """Row `index` of a tile (TILE, WIDTH)."""
    return tl.sum(tl.where((tl.arange(0, TILE) == index)[:, None], tile, 0.0), axis=0)


@triton.jit
def _entry(column, index, TILE: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, TILE) == index, column, 0.0), axis=0)


@triton.jit
def _forward_kernel(
    x,
    rate,
    log_gate,
    log_decay,
    state,
    state_scale,
    rows,
    log_length,
    last,
    last_scale,
    T,
    H,
    D,
    x_batch,
    x_token,
    x_head,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    places, columns = tl.arange(0, TILE), tl.arange(0, WIDTH)
    inside = columns < D
    past = places[:, None] >= places[None, :]
    rate_h = 0.0 if rate is None else tl.load(rate + h)
    average, scale = tl.zeros([WIDTH], tl.float32), NEVER
    if state is not None:
        average = tl.load(state + program * D + columns, mask=inside, other=0.0)
        scale = 0.0 if state_scale is None else tl.load(state_scale + program)
    for tile in tl.range(0, tl.cdiv(T, TILE), num_stages=STAGES):
        t = tile * TILE + places
        valid = t < T
        offsets = (b * T + t) * H + h
        here = valid[:, None] & inside[None, :]
        new = tl.load(x + b * x_batch + h * x_head + t[:, None] * x_token + columns[None, :], mask=here, other=0.0)
        gate = tl.where(valid, 0.0, NEVER)
        if log_gate is not None:
            gate = tl.load(log_gate + offsets, mask=valid, other=NEVER)
        decay = tl.cumsum(_decays(rate_h, log_decay, offsets, valid), axis=0)
        exponents = tl.where(past, decay[:, None] - decay[None, :] + gate[None, :], NEVER)
        largest = tl.maximum(tl.max(exponents, axis=1), decay + scale)
        weights = tl.exp(exponents - largest[:, None])
        averages = tl.dot(weights, new.to(tl.float32), input_precision="tf32x3")
        averages += tl.exp(decay + scale - largest)[:, None] * average[None, :]
        if log_length is None:
            averages *= tl.exp(largest)[:, None]
            largest = tl.zeros_like(largest)
            tl.store(rows + offsets[:, None] * D + columns[None, :], averages, mask=here)
        else:
            length = tl.maximum(tl.sqrt(tl.sum(averages * averages, axis=1)), 1e-12)
            tl.store(rows + offsets[:, None] * D + columns[None, :], averages / length[:, None], mask=here)
            tl.store(log_length + offsets, largest + tl.log(length), mask=valid)
        average, scale = _row(averages, TILE - 1, TILE), _entry(largest, TILE - 1, TILE)
    tl.store(last + program * D + columns, average, mask=inside)
    tl.store(last_scale + program, scale)


@triton.jit
def _backward_kernel(
    gradient,
    rows,
    log_length,
    rate,
    x,
    log_gate,
    log_decay,
    state,
    state_scale,
    by_x,
    by_gate,
    by_decay,
    by_state,
    T,
    H,
    D,
    gradient_batch,
    gradient_token,
    gradient_head,
    x_batch,
    x_token,
    x_head,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    places, columns = tl.arange(0, TILE), tl.arange(0, WIDTH)
    inside = columns < D
    future = places[:, None] <= places[None, :]
    rate_h = 0.0 if rate is None else tl.load(rate + h)
    carried, scale, by_rate = tl.zeros([WIDTH], tl.float32), NEVER, 0.0
    tiles = tl.cdiv(T, TILE)
    for back in tl.range(0, tiles, num_stages=STAGES):
        t = (tiles - 1 - back) * TILE + places
        valid = t < T
        offsets = (b * T + t) * H + h
        here = valid[:, None] & inside[None, :]
        places_of_rows = offsets[:, None] * D + columns[None, :]
        by_row = tl.load(
            gradient + b * gradient_batch + h * gradient_head + t[:, None] * gradient_token + columns[None, :],
            mask=here,
            other=0.0,
        ).to(tl.float32)
        before = tl.load(rows + places_of_rows - H * D, mask=here & (t > 0)[:, None], other=0.0)  # a or k of t - 1
        shrink = tl.where(valid, 0.0, NEVER)  # -log |a|, what the length does to the gradient
        stretch = tl.zeros([TILE], tl.float32)  # log |a| of t - 1
        if log_length is not None:
            row = tl.load(rows + places_of_rows, mask=here, other=0.0)
            by_row -= row * tl.sum(by_row * row, axis=1)[:, None]
            shrink = -tl.load(log_length + offsets, mask=valid, other=-NEVER)
            stretch = tl.load(log_length + offsets - H, mask=valid & (t > 0), other=0.0)
        if state is not None:
            first = tl.load(state + program * D + columns, mask=inside, other=0.0)
            before += tl.where((t == 0)[:, None], first[None, :], 0.0)
            if state_scale is not None:
                stretch += tl.where(t == 0, tl.load(state_scale + program), 0.0)
        own = _decays(rate_h, log_decay, offsets, valid)
        decay = tl.cumsum(own, axis=0)
        exponents = tl.where(future, decay[None, :] - decay[:, None] + shrink[None, :], NEVER)
        rest = tl.sum(own, axis=0) - decay + scale
        largest = tl.maximum(tl.max(exponents, axis=1), rest)
        by_average = tl.dot(tl.exp(exponents - largest[:, None]), by_row, input_precision="tf32x3")
        by_average += tl.exp(rest - largest)[:, None] * carried[None, :]  # times exp(largest): that by a_t
        dots = tl.exp(own + stretch + largest) * tl.sum(by_average * before, axis=1)
        gate = tl.zeros([TILE], tl.float32)
        if log_gate is not None:
            gate = tl.load(log_gate + offsets, mask=valid, other=0.0)
        by_new = by_average * tl.exp(gate + largest)[:, None]
        tl.store(by_x + places_of_rows, by_new.to(by_x.dtype.element_ty), mask=here)
        if log_gate is None:
            by_rate += tl.sum(tl.where(valid, dots, 0.0), axis=0)
        else:
            new = tl.load(x + b * x_batch + h * x_head + t[:, None] * x_token + columns[None, :], mask=here, other=0.0)
            tl.store(by_gate + offsets, tl.sum(by_new * new.to(tl.float32), axis=1), mask=valid)
            tl.store(by_decay + offsets, dots, mask=valid)
        carried = _row(by_average, 0, TILE)
        scale = _entry(largest + own, 0, TILE)
    if log_gate is None:
        tl.store(by_decay + program, by_rate)
    tl.store(by_state + program * D + columns, carried * tl.exp(scale), mask=inside)
