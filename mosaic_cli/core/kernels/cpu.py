"""Keys and values on a CPU, as compiled loops: one pass over memory forward and one backward.

Tensor by tensor, as `leaky`, `gated` and `ops` write them, these functions are a dozen passes each, or a score of
threads started and joined, which for a small model costs more than the arithmetic. Here a thread walks along one head
of one sequence with the average in its cache, so results do not depend on the number of threads.
docs/equations.md derives the gradients.
"""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import loops, prange, run
from mosaic_cli.core.kernels.halves import bits, number, stored


def keys(x: Tensor, log_gate: Tensor | None, rate: Tensor) -> Tensor:
    """Normalised a_T = exp(log_gate_T) x_T + exp(-rate_T) a_{T-1}: keys (B, H, T, D) of x (B, T, H, D) (v1, v2).

    Args:
        x: in bfloat16, float32 or float64, as the keys will be; what is between is float32 or better.
        log_gate, rate: (B, T, H) (v2), or None, which is 0, and (H,) (v1); float32 or float64; rates not negative.
    """
    return _Keys.apply(_known(x), log_gate, rate)


def keys_and_average(x: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """`keys` of a prompt x (B, T, H, D) by rate (H,) (v1), without gradients; and its last average (B, H, 1, D). In
    float32 or float64: the average is made of the last key, which in bfloat16 would be rounded."""
    keys, log_length = _keys_of(x.contiguous(), *_spread(x, None, rate))
    average = keys[:, -1] * torch.exp(log_length[:, -1, :, None])
    return keys.transpose(1, 2), average[:, :, None]


def values(content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    """`ops.peeked_values` for content c (B, T, H, D): values (B, H, T - 1, D) of the same dtype, which may be bfloat16;
    gamma and alpha (H,) are float32 or float64."""
    return _Values.apply(_known(content), gamma, alpha)


def _known(x: Tensor) -> Tensor:
    """x in a dtype that loops have: float16 they have not."""
    return x.float() if x.dtype == torch.float16 else x


def _spread(x: Tensor, log_gate: Tensor | None, rate: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of gates and the rates (B, T, H), where v1 has none and (H,)."""
    if log_gate is not None:
        return log_gate, rate
    return rate.new_zeros(()).expand(x.shape[:3]), rate.expand(x.shape[:3])


def _keys_of(x: Tensor, log_gate: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Keys (B, T, H, D), and the logarithms of the lengths (B, T, H) of the averages they are made of."""
    keys, log_length = torch.empty_like(x), rate.new_empty(x.shape[:3])
    run(_keys_forward, bits(x), log_gate, rate, bits(keys), log_length)
    return keys, log_length


class _Keys(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, log_gate: Tensor | None, rate: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.constant = log_gate is None
        log_gate, rate = _spread(x, log_gate, rate)
        keys, log_length = _keys_of(x, log_gate, rate)
        ctx.save_for_backward(keys, log_length, log_gate, rate)
        return keys.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        keys, log_length, log_gate, rate = ctx.saved_tensors
        B, T, H, _ = keys.shape
        by_x = torch.empty_like(keys)
        by_gate, by_rate = (rate.new_empty(B, 1 if ctx.constant else T, H) for _ in range(2))
        gradient = gradient.transpose(1, 2).contiguous()
        run(_keys_backward, bits(gradient), bits(keys), log_length, log_gate, rate, bits(by_x), by_gate, by_rate)
        return (by_x, None, by_rate.sum(dim=(0, 1))) if ctx.constant else (by_x, by_gate, by_rate)


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx, content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
        content = content.contiguous()
        values = torch.empty_like(content[:, 1:])
        run(_values_forward, bits(content), gamma, alpha, bits(values))
        ctx.save_for_backward(content, gamma, alpha)
        return values.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        content, gamma, alpha = ctx.saved_tensors
        by_content = torch.empty_like(content)
        by_gamma, by_alpha = (gamma.new_empty(len(content), len(gamma)) for _ in range(2))
        gradient = gradient.transpose(1, 2).contiguous()
        run(_values_backward, bits(gradient), bits(content), gamma, alpha, bits(by_content), by_gamma, by_alpha)
        return by_content, by_gamma.sum(0), by_alpha.sum(0)


@loops
def _keys_forward(x, log_gate, rate, keys, log_length):
    """The true average is exp(scale) * average; scale is the largest exponent so far, so nothing overflows."""
    B, T, H, D = x.shape
    zero, least = rate.dtype.type(0), rate.dtype.type(1e-12)
    for row in prange(B * H):
        b, h = row // H, row % H
        average = np.zeros(D, rate.dtype)
        scale = log_gate[b, 0, h]
        for t in range(T):
            kept = scale - rate[b, t, h]
            scale = max(log_gate[b, t, h], kept)
            gain, fade = np.exp(log_gate[b, t, h] - scale), np.exp(kept - scale)
            square = zero
            for d in range(D):
                entry = gain * number(x[b, t, h, d]) + fade * average[d]
                average[d] = entry
                square += entry * entry
            length = max(np.sqrt(square), least)
            log_length[b, t, h] = scale + np.log(length)
            for d in range(D):
                keys[b, t, h, d] = stored(average[d] / length, keys)


@loops
def _keys_backward(gradient, keys, log_length, log_gate, rate, by_x, by_gate, by_rate):
    """`onward` is the gradient by the average of token t, from later tokens, times that average's length. Where by_gate
    and by_rate (B, 1, H) have one place for all tokens, their sums are written."""
    B, T, H, D = keys.shape
    zero, each = rate.dtype.type(0), by_rate.shape[1] == T
    for row in prange(B * H):
        b, h = row // H, row % H
        onward = np.zeros(D, rate.dtype)
        sum_gate, sum_rate = zero, zero
        for t in range(T - 1, -1, -1):
            along, gated, faded = zero, zero, zero
            for d in range(D):
                key = number(keys[b, t, h, d])
                along += number(gradient[b, t, h, d]) * key
                gated += onward[d] * key
            gain = np.exp(log_gate[b, t, h] - log_length[b, t, h])
            if t > 0:
                fade = np.exp(log_length[b, t - 1, h] - rate[b, t, h] - log_length[b, t, h])
                for d in range(D):
                    whole = number(gradient[b, t, h, d]) - along * number(keys[b, t, h, d]) + onward[d]
                    by_x[b, t, h, d] = stored(gain * whole, by_x)
                    onward[d] = fade * whole
                    faded += fade * whole * number(keys[b, t - 1, h, d])
            else:
                for d in range(D):
                    whole = number(gradient[b, t, h, d]) - along * number(keys[b, t, h, d]) + onward[d]
                    by_x[b, t, h, d] = stored(gain * whole, by_x)
            sum_gate += gated - faded
            sum_rate -= faded
            if each:
                by_gate[b, t, h], by_rate[b, t, h] = gated - faded, -faded
        if not each:
            by_gate[b, 0, h], by_rate[b, 0, h] = sum_gate, sum_rate


@loops
def _values_forward(content, gamma, alpha, values):
    B, T, H, D = content.shape
    zero, one, least = gamma.dtype.type(0), gamma.dtype.type(1), gamma.dtype.type(1e-12)
    for row in prange(B * H):
        b, h = row // H, row % H
        now, ahead = gamma[h], one - gamma[h]
        mixed = np.empty(D, gamma.dtype)
        for t in range(T - 1):
            square = zero
            for d in range(D):
                entry = now * number(content[b, t, h, d]) + ahead * number(content[b, t + 1, h, d])
                mixed[d] = entry
                square += entry * entry
            factor = alpha[h] / max(np.sqrt(square), least)
            for d in range(D):
                values[b, t, h, d] = stored(factor * mixed[d], values)


@loops
def _values_backward(gradient, content, gamma, alpha, by_content, by_gamma, by_alpha):
    """The mixtures are made once more: cheaper than to have kept them."""
    B, T, H, D = content.shape
    zero, one, least = gamma.dtype.type(0), gamma.dtype.type(1), gamma.dtype.type(1e-12)
    for row in prange(B * H):
        b, h = row // H, row % H
        now, ahead = gamma[h], one - gamma[h]
        mixed, onward = np.empty(D, gamma.dtype), np.zeros(D, gamma.dtype)
        sum_gamma, sum_alpha = zero, zero
        for t in range(T - 1):
            square, along = zero, zero
            for d in range(D):
                entry = now * number(content[b, t, h, d]) + ahead * number(content[b, t + 1, h, d])
                mixed[d] = entry
                square += entry * entry
                along += entry * number(gradient[b, t, h, d])
            inverse = one / max(np.sqrt(square), least)
            factor = alpha[h] * inverse
            sum_alpha += along * inverse
            along *= inverse * inverse
            for d in range(D):
                by_mixed = factor * (number(gradient[b, t, h, d]) - along * mixed[d])
                sum_gamma += by_mixed * (number(content[b, t, h, d]) - number(content[b, t + 1, h, d]))
                by_content[b, t, h, d] = stored(onward[d] + now * by_mixed, by_content)
                onward[d] = ahead * by_mixed
        for d in range(D):
            by_content[b, T - 1, h, d] = stored(onward[d], by_content)
        by_gamma[b, h] = sum_gamma
        by_alpha[b, h] = sum_alpha
