"""The functions a Memory Mosaic is made of, vectorised. `reference.py` says the same in loops and is the judge.

Shapes, here and in all of core:
    B batch    T tokens of this call    S stored pairs    C model width    H heads    D head width    M slots
Source of the equations: arXiv 2405.06394 ("v1"); docs/equations.md lists them with the functions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAKY_CHUNK = 64  # tokens averaged by one dense decay matrix: measured fastest of 32, 64 and T on a CPU


def leak_rate(theta: Tensor) -> Tensor:
    """rho = |10 theta| (H,), the decay per token; lambda = exp(-rho)."""
    return (10 * theta).abs()


def inverse_bandwidth(theta: Tensor) -> Tensor:
    """beta = exp(2 min(10 theta, 5)) (H,), at most e^10."""
    return torch.exp(2 * (10 * theta).clamp(max=5))


def value_scale(theta: Tensor) -> Tensor:
    """alpha = exp(10 theta) (H,)."""
    return torch.exp(10 * theta)


def leaky_average(x: Tensor, rate: Tensor, state: Tensor | None = None) -> Tensor:
    """a_T = x_T + exp(-rate_h) a_{T-1}, exactly, in O(T * chunk) and float32 or better (v1, section 4).

    Inside a chunk a dense decay matrix is applied; the averages at the chunks' ends are themselves a leaky average, of
    rate chunk * rate, so the function calls itself for the carry between chunks.

    Args:
        x: (B, T, H, D).
        rate: (H,), not negative.
        state: (B, H, D), a_{-1}; None means zero.

    Returns:
        (B, H, T, D), a view of memory in the order of x; the last one is the state to go on with.
    """
    B, T, H, D = x.shape
    chunk = min(T, LEAKY_CHUNK)
    n = -(-T // chunk)  # chunks
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        rate, x = rate.to(dtype), x.to(dtype)
        if n * chunk > T:
            x = F.pad(x, (0, 0, 0, 0, 0, n * chunk - T))
        steps = torch.arange(chunk, device=x.device, dtype=dtype)
        decay = torch.exp(-rate[:, None, None] * (steps[:, None] - steps).clamp(min=0)).tril()  # (H, chunk, chunk)
        x = x.view(B, n, chunk, H, D).permute(3, 2, 0, 1, 4).reshape(H, chunk, B * n * D)
        average = torch.bmm(decay, x).view(H, chunk, B, n, D)
        if n > 1 or state is not None:
            carry = _carry_into_chunks(average[:, -1], rate * chunk, state)  # (H, B, n, D)
            fade = torch.exp(-rate[:, None] * (steps + 1))  # (H, chunk)
            average = torch.addcmul(average, fade[:, :, None, None, None], carry[:, None])
        return average.permute(2, 3, 1, 0, 4).reshape(B, n * chunk, H, D)[:, :T].transpose(1, 2)


def _carry_into_chunks(ends: Tensor, rate: Tensor, state: Tensor | None) -> Tensor:
    """The average just before each chunk (H, B, n, D), from the sums at the chunks' ends (H, B, n, D)."""
    H, B, n, D = ends.shape
    first = ends.new_zeros(H, B, 1, D) if state is None else state.to(ends.dtype).transpose(0, 1)[:, :, None]
    if n == 1:
        return first
    before = leaky_average(ends[:, :, :-1].permute(1, 2, 0, 3), rate, state)  # (B, H, n - 1, D)
    return torch.cat([first, before.transpose(0, 1)], dim=2)


def normalise(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """scale_h x / |x| over the last dimension, in float32 or better; a zero vector stays zero.

    x is (B, H, T, D), scale (H,) or None for 1.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = x.new_ones(x.shape[1]) if scale is None else scale.to(x.dtype)
    return _ScaledUnit.apply(x, scale)


class _ScaledUnit(torch.autograd.Function):
    """scale_h x / |x| with the gradient written out: half the passes over memory of what autograd records."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        inverse = x.norm(dim=-1, keepdim=True).clamp_(min=1e-12).reciprocal_()  # (B, H, T, 1)
        ctx.save_for_backward(x, inverse, scale)
        return x * (inverse * scale[:, None, None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, inverse, scale = ctx.saved_tensors
        along = (gradient * x).sum(dim=-1, keepdim=True).mul_(inverse)  # the gradient's component along x / |x|
        factor = inverse * scale[:, None, None]
        return (gradient * factor).addcmul_(x, along * inverse * factor, value=-1), along.sum(dim=(0, 2, 3))


def strict_past_read(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, dropout: float = 0.0) -> Tensor:
    """Kernel regression over the strict past (v1, eq. 6-7): the token at position p reads the pairs 0 .. p-1.

    The queries belong to the newest T positions, of which the last is S: query i reads the pairs j <= i + S - T. The
    first position of all has no pair to read and gets zeros. From position 1 on, the strict past is an ordinary causal
    attention, one step shifted, so the fused kernel serves and no T x T mask is made.

    Args:
        queries: (B, H, T, D).
        keys, values: (B, H, S, D) with S >= T - 1.
        beta: (H,) inverse bandwidth.
        dropout: probability of dropping a retrieval weight.

    Returns:
        (B, H, T, D) in the dtype of `values`.
    """
    T, S = queries.shape[2], keys.shape[2]
    queries = (queries * beta[:, None, None]).to(values.dtype)
    keys = keys.to(values.dtype)
    if S == T - 1:
        reads = values[:, :, :0] if S == 0 else _attend(queries[:, :, 1:], keys, values, dropout, is_causal=True)
        return F.pad(reads, (0, 0, 1, 0))
    if T == 1:
        return _attend(queries, keys, values, dropout)
    visible = torch.ones(T, S, dtype=torch.bool, device=keys.device).tril(S - T)
    return _attend(queries, keys, values, dropout, attn_mask=visible)


def slot_read(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor, dropout: float = 0.0) -> Tensor:
    """Kernel regression over learned pairs, all of them at every position (v1, section 5).

    All tokens of the batch are one long sequence of queries, so the slots need no copy per sequence.

    Args:
        queries: (B, H, T, D).
        keys, values: (H, M, D).
        beta: (H,) inverse bandwidth.
        dropout: probability of dropping a retrieval weight.

    Returns:
        (B, H, T, D) in the dtype of `values`.
    """
    B, H, T, D = queries.shape
    queries = (queries * beta[:, None, None]).to(values.dtype)
    flat = queries.transpose(1, 2).reshape(1, B * T, H, D).transpose(1, 2)
    reads = _attend(flat, keys[None].to(values.dtype), values[None], dropout)
    return reads.transpose(1, 2).reshape(B, T, H, D).transpose(1, 2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, dropout: float, **mask: object) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=1.0, **mask)
