"""The functions a Memory Mosaic is made of, vectorised. `reference.py` says the same in loops and is the judge.

Shapes, here and in all of core:
    B batch    T tokens of this call    S stored pairs    C model width    H heads    D head width    M slots
Sources: arXiv 2405.06394 ("v1") and 2507.03285 ("v2"); docs/equations.md lists the equations with the functions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_cli.core import kernels, layout

AttendOne = Callable[[Tensor, Tensor | float, int], Tensor]
"""Softmax reads (B, H, 1, D) by one query of each text (B, H, 1, D), with a scale of the scores, (H, 1) or one number,
of so many stored pairs, the oldest: what a cache has where it knows a faster way than `attend`."""


def leak_rate(theta: Tensor) -> Tensor:
    """rho = |10 theta| (H,), the decay per token; lambda = exp(-rho)."""
    return (10 * theta).abs()


def inverse_bandwidth(theta: Tensor) -> Tensor:
    """beta = exp(2 min(10 theta, 5)) (H,), at most e^10."""
    return torch.exp(2 * (10 * theta).clamp(max=5))


def value_scale(theta: Tensor) -> Tensor:
    """alpha = exp(10 theta) (H,)."""
    return torch.exp(10 * theta)


def value_scale_at_least_one(theta: Tensor) -> Tensor:
    """alpha = exp(min(|theta|, 15)) (H,), at least 1 (v2).

    At theta = 0, where it starts, |theta| counts as rising: with autograd's slope of 0 it could never leave its start.
    """
    return torch.exp(torch.where(theta < 0, -theta, theta).clamp(max=15))


def bandwidth_growth(floor: Tensor, growth: Tensor, power: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """beta_0 = exp(min(floor, 10)), beta_1 = exp(min(growth, 10)) and a = min(|power|, 1) (H,) (v2)."""
    return torch.exp(floor.clamp(max=10)), torch.exp(growth.clamp(max=10)), power.abs().clamp(max=1)


def adaptive_bandwidth(beta_0: Tensor, beta_1: Tensor, a: Tensor, pairs: Tensor | int) -> Tensor:
    """beta = beta_1 n^a + beta_0 for memories of n >= 1 pairs, sharper as they fill: (H, T) for n (T,), (H,) for one
    number (v2)."""
    if isinstance(pairs, int):
        return torch.addcmul(beta_0, beta_1, torch.pow(pairs, a))
    return torch.addcmul(beta_0[:, None], beta_1[:, None], pairs.to(a.dtype) ** a[:, None])


def wide(x: Tensor) -> Tensor:
    """x in float32 or better. (torch.promote_types says the same, in the time of two small operations.)"""
    return x if x.dtype.itemsize >= 4 else x.float()


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, D): each head has its share of the width."""
    B, T, _ = x.shape
    return x.view(B, num_heads, 1, -1) if T == 1 else x.view(B, T, num_heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, C): the heads side by side."""
    return x.reshape(len(x), 1, -1) if x.shape[2] == 1 else x.transpose(1, 2).flatten(2)


def normalise(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in float32 or better; a zero vector stays zero."""
    x = wide(x)
    return x / lengths(x)


def lengths(x: Tensor) -> Tensor:
    """|x| over the last dimension (..., 1), but at least 1e-12."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)


def neighbours(x: Tensor, delay: int = 1) -> tuple[Tensor, Tensor]:
    """x_d .. x_{T-1} and x_0 .. x_{T-1-d} of x (B, H, T, D), as views; d is the delay, less than T."""
    return _Neighbours.apply(x, delay) if _records_eagerly() else (x[:, :, delay:], x[:, :, :-delay])


def after_pending(pending: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 .. x_{T-2} and x_1 .. x_{T-1} of x (B, H, T, D), or with what waited before it: pending, x_0 .. and all of x.

    A single token, as in decoding, takes no operation.
    """
    if pending is None:
        return x[:, :, :-1], x[:, :, 1:]
    return (pending if x.shape[2] == 1 else torch.cat([pending, x[:, :, :-1]], dim=2)), x


def newest(x: Tensor) -> Tensor:
    """The last of T (B, H, 1, D)."""
    return x if x.shape[2] == 1 else x[:, :, -1:]


