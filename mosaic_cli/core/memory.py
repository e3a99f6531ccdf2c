"""The two kinds of associative memory: contextual (filled by the text) and persistent (filled by training)."""

import torch
from torch import Tensor, nn

from mosaic_cli.core import kernels, layout, ops
from mosaic_cli.core.cache import ContextualCache, GrowingPairs, PersistentCache, WindowedCache, WindowPairs
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.features import ValueExtractor, make_key_extractor
from mosaic_cli.core.feedforward import MLP, SwiGLU
from mosaic_cli.core.linear import Output, linear
from mosaic_cli.core.windows import window_read

ADAPTIVE = ("bandwidth_floor", "bandwidth_growth", "bandwidth_power")  # theta of beta_0, beta_1 and a


class _Kernel(nn.Module):
    """The inverse bandwidths of a memory's heads, and the dropout of its weights. For `loops` see `ops.attend`."""

    loops = False

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
    """Retrieval from pairs stored by the text. A module of its own so that its inputs and output can be looked at.

    Args:
        window: the newest pairs that a position reads; None means all.
    """

    def __init__(self, config: ModelConfig, window: int | None = None):
        super().__init__(config)
        self.window = window

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, *scalars: Tensor, attend_one: ops.AttendOne | None = None
    ) -> Tensor:
        """Queries (B, H, T, D), pairs (B, H, S, D) -> reads (B, H, T, D): see `ops.strict_past_read`.

        `scalars` are this module's own, where a cache has them ready.
        """
        beta = self.beta(queries.shape[2], keys.shape[2], *(scalars or self.scalars()))
        dropout = self.dropout if self.training else 0.0
        if self.window is not None:
            return window_read(queries, keys, values, beta, self.window, dropout, self.loops)
        return ops.strict_past_read(queries, keys, values, beta, dropout, attend_one, self.loops)

    def beta(self, num_queries: int, num_pairs: int, *scalars: Tensor) -> Tensor:
        """Inverse bandwidths for the newest queries: (H,), or (H, T) where they grow with the pairs that each reads."""
        if not self.adaptive:
            return scalars[0]
        if num_queries == 1:
            return ops.adaptive_bandwidth(*scalars, num_pairs if self.window is None else min(num_pairs, self.window))
        seen = torch.arange(num_pairs - num_queries + 1, num_pairs + 1, device=scalars[0].device)
        return ops.adaptive_bandwidth(*scalars, seen.clamp(1, self.window))

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
        return ops.slot_read(queries, keys, values, beta, alpha, self.dropout if self.training else 0.0, self.loops)

    def scalars(self) -> tuple[Tensor, Tensor]:
        """beta and alpha (H,)."""
        beta, *growth = self.bandwidths()
        if growth:  # the number of slots does not change
            beta = ops.adaptive_bandwidth(beta, *growth, self.num_slots)
        return beta, ops.value_scale(self.scale)


