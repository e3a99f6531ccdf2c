"""The two kinds of associative memory: contextual (filled by the text) and persistent (filled by training)."""

import torch
from torch import Tensor, nn

from mosaic_cli.core import ops
from mosaic_cli.core.cache import ContextualCache, PersistentCache
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.features import KeyExtractor, ValueExtractor


class PairRead(nn.Module):
    """Retrieval from pairs stored by the text. A module of its own so that its inputs and output can be looked at."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.bandwidth = nn.Parameter(torch.empty(config.num_heads))  # beta = exp(2 min(10 bandwidth, 5))
        self.dropout = config.dropout

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries (B, H, T, D), pairs (B, H, S, D) -> reads (B, H, T, D): see `ops.strict_past_read`."""
        beta = ops.inverse_bandwidth(self.bandwidth)
        return ops.strict_past_read(queries, keys, values, beta, self.dropout if self.training else 0.0)


class SlotRead(nn.Module):
    """Retrieval from learned pairs."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.bandwidth = nn.Parameter(torch.empty(config.num_heads))  # beta, as above
        self.scale = nn.Parameter(torch.empty(config.num_heads))  # alpha = exp(10 scale)
        self.dropout = config.dropout

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Queries (B, H, T, D), slots (H, M, D) -> reads (B, H, T, D): see `ops.slot_read`."""
        beta, alpha = ops.inverse_bandwidth(self.bandwidth), ops.value_scale(self.scale)
        return ops.slot_read(queries, keys, values, beta, alpha, self.dropout if self.training else 0.0)


class ContextualMemory(nn.Module):
    """Stores a (key, value) pair per token and answers from the strict past (v1, contextual memory)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.keys = KeyExtractor(config)
        self.values = ValueExtractor(config)
        self.read = PairRead(config)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)  # W_o
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: ContextualCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, x continues what the cache has seen."""
        keys, average = self.keys(x, cache.average if cache else None)  # (B, H, T, D)
        values, content = self.values(x, cache.pending_content if cache else None)
        queries, stored_keys = ops.neighbours(keys)
        if cache is not None:
            if cache.pending_key is not None:
                queries, stored_keys = keys, torch.cat([cache.pending_key, stored_keys], dim=2)
            cache.average, cache.pending_key, cache.pending_content = average, keys[:, :, -1:], content
            stored_keys, values = cache.pairs.append(stored_keys.to(values.dtype), values)
        reads = self.read(queries, stored_keys, values).transpose(1, 2).flatten(2)  # (B, T or T - 1, C)
        if reads.shape[1] < x.shape[1]:  # y_0 = 0: the first token of all asks an empty memory
            reads = torch.cat([torch.zeros_like(x[:, :1], dtype=reads.dtype), reads], dim=1)
        return self.dropout(self.output(reads))


class PersistentMemory(nn.Module):
    """M learned pairs per head; stands where a transformer has its MLP (v1, persistent memory)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        slots = (config.num_heads, config.num_slots, config.head_dim)
        self.keys = KeyExtractor(config)
        self.slot_keys = nn.Parameter(torch.empty(slots))  # P_k, not normalised
        self.slot_values = nn.Parameter(torch.empty(slots))  # P_v
        self.read = SlotRead(config)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)  # W_o
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: PersistentCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, x continues what the cache has seen."""
        keys, average = self.keys(x, cache.average if cache else None)  # (B, H, T, D)
        if cache is not None:
            cache.average = average
        reads = self.read(keys, self.slot_keys, self.slot_values)
        return self.dropout(self.output(reads.transpose(1, 2).flatten(2)))