def _records_eagerly() -> bool:
    """Whether a written-out gradient pays: the compiler fuses what autograd records just as well."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Neighbours(torch.autograd.Function):
    """Two overlapping slices whose gradients are added in place: two passes over memory instead of five."""

    @staticmethod
    def forward(ctx, x: Tensor, delay: int) -> tuple[Tensor, Tensor]:
        ctx.delay = delay
        return x[:, :, delay:], x[:, :, :-delay]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, later: Tensor, earlier: Tensor) -> tuple[Tensor, None]:
        B, H, T, D = later.shape
        gradient = later.new_empty(B, T + ctx.delay, H, D).transpose(1, 2)
        gradient[:, :, ctx.delay :] = later
        gradient[:, :, : ctx.delay] = 0
        gradient[:, :, : -ctx.delay] += earlier
        return gradient, None


def peeked_values(content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    """v_t = alpha v_bar_t / |v_bar_t|, v_bar_t = gamma c_t + (1 - gamma) c_{t+1}; in float32 or better (v1).

    Args:
        content: c (B, H, T, D).
        gamma, alpha: (H,).

    Returns:
        (B, H, T - 1, D), in float32 or better; rounded to the dtype of the content on a GPU and where a CPU trains.
    """
    gamma, alpha = wide(gamma), wide(alpha)
    if kernels.serves(content) and content.shape[2] > 1:
        from mosaic_cli.core.kernels import values

        return values.peeked_values(content, gamma, alpha)
    if kernels.loops_serve(content):
        from mosaic_cli.core.kernels import cpu

        return cpu.values(content.transpose(1, 2), gamma, alpha)
    content = wide(content)
    gamma, alpha = gamma.view(-1, 1, 1), alpha.view(-1, 1, 1)
    if _records_eagerly():
        return _PeekedValues.apply(content, gamma, alpha)
    return peeked_value(content[:, :, :-1], content[:, :, 1:], gamma, alpha)


def peeked_value(now: Tensor, ahead: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    """The same for c_t and c_{t+1} (B, H, T, D) each by itself: (B, H, T, D); gamma and alpha (H, 1, 1), wide."""
    mixed = torch.lerp(wide(ahead), wide(now), gamma)
    return mixed * (alpha / lengths(mixed))


class _PeekedValues(torch.autograd.Function):
    """Mixing, normalising and scaling with the gradient written out, in a third of autograd's passes over memory."""

    @staticmethod
    def forward(ctx, content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
        mixed = torch.lerp(content[:, :, 1:], content[:, :, :-1], gamma)
        inverse = lengths(mixed).reciprocal_()
        ctx.save_for_backward(content, mixed, inverse, gamma, alpha)
        return mixed * (inverse * alpha)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        content, mixed, inverse, gamma, alpha = ctx.saved_tensors
        along = (gradient * mixed).sum(dim=-1, keepdim=True).mul_(inverse)
        by_alpha = along.sum(dim=(0, 2, 3)).view_as(alpha)
        factor = inverse * alpha
        by_mixed = (gradient * factor).addcmul_(mixed, along.mul_(inverse).mul_(factor), value=-1)
        by_gamma = (by_mixed * (content[:, :, :-1] - content[:, :, 1:])).sum(dim=(0, 2, 3)).view_as(gamma)
        by_content = torch.empty_like(content)
        torch.mul(by_mixed, gamma, out=by_content[:, :, :-1])
        by_content[:, :, -1] = 0
        by_content[:, :, 1:].addcmul_(by_mixed, 1 - gamma)
        return by_content, by_gamma, by_alpha


def strict_past_read(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Tensor,
    dropout: float = 0.0,
    attend_one: AttendOne | None = None,
    loops: bool = False,
) -> Tensor:
    """Kernel regression over the strict past (v1, contextual memory), for the newest T of S + 1 positions.

    Position p reads the pairs 0 .. p - 1, so query i reads the pairs j <= i + S - T. Position 0 has no pair to read and
    no place here. From position 1 on, the strict past is an ordinary causal attention, one step shifted: the fused
    kernel serves and no T x T mask is made.

    Args:
        queries: (B, H, T, D).
        keys, values: (B, H, S, D) with S >= T.
        beta: (H,) inverse bandwidth, or (H, T) where it depends on the position.
        dropout: probability of dropping a retrieval weight.
        attend_one, loops: see `attend`.

    Returns:
        (B, H, T, D) in the dtype of `values`.
    """
    T, S = queries.shape[2], keys.shape[2]
    scale = beta.view(len(beta), -1)
    if T == 1:
        return attend(queries, keys, values, dropout, scale=scale, attend_one=attend_one)
    if T == S:
        return attend(queries, keys, values, dropout, is_causal=True, scale=scale, loops=loops)
    visible = torch.ones(T, S, dtype=torch.bool, device=keys.device).tril(S - T)
    return attend(queries, keys, values, dropout, attn_mask=visible, scale=scale)


def slot_read(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Tensor,
    alpha: Tensor,
    dropout: float = 0.0,
    loops: bool = False,
) -> Tensor:
    """alpha times the kernel regression over learned pairs, all of them at every position (v1, persistent memory).

    All tokens of the batch are one long sequence of queries, so the slots need no copy per sequence. The scales are
    applied on the slots while training and on the few tokens while decoding: the same products on the smaller side.

    Args:
        queries: (B, H, T, D).
        keys, values: (H, M, D).
        beta, alpha: (H,) inverse bandwidth and scale of the answer.
        dropout: probability of dropping a retrieval weight.
        loops: see `attend`.

    Returns:
        (B, H, T, D) in the dtype of products.
    """
    B, H, T, D = queries.shape
    dtype = kernels.product_dtype(values)
    if T == 1 and not dropout and kernels.serves(values) and not torch.is_grad_enabled():
        from mosaic_cli.core.kernels import decoding

        return decoding.attend_slots(queries, keys.to(dtype), values.to(dtype), beta, alpha)
    plainly = T == 1 and not dropout and queries.device.type == "cpu" and not torch.is_grad_enabled()
    if plainly and loops and kernels.slots_serve(queries, keys, dtype):
        from mosaic_cli.core.kernels import slots

        return slots.read_slots(queries, keys, values, beta, alpha)
    beta, alpha = beta.view(-1, 1, 1), alpha.view(-1, 1, 1)
    if plainly:
        # decoding: two plain products for all texts of the batch take fewer steps than the fused one
        asked = (queries.squeeze(2).transpose(0, 1) * beta).to(dtype)  # (H, B, D)
        reads = torch.bmm(torch.softmax(torch.bmm(asked, keys.mT), dim=-1), values) * alpha
        return reads.to(dtype).transpose(0, 1).unsqueeze(2)
    # a compiled model keeps to one side for every T, lest it be compiled twice
    scale_slots = T > 1 if torch.compiler.is_compiling() else keys.shape[1] < B * T
    keys, values = (keys * beta, values * alpha) if scale_slots else (keys, values)
    queries = queries if scale_slots else queries * beta
    queries = queries.to(dtype)
    if B > 1:
        queries = queries.transpose(1, 2).reshape(1, B * T, H, D).transpose(1, 2)
    reads = attend(queries, keys[None].to(dtype), values[None].to(dtype), dropout, loops=loops)  # (1, H, B * T, D)
    if B > 1:
        reads = reads.transpose(1, 2).reshape(B, T, H, D).transpose(1, 2)
    return reads if scale_slots else (reads * alpha).to(dtype)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    dropout: float,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: Tensor | float = 1.0,
    attend_one: AttendOne | None = None,
    loops: bool = False,
) -> Tensor:
    """Softmax attention (B, H, T, D) by torch's fused kernels, whose arguments these are. The scale of the scores may
    also be (H, 1) or (H, T); the dtype of queries and keys may then be another than that of the values.

    On a CPU our own loops do it in two cases: no fused kernel drops weights there, and torch's own way spends most of
    the time on random numbers; and those for bfloat16 are slow, as are causal ones for float32. On a GPU a single query
    reads by plain products, for a library that plans its attention anew for each number of pairs takes ten times as
    long over it (docs/log.md).

    A cache that knows a faster way for single queries hands it over as `attend_one`. `loops` says that compiled loops
    may serve several queries however little there is to do, as they are loaded anyway; see `linear.linear`.
    """
    if attend_one is not None and queries.shape[2] == 1 and not dropout and not queries.requires_grad:
        return attend_one(queries, scale, keys.shape[2])
    past, loops = keys.shape[2] if is_causal else None, loops and queries.shape[2] > 1
    if not dropout and attn_mask is None and kernels.attention_serves(queries, past, loops=loops):
        from mosaic_cli.core.kernels import attention

        if is_causal:
            return attention.attend_window(queries, keys, values, scale, window=keys.shape[2])
        return attention.attend(queries, keys, values, scale)
    if isinstance(scale, Tensor):
        queries, keys, scale = (queries * scale[..., None]).to(values.dtype), keys.to(values.dtype), 1.0
    if queries.shape[2] == 1 and not dropout and keys.is_cuda:
        return _attend_by_products(queries if scale == 1 else queries * scale, keys, values)
    if layout.is_turned(keys):  # slots
        keys, values = keys.contiguous(), values.contiguous()
    on_cpu = queries.device.type == "cpu" and not torch.compiler.is_compiling()
    if dropout and on_cpu:
        from mosaic_cli.core.kernels import dropped

        return dropped.attend(queries * scale, keys, values, dropout, attn_mask, is_causal)
    if is_causal and on_cpu and keys.shape[2] % 8 == 7:
        # a window of 2^n tokens has a pair less than that; torch is quicker with one more, which no query sees
        keys, values = (torch.cat([tensor, tensor[:, :, :1].detach()], dim=2) for tensor in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask, dropout, is_causal, scale=scale)


def _attend_by_products(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same (B, H, 1, D) for a single query, already scaled, that reads all pairs."""
    asked, keys, values = (tensor.flatten(0, 1) for tensor in (queries, keys, values))  # (B * H, 1 or S, D)
    weights = torch.softmax(torch.bmm(asked, keys.mT), dim=-1).to(values.dtype)  # (B * H, 1, S)
    return torch.bmm(weights, values).view(queries.shape)
