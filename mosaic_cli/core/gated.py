"""The gated average of v2's keys (arXiv 2507.03285): a leaky average whose gate and decay depend on the token.

Averages come with a scale, the logarithm of a factor taken out of each: true average = exp(scale) * average. The scale
is the largest exponent among the terms, so no term overflows and the largest does not vanish, whatever gates and
decays are. Normalised keys do not depend on it. It counts as a constant in gradients, which is exact wherever only the
true average, or its direction, is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_cli.core.ops import wide

GATED_CHUNK = 64  # tokens averaged by one dense matrix of weights


def gated_average(
    x: Tensor, log_gate: Tensor, rate: Tensor, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """a_T = exp(log_gate_T) x_T + exp(-rate_T) a_{T-1}, exactly, in O(T * chunk) and float32 or better.

    Inside a chunk a dense matrix of weights is applied. The averages at the chunks' ends follow the same recurrence,
    with the chunk's whole decay for a rate, so the function calls itself for the carry between chunks.

    Args:
        x: (B, T, H, D).
        log_gate, rate: (B, T, H), rates not negative.
        state: average (B, H, 1, D) and scale (B, H, 1, 1) before the first token; None means zero.

    Returns:
        Averages (B, H, T, D) and their scales (B, H, T, 1); the last ones are the state to go on with.
    """
    T = x.shape[1]
    chunk = min(T, GATED_CHUNK)
    n = -(-T // chunk)  # chunks
    with torch.autocast(x.device.type, enabled=False):
        x, log_gate, rate = (_in_chunks(tensor, n, chunk) for tensor in (x, log_gate, rate))  # (B, H, n, chunk, ..)
        rate = rate[..., 0]  # (B, H, n, chunk)
        exponents = _decays(rate) + log_gate.mT  # (B, H, n, chunk, chunk): of token s in the average at t
        scale = exponents.detach().amax(-1)  # (B, H, n, chunk)
        average = torch.exp(exponents - scale[..., None]) @ x
        if n > 1 or state is not None:
            carry, carried_scale = _carry_into_chunks(average[..., -1, :], scale[..., -1], rate.sum(-1), state)
            carried = carried_scale[..., None] - rate.cumsum(-1)  # exponent of what stood before the chunk
            total = torch.maximum(scale, carried.detach())
            average = average * torch.exp(scale - total)[..., None]
            average = average + torch.exp(carried - total)[..., None] * carry[..., None, :]
            scale = total
        return average.flatten(2, 3)[:, :, :T], scale.flatten(2, 3)[:, :, :T, None]


def _in_chunks(tensor: Tensor, n: int, chunk: int) -> Tensor:
    """(B, T, H) or (B, T, H, D) -> (B, H, n, chunk, 1 or D), zeros behind the last token."""
    tensor = wide(tensor)
    tensor = tensor[..., None] if tensor.dim() == 3 else tensor
    tensor = F.pad(tensor, (0, 0, 0, 0, 0, n * chunk - tensor.shape[1]))
    return tensor.unflatten(1, (n, chunk)).permute(0, 3, 1, 2, 4)


def _decays(rate: Tensor) -> Tensor:
    """Log of what is left at t of a token at s, -(rate_{s+1} + .. + rate_t) (..., t, s); -inf where s > t.

    Each sum is taken for itself: differences of one running sum would lose the small ones after a large rate.
    """
    chunk = rate.shape[-1]
    steps = (-rate)[..., None].expand(*rate.shape, chunk)  # (..., t, s)
    keep = torch.ones(chunk, chunk, dtype=torch.bool, device=rate.device)
    sums = steps.masked_fill(~keep.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~keep.tril(), -torch.inf)


def _carry_into_chunks(
    ends: Tensor, scales: Tensor, rate: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Average (B, H, n, D) and scale (B, H, n) just before each chunk, from those that each chunk makes by itself."""
    if state is None:
        first, first_scale = torch.zeros_like(ends[:, :, :1]), torch.full_like(scales[:, :, :1], -torch.inf)
    else:
        first, first_scale = state[0].to(ends.dtype), state[1][..., 0].to(ends.dtype)
    if ends.shape[2] == 1:
        return first, first_scale
    others = (tensor[:, :, :-1].transpose(1, 2) for tensor in (ends, scales, rate))
    carry, scale = gated_average(*others, state)
    return torch.cat([first, carry], dim=2), torch.cat([first_scale, scale[..., 0]], dim=2)


def next_average(x: Tensor, log_gate: Tensor, rate: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The same for one more token, in constant time and memory.

    Args:
        x: (B, H, 1, D).
        log_gate, rate: (B, H, 1, 1).
        state: average (B, H, 1, D) and scale (B, H, 1, 1) before the token.

    Returns:
        The average and its scale, which are the state to go on with.
    """
    average, before = state
    kept = before - rate
    scale = torch.maximum(log_gate.to(before.dtype), kept)
    added = torch.exp(log_gate - scale) * x
    return torch.addcmul(added, torch.exp(kept - scale), average), scale


def true_average(average: Tensor, scale: Tensor) -> Tensor:
    """The average with its factor, exp(scale) * average; infinite where that is beyond what a float holds."""
    return average * torch.exp(scale)