class PairMemory(nn.Module):
    """Stores a (key, value) pair per token and answers from the pairs of its window, heads side by side.

    Args:
        window: `full` reads all earlier pairs (v1), `short` the newest ones, `long` those of some age (v2).

    Attributes:
        loops: whether compiled loops may serve, see `GrowingPairs` and `linear.linear`.
        delay: age in tokens of the newest pair that is read; 1 is the strict past.
        training_delay: the same while training, where it may be drawn anew at each step: see `Mosaic.begin_step`.
    """

    loops = False

    def __init__(self, config: ModelConfig, window: str = "full"):
        super().__init__()
        self.keys = make_key_extractor(config)
        self.values = ValueExtractor(config)
        self.read = PairRead(config, config.short_window if window == "short" else None)
        self.delay = self.training_delay = config.long_delay if window == "long" else 1
        self._projections: Tensor | None = None

    def recall(self, x: Tensor, cache: ContextualCache | None = None) -> Tensor:
        """Reads (B, T, C) for x (B, T, C), zero where the memory is empty. With a cache, x goes on from what it has."""
        x = x.to(kernels.product_dtype(x))  # once for the projections of keys and values
        reads = self._begin(x) if cache is None else self._continue(x, cache)
        reads = ops.join_heads(reads)  # (B, T or less, C)
        empty = x.shape[1] - reads.shape[1]
        if empty:  # y_0 = 0: the first tokens of all ask an empty memory
            reads = torch.cat([torch.zeros_like(x[:, :empty], dtype=reads.dtype), reads], dim=1)
        return reads

    def _begin(self, x: Tensor) -> Tensor:
        """Reads (B, H, T - delay, D) of x (B, T, C), which begins the text."""
        delay = self.training_delay if self.training else self.delay
        keys, values = self.keys(x), self.values(x)
        if delay == 1:
            return self.read(*ops.neighbours(keys), values)
        if x.shape[1] <= delay:
            return values[:, :, :0]
        queries, stored_keys = ops.neighbours(keys, delay)
        return self.read(queries, stored_keys, values[:, :, : x.shape[1] - delay])

    def _continue(self, x: Tensor, cache: ContextualCache) -> Tensor:
        """Reads (B, H, T or less, D) of x (B, T, C), the newest; its pairs but the last are stored."""
        of_keys, of_values = self._project(x)
        keys, values = self.keys(x, cache.keys, of_keys), self.values(x, cache.values, of_values)
        queries, *pairs = cache.store(keys, values)
        if self.delay > 1:
            old = max(0, cache.pairs.length - self.delay + 1)  # pairs that the newest query may read
            pairs = [tensor[:, :, :old] for tensor in pairs]
            if not old:
                return values[:, :, :0]
            if old < queries.shape[2]:
                queries = queries[:, :, -old:]
        return self.read(queries, *pairs, *cache.scalars, attend_one=cache.pairs.attend_one)

    def join_projections(self) -> None:
        """Have W_phi and W_psi lie in memory one behind the other, so that one product makes both of a token's
        projections, of which decoding feels the number. Their values stay."""
        matrices = self.keys.project.weight, self.values.project.weight
        self._projections = torch.cat([matrix.detach() for matrix in matrices])
        for matrix, part in zip(matrices, self._projections.chunk(2), strict=True):
            matrix.data = part

    def _project(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """W_phi x and W_psi x (B, T, C), where they are made at once."""
        if self._projections is None:
            return None, None
        return linear(x, self._projections, self.loops).chunk(2, dim=-1)

    def make_cache(self) -> ContextualCache:
        """An empty memory."""
        pairs = GrowingPairs(loops=self.loops) if self.read.window is None else WindowPairs(self.read.window)
        return ContextualCache(self.keys.make_state(), self.values.make_state(), self.read.scalars(), pairs)


class ContextualMemory(PairMemory):
    """One contextual memory of all earlier pairs, and W_o (v1, contextual memory)."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.output = Output(config.d_model, config.d_model, config.dropout)  # W_o

    def forward(self, x: Tensor, cache: ContextualCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, x continues what the cache has seen."""
        return self.output(self.recall(x, cache))


class WindowedMemory(nn.Module):
    """Contextual memories with windows and parameters of their own; all their heads go through one W_o (v2)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.names = config.memories
        for name in self.names:
            setattr(self, name, PairMemory(config, name))
        self.output = Output(len(self.names) * config.d_model, config.d_model, config.dropout)  # W_o

    def forward(self, x: Tensor, cache: WindowedCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, x continues what the cache has seen."""
        caches = cache.memories if cache else [None] * len(self.names)
        reads = [memory.recall(x, own) for memory, own in zip(self.memories(), caches, strict=True)]
        return self.output(torch.cat(reads, dim=-1))

    def memories(self) -> list[PairMemory]:
        """The memories, in the order in which W_o takes their heads."""
        return [getattr(self, name) for name in self.names]

    def make_cache(self) -> WindowedCache:
        """Empty memories."""
        return WindowedCache([memory.make_cache() for memory in self.memories()])


def make_contextual_memory(config: ModelConfig) -> nn.Module:
    """The contextual memory that the configuration names."""
    return ContextualMemory(config) if config.windows == "full" else WindowedMemory(config)


class PersistentMemory(nn.Module):
    """M learned pairs per head; stands where a transformer has its MLP (v1, persistent memory)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        slots = (config.num_heads, config.num_slots, config.head_dim)
        self.keys = make_key_extractor(config)
        self.slot_keys = nn.Parameter(torch.empty(slots))  # P_k, not normalised
        self.slot_values = nn.Parameter(torch.empty(slots))  # P_v
        self.read = SlotRead(config)
        self.output = Output(config.d_model, config.d_model, config.dropout)  # W_o

    def forward(self, x: Tensor, cache: PersistentCache | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C). With a cache, x continues what the cache has seen."""
        keys = self.keys(x, cache.keys if cache else None)  # (B, H, T, D)
        reads = self.read(keys, self.slot_keys, self.slot_values, *(cache.scalars if cache else ()))
        return self.output(ops.join_heads(reads))

    def make_cache(self) -> PersistentCache:
        """The state before the first token."""
        return PersistentCache(self.keys.make_state(), self.read.scalars())

    def turn_slots(self) -> None:
        """Have the slots lie as a single token reads them fastest on a CPU: see `layout`. Their values stay."""
        for slots in (self.slot_keys, self.slot_values):
            slots.data = layout.turned(slots.data)


def make_persistent_memory(config: ModelConfig) -> nn.Module:
    """The persistent memory that the configuration names."""
    if config.persistent == "slots":
        return PersistentMemory(config)
    layer = {"swiglu": SwiGLU, "mlp": MLP}[config.persistent]
    return layer(config.d_model, config.feedforward_dim, config.dropout)
