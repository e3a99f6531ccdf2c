"""Reading from a short window of pairs in time and memory that grow with the text as O(T h) (v2, short-term memory)."""

import torch
from torch import Tensor

from mosaic_cli.core import kernels, ops


def window_read(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    beta: Tensor,
    window: int,
    dropout: float = 0.0,
    loops: bool = False,
) -> Tensor:
    """Kernel regression over the newest `window` pairs of each position, for the newest T of S + 1 positions.

    Position p reads the pairs p - window .. p - 1, so query i reads the pairs i + S - T - window < j <= i + S - T. The
    queries are cut into blocks as long as the window; each block reads two blocks of pairs, its own and the one before.

    Args:
        queries: (B, H, T, D).
        keys, values: (B, H, S, D) with S >= T.
        beta: (H,) inverse bandwidth, or (H, T) where it depends on the position.
        dropout: probability of dropping a retrieval weight.
        loops: see `ops.attend`.

    Returns:
        (B, H, T, D) in the dtype of `values`.
    """
    T, S = queries.shape[2], keys.shape[2]
    if window >= S:  # nothing is too old yet
        return ops.strict_past_read(queries, keys, values, beta, dropout, loops=loops)
    if not dropout and kernels.attention_serves(queries, window, windowed=True, loops=loops):
        from mosaic_cli.core.kernels import attention

        return attention.attend_window(queries, keys, values, beta.view(len(beta), -1), window)
    queries = (queries * beta.view(len(beta), -1, 1)).to(values.dtype)
    keys = keys.to(values.dtype)
    before = S - T  # pairs older than the first query's newest one
    head = T % window  # queries that fill no block
    if before + head < window:  # the first block would not find a whole block of pairs before it
        head = min(T, head + window)
    reads = []
    if head:
        start = max(0, before - window + 1)
        pairs = (tensor[:, :, start : before + head] for tensor in (keys, values))
        reads.append(_attend(queries[:, :, :head], *pairs, window, dropout))
    if head < T:
        reads.append(_blocks_read(queries[:, :, head:], keys, values, before + head, window, dropout))
    return torch.cat(reads, dim=2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, window: int, dropout: float) -> Tensor:
    """The reads of a few queries, by a mask: query i sees the pairs i + S - T - window < j <= i + S - T."""
    shape = queries.shape[2], keys.shape[2]
    newest = shape[1] - shape[0]
    seen = torch.ones(shape, dtype=torch.bool, device=keys.device).tril(newest).triu(newest - window + 1)
    return ops.attend(queries, keys, values, dropout, attn_mask=seen)


def _blocks_read(queries: Tensor, keys: Tensor, values: Tensor, start: int, window: int, dropout: float) -> Tensor:
    """Reads of whole blocks of queries; the first query's newest pair is number `start`."""
    B, blocks = len(queries), queries.shape[2] // window
    end = start + blocks * window

    def with_the_block_before(pairs: Tensor) -> Tensor:  # (B * blocks, H, 2 window, D)
        own, previous = pairs[:, :, start:end], pairs[:, :, start - window : end - window]
        both = [part.unflatten(2, (blocks, window)) for part in (previous, own)]
        return torch.cat(both, dim=3).transpose(1, 2).flatten(0, 1)

    queries = queries.unflatten(2, (blocks, window)).transpose(1, 2).flatten(0, 1)  # (B * blocks, H, window, D)
    reads = _attend(queries, with_the_block_before(keys), with_the_block_before(values), window, dropout)
    return reads.unflatten(0, (B, blocks)).transpose(1, 2).flatten(2, 3)
