"""The two kinds of associative memory: contextual (filled by the text) and persistent (filled by training)."""

import torch
from torch import Tensor, nn

from mosaic_cli.core import ops
from mosaic_cli.core.cache import ContextualCache, PersistentCache
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.features import ValueExtractor, make_key_extractor
from mosaic_cli.core.feedforward import MLP

ADAPTIVE = ("bandwidth_floor", "bandwidth_growth", "bandwidth_power")  # theta of beta_0, beta_1 and a


class _Kernel(nn.Module):
    """The inverse bandwidths of a memory's heads, and the dropout of its weights."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.adaptive = config.bandwidth == "adaptive"
        for name in ADAPTIVE if self.adaptive else ("bandwidth",):
            theta = torch.empty(config.num_heads)
            if config.learn_bandwidth:
                setattr(self, name, nn.Parameter(theta))
            else:
                self.register_buffer(name, theta)
        self.dropout = config.dropout

    def bandwidths(self) -> tuple[Tensor, ...]:
        """beta (H,), or where it is adaptive beta_0, beta_1 and a (H,)."""
        if self.adaptive:
            return ops.bandwidth_growth(*(getattr(self, name) for name in ADAPTIVE))
        return (ops.inverse_bandwidth(self.bandwidth),)


class PairRead(_Kernel):
    """Retrieval from pairs stored by the text. A module of its own so that its inputs and output can be looked at."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, *scalars: Tensor) -> Tensor:
        """Queries (B, H, T, D), pairs (B, H, S, D) -> reads (B, H, T, D): see `ops.strict_past_read`.

        `scalars` are this module's own, where a cache has them ready.
        """
        beta = self.beta(queries.shape[2], keys.shape[2], *(scalars or self.scalars()))
        return ops.strict_past_read(queries, keys, values, beta, self.dropout if self.training else 0.0)

    def beta(self, num_queries: int, num_pairs: int, *scalars: Tensor) -> Tensor:
        """Inverse bandwidths for the newest queries: (H,), or (H, T) where they grow with the pairs that each reads."""
        if not self.adaptive:
            return scalars[0]
        seen = torch.arange(num_pairs - num_queries + 1, num_pairs + 1, device=scalars[0].device)
        return ops.adaptive_bandwidth(*scalars, seen)

    def scalars(self) -> tuple[Tensor, ...]:
        """What `beta` is made of: (H,) each."""
        return self.bandwidths()


class SlotRead(_Kernel):
    """Retrieval from learned pairs."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.num_slots = config.num_slots
        self.scale = nn.Parameter(torch.empty(config.num_heads))  # alpha = exp(10 scale)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor | None = None, alpha: Tensor | None = None
    ) -> Tensor:
        """Queries (B, H, T, D), slots (H, M, D) -> reads (B, H, T, D): see `ops.slot_read`.

        `beta` and `alpha` (H,) are this module's own scalars, where a cache has them ready.
        """
        beta, alpha = self.scalars() if beta is None else (beta, alpha)
        return ops.slot_read(queries, keys, values, beta, alpha, self.dropout if self.training else 0.0)

    def scalars(self) -> tuple[Tensor, Tensor]:
        """beta and alpha (H,)."""
        beta, *growth = self.bandwidths()
        if growth:  # the number of slots does not change
            beta = ops.adaptive_bandwidth(beta, *growth, torch.tensor([self.num_slots], device=beta.device))[:, 0]
        return beta, ops.value_scale(self.scale)


class ContextualMemory(nn.Module):
    """Stores a (key, value) pair per token and answers from the strict past (v1, contextual memory)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.keys = make_key_extractor(config)
        self.values = ValueExtractor(config)
        self.read = PairRead(config)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)  # W_o
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: ContextualCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, x continues what the cache has seen."""
        if cache is None:
            queries, stored_keys = ops.neighbours(self.keys(x))  # (B, H, T - 1, D)
            reads = self.read(queries, stored_keys, self.values(x))
        else:
            reads = self._continue(x, cache)
        reads = reads.transpose(1, 2).flatten(2)  # (B, T or T - 1, C)
        if reads.shape[1] < x.shape[1]:  # y_0 = 0: the first token of all asks an empty memory
            reads = torch.cat([torch.zeros_like(x[:, :1], dtype=reads.dtype), reads], dim=1)
        return self.dropout(self.output(reads))

    def _continue(self, x: Tensor, cache: ContextualCache) -> Tensor:
        """Reads (B, H, T, D) of x (B, T, C), or T - 1 where x begins the text; its pairs but the newest are stored."""
        keys, values = self.keys(x, cache.keys), self.values(x, cache.values)
        queries, stored_keys = ops.neighbours(keys)
        if cache.pending_key is not None:
            queries = keys
            stored_keys = torch.cat([cache.pending_key, stored_keys], dim=2)
        cache.pending_key = keys[:, :, -1:]
        return self.read(queries, *cache.pairs.append(stored_keys.to(values.dtype), values), *cache.scalars)

    def make_cache(self) -> ContextualCache:
        """An empty memory."""
        return ContextualCache(self.keys.make_state(), self.values.make_state(), self.read.scalars())


class PersistentMemory(nn.Module):
    """M learned pairs per head; stands where a transformer has its MLP (v1, persistent memory)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        slots = (config.num_heads, config.num_slots, config.head_dim)
        self.keys = make_key_extractor(config)
        self.slot_keys = nn.Parameter(torch.empty(slots))  # P_k, not normalised
        self.slot_values = nn.Parameter(torch.empty(slots))  # P_v
        self.read = SlotRead(config)
        self.output = nn.Linear(config.d_model, config.d_model, bias=False)  # W_o
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: PersistentCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, x continues what the cache has seen."""
        keys = self.keys(x, cache.keys if cache else None)  # (B, H, T, D)
        reads = self.read(keys, self.slot_keys, self.slot_values, *(cache.scalars if cache else ()))
        return self.dropout(self.output(reads.transpose(1, 2).flatten(2)))

    def make_cache(self) -> PersistentCache:
        """The state before the first token."""
        return PersistentCache(self.keys.make_state(), self.read.scalars())


class FeedForwardMemory(MLP):
    """Persistent memory as hidden units: no state to carry from token to token."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.d_model, config.feedforward_dim, config.dropout)

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return super().forward(x)

    def make_cache(self) -> None:
        """Nothing is carried from token to token."""


def make_persistent_memory(config: ModelConfig) -> nn.Module:
    """The persistent memory that the configuration names."""
    return {"slots": PersistentMemory, "mlp": FeedForwardMemory}[config.persistent](config)
