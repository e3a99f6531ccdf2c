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

FORWARD = {"TILE": 32, "num_warps": 4}  # tokens of a program
BACKWARD = {"TILE": 4, "STEPS": 4, "num_warps": 1}  # runs of a program, tokens of a run: see docs/log.md


def peeked_values(content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    """Values (B, H, T - 1, D) of c (B, H, T, D), in its dtype, with gradients by all three; T > 1."""
    return _peeked_rows(content.transpose(1, 2), gamma, alpha).transpose(1, 2)


@triton_op("mosaic::peeked_rows", mutates_args=())
def _peeked_rows(content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    B, T, H, D = content.shape
    content = content.contiguous()
    rows = torch.empty(B, T - 1, H, D, dtype=content.dtype, device=content.device)
    wrap_triton(_values_forward_kernel)[(B * H, triton.cdiv(T - 1, FORWARD["TILE"]))](
        content, gamma.float(), alpha.float(), rows, T, H, D, WIDTH=tile_width(D), **FORWARD
    )
    return rows


@triton_op("mosaic::peeked_rows_backward", mutates_args=())
def _peeked_rows_backward(
    gradient: Tensor, content: Tensor, gamma: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, D = content.shape
    gradient, content = gradient.contiguous(), content.contiguous()
    n = triton.cdiv(T, BACKWARD["TILE"] * BACKWARD["STEPS"])
    by_content = torch.empty(B, T, H, D, dtype=content.dtype, device=content.device)
    sums = torch.empty(2, B, H, n, dtype=torch.float32, device=content.device)  # by gamma and alpha, of each program
    wrap_triton(_values_backward_kernel)[(B * H, n)](
        gradient, content, gamma.float(), alpha.float(), by_content, sums[0], sums[1], T, H, D,
        WIDTH=tile_width(D), **BACKWARD,
    )  # fmt: skip
    by_gamma, by_alpha = sums.sum(dim=(1, 3)).unbind()
    return by_content, by_gamma.clone(), by_alpha.clone()


def _save(ctx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    content, gamma, alpha = ctx.saved_tensors
    by_content, by_gamma, by_alpha = _peeked_rows_backward(gradient, content, gamma, alpha)
    return by_content, by_gamma.to(gamma.dtype), by_alpha.to(alpha.dtype)


_peeked_rows.register_autograd(_differentiate, setup_context=_save)


@triton.jit
def _load(rows, t, T, H, D, WIDTH: tl.constexpr):
    """Rows t (n, 1) of (T, H, D) in float32, zero where there are none."""
    columns = tl.arange(0, WIDTH)[None, :]
    here = (t >= 0) & (t < T) & (columns < D)
    return tl.load(rows + t * (H * D) + columns, mask=here, other=0.0).to(tl.float32)


@triton.jit
def _values_forward_kernel(content, gamma, alpha, rows, T, H, D, TILE: tl.constexpr, WIDTH: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    b, h = program // H, program % H
    content += (b * T * H + h) * D
    rows += (b * (T - 1) * H + h) * D
    t, columns = tl.program_id(1) * TILE + tl.arange(0, TILE)[:, None], tl.arange(0, WIDTH)[None, :]
    g = tl.load(gamma + h)
    mixed = g * _load(content, t, T, H, D, WIDTH) + (1 - g) * _load(content, t + 1, T, H, D, WIDTH)
    length = tl.maximum(tl.sqrt(tl.sum(mixed * mixed, axis=1)), 1e-12)[:, None]
    value = mixed * (tl.load(alpha + h) / length)
    tl.store(rows + t * (H * D) + columns, value.to(rows.dtype.element_ty), mask=(t < T - 1) & (columns < D))


@triton.jit
def _by_mixed(now, ahead, by_value, g, a):
    """Of values (n, WIDTH): gradients by m_t, and those by alpha (n, 1), which are g . u; zero where there are none."""
    mixed = g * now + (1 - g) * ahead
    inverse = (1 / tl.maximum(tl.sqrt(tl.sum(mixed * mixed, axis=1)), 1e-12))[:, None]
    along = tl.sum(by_value * mixed, axis=1)[:, None] * inverse
    return (by_value - mixed * (along * inverse)) * (a * inverse), along


@triton.jit
def _values_backward_kernel(
    gradient, content, gamma, alpha, by_content, by_gamma, by_alpha, T, H, D,
    TILE: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each row of a tile goes through a run of STEPS tokens, so that what one does to the next stays in its place."""
    program, tile, n = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    b, h = program // H, program % H
    gradient += (b * (T - 1) * H + h) * D
    content += (b * T * H + h) * D
    by_content += (b * T * H + h) * D
    columns = tl.arange(0, WIDTH)[None, :]
    g, a = tl.load(gamma + h), tl.load(alpha + h)
    first = (tile * TILE + tl.arange(0, TILE)[:, None]) * STEPS
    now, last = _load(content, first, T, H, D, WIDTH), _load(content, first - 1, T, H, D, WIDTH)
    before, _ = _by_mixed(last, now, _load(gradient, first - 1, T - 1, H, D, WIDTH), g, a)
    to_gamma, to_alpha = tl.zeros([TILE, WIDTH], tl.float32), tl.zeros([TILE, 1], tl.float32)
    for step in tl.static_range(STEPS):
        t = first + step
        ahead = _load(content, t + 1, T, H, D, WIDTH)
        own, along = _by_mixed(now, ahead, _load(gradient, t, T - 1, H, D, WIDTH), g, a)
        to_gamma += own * (now - ahead)
        to_alpha += along
        by_new = g * own + (1 - g) * before
        here = (t < T) & (columns < D)
        tl.store(by_content + t * (H * D) + columns, by_new.to(by_content.dtype.element_ty), mask=here)
        now, before = ahead, own
    tl.store(by_gamma + program * n + tile, tl.sum(to_gamma))
    tl.store(by_alpha + program * n + tile, tl.sum(to_alpha))
