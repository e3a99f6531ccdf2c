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
        (B, H, T, D); the last one is the state to go on with.
    """
    B, T, H, D = x.shape
    chunk = min(T, LEAKY_CHUNK)
    num_chunks = -(-T // chunk)
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        rate = rate.to(dtype)
        steps = torch.arange(chunk, device=x.device, dtype=dtype)
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, num_chunks * chunk - T))
        x = x.view(B, num_chunks, chunk, H, D).permute(3, 2, 0, 1, 4).reshape(H, chunk, B * num_chunks * D)
        lags = (steps[:, None] - steps).clamp(min=0)  # (chunk, chunk)
        within = torch.bmm(torch.exp(-rate[:, None, None] * lags).tril(), x).view(H, chunk, B, num_chunks, D)
        average = within.permute(2, 0, 3, 1, 4)  # (B, H, num_chunks, chunk, D)
        if num_chunks > 1 or state is not None:
            carry = _carry_into_chunks(within[:, -1], rate * chunk, state)  # (B, H, num_chunks, D)
            fade = torch.exp(-rate[:, None] * (steps + 1))  # (H, chunk)
            average = average + fade[:, None, :, None] * carry[:, :, :, None, :]
        return average.reshape(B, H, num_chunks * chunk, D)[:, :, :T]


def _carry_into_chunks(ends: Tensor, rate: Tensor, state: Tensor | None) -> Tensor:
    """The average just before each chunk (B, H, n, D), from the sums at the chunks' ends (H, B, n, D)."""
    H, B, n, D = ends.shape
    first = torch.zeros(B, H, 1, D, device=ends.device, dtype=ends.dtype) if state is None else state[:, :, None]
    if n == 1:
        return first.to(ends.dtype)
    before = leaky_average(ends[:, :, :-1].permute(1, 2, 0, 3), rate, state)
    return torch.cat([first, before], dim=2)


def normalise(x: Tensor) -> Tensor:
    """x / |x| over the last dimension, in float32 or better; a zero vector stays zero."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


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
    flat = queries.transpose(0, 1).reshape(1, H, B * T, D)
    reads = _attend(flat, keys[None].to(values.dtype), values[None], dropout)
    return reads.view(H, B, T, D).transpose(0, 1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, dropout: float, **mask: object) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, scale=1.0, **mask)
