"""Values that peek one step ahead (v1) as Triton kernels for a GPU: every number is read once and written once.

Shapes: content c (B, T, H, D) as it lies in memory, values (B, T - 1, H, D), gamma and alpha (H,).
v_t = alpha u_t, u_t = m_t / |m_t|, m_t = gamma c_t + (1 - gamma) c_{t+1}; `ops.peeked_values` says the same in PyTorch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from mosaic_cli.core.kernels.rows import tile_width

TILE = 32  # tokens of a program
NUM_WARPS = 4


def peeked_values(content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    """Values (B, H, T - 1, D) of c (B, H, T, D), in its dtype, with gradients by all three; T > 1."""
    return _peeked_rows(content.transpose(1, 2), gamma, alpha).transpose(1, 2)


@triton_op("mosaic::peeked_rows", mutates_args=())
def _peeked_rows(content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    B, T, H, D = content.shape
    content = content.contiguous()
    rows = torch.empty(B, T - 1, H, D, dtype=content.dtype, device=content.device)
    wrap_triton(_values_forward_kernel)[(B * H, triton.cdiv(T - 1, TILE))](
        content, gamma.float(), alpha.float(), rows, T, H, D, **_launch(D)
    )
    return rows


@triton_op("mosaic::peeked_rows_backward", mutates_args=())
def _peeked_rows_backward(
    gradient: Tensor, content: Tensor, gamma: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, D = content.shape
    gradient, content, n = gradient.contiguous(), content.contiguous(), triton.cdiv(T, TILE)
    by_content = torch.empty(B, T, H, D, dtype=content.dtype, device=content.device)
    sums = torch.empty(2, B, n, H, dtype=torch.float32, device=content.device)  # by gamma and alpha, of each program
    wrap_triton(_values_backward_kernel)[(B * H, n)](
        gradient, content, gamma.float(), alpha.float(), by_content, sums[0], sums[1], T, H, D, **_launch(D)
    )
    by_gamma, by_alpha = sums.sum(dim=(1, 2)).unbind()
    return by_content, by_gamma.clone(), by_alpha.clone()


def _save(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    content, gamma, alpha = ctx.saved_tensors
    by_content, by_gamma, by_alpha = _peeked_rows_backward(gradient, content, gamma, alpha)
    return by_content, by_gamma.to(gamma.dtype), by_alpha.to(alpha.dtype)


_peeked_rows.register_autograd(_differentiate, setup_context=_save)


def _launch(D: int) -> dict[str, int]:
    return {"TILE": TILE, "WIDTH": tile_width(D), "num_warps": NUM_WARPS}


@triton.jit
def _load(rows, b, t, h, T, H, D, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Rows t (TILE, 1) of (B, T, H, D) in float32, zero where there are none."""
    columns = tl.arange(0, WIDTH)[None, :]
    return tl.load(rows + ((b * T + t) * H + h) * D + columns, mask=(t >= 0) & (t < T) & (columns < D), other=0.0).to(
        tl.float32
    )


@triton.jit
def _values_forward_kernel(content, gamma, alpha, rows, T, H, D, TILE: tl.constexpr, WIDTH: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    t, columns = tl.program_id(1) * TILE + tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    g = tl.load(gamma + h)
    mixed = g * _load(content, b, t, h, T, H, D, TILE, WIDTH) + (1 - g) * _load(
        content, b, t + 1, h, T, H, D, TILE, WIDTH
    )
    length = tl.maximum(tl.sqrt(tl.sum(mixed * mixed, axis=1)), 1e-12)[:, None]
    tl.store(
        rows + ((b * (T - 1) + t) * H + h) * D + columns,
        (mixed * (tl.load(alpha + h) / length)).to(rows.dtype.element_ty),
        mask=(t < T - 1) & (columns < D),
    )


@triton.jit
def _by_mixed(gradient, content, b, t, h, g, a, T, H, D, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Of values t: gradients by m_t (TILE, WIDTH), and by gamma and alpha (TILE,); zero where there are none."""
    now, ahead = (
        _load(content, b, t, h, T, H, D, TILE, WIDTH),
        _load(content, b, t + 1, h, T, H, D, TILE, WIDTH),
    )
    mixed = g * now + (1 - g) * ahead
    inverse = (1 / tl.maximum(tl.sqrt(tl.sum(mixed * mixed, axis=1)), 1e-12))[:, None]
    unit = mixed * inverse
    by_value = _load(gradient, b, t, h, T - 1, H, D, TILE, WIDTH)
    along = tl.sum(by_value * unit, axis=1)
    by_mixed = (by_value - unit * along[:, None]) * (a * inverse)
    return by_mixed, tl.sum(by_mixed * (now - ahead), axis=1), along


@triton.jit
def _values_backward_kernel(
    gradient, content, gamma, alpha, by_content, by_gamma, by_alpha, T, H, D, TILE: tl.constexpr, WIDTH: tl.constexpr
):
    program, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = program // H, program % H
    t, columns = tile * TILE + tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    g, a = tl.load(gamma + h), tl.load(alpha + h)
    own, to_gamma, to_alpha = _by_mixed(gradient, content, b, t, h, g, a, T, H, D, TILE, WIDTH)
    before, _, _ = _by_mixed(gradient, content, b, t - 1, h, g, a, T, H, D, TILE, WIDTH)
    tl.store(
        by_content + ((b * T + t) * H + h) * D + columns,
        (g * own + (1 - g) * before).to(by_content.dtype.element_ty),
        mask=(t < T) & (columns < D),
    )
    place = (b * tl.num_programs(1) + tile) * H + h
    tl.store(by_gamma + place, tl.sum(to_gamma, axis=0))
    tl.store(by_alpha + place, tl.sum(to_alpha, axis=0))
