"""The GPT-2 baseline, under the same contract as the mosaic, so that every command works on both."""

import math

import torch
from torch import Tensor, nn

from mosaic_cli.core.cache import AttentionCache, FixedPairs, GrowingPairs
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.feedforward import MLP
from mosaic_cli.core.linear import Linear, Output, linear
from mosaic_cli.core.ops import AttendOne, attend, join_heads
from mosaic_cli.errors import UsageError


class CausalRead(nn.Module):
    """Attention to the past and the present. A module of its own so that its inputs and output can be looked at. For
    `loops` see `ops.attend`."""

    loops = False

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dropout = config.dropout

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, attend_one: AttendOne | None = None) -> Tensor:
        """The newest T of S positions: queries (B, H, T, D), keys and values (B, H, S, D) -> reads (B, H, T, D).

        For `attend_one` see `ops.attend`.
        """
        T, S = queries.shape[2], keys.shape[2]
        mask: dict[str, object] = {}
        if T == S:
            mask = {"is_causal": True}
        elif T > 1:
            mask = {"attn_mask": torch.ones(T, S, dtype=torch.bool, device=keys.device).tril(S - T)}
        dropout, scale = self.dropout if self.training else 0.0, queries.shape[-1] ** -0.5
        return attend(queries, keys, values, dropout, scale=scale, attend_one=attend_one, loops=self.loops, **mask)


class CausalAttention(nn.Module):
    """Multi-head attention over the past and the present token."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.project = Linear(config.d_model, 3 * config.d_model)
        self.read = CausalRead(config)
        self.output = Output(config.d_model, config.d_model, config.dropout)

    def forward(self, x: Tensor, cache: GrowingPairs | FixedPairs | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        projected = self.project(x).view(*x.shape[:2], 3, self.num_heads, -1)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4).unbind()
        attend_one = None
        if cache is not None:
            keys, values = cache.append(keys, values)  # (B, H, S, D)
            attend_one = cache.attend_one
        reads = self.read(queries, keys, values, attend_one=attend_one)  # (B, H, T, D)
        return self.output(join_heads(reads))


class TransformerBlock(nn.Module):
    """x += attention(LN x); x += MLP(LN x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, bias=False)
        self.attention = CausalAttention(config)
        self.mlp_norm = nn.LayerNorm(config.d_model, bias=False)
        self.mlp = MLP(config.d_model, config.hidden_dim, config.dropout)

    def forward(self, x: Tensor, cache: GrowingPairs | FixedPairs | None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """GPT-2 without biases: token and learned position embeddings, blocks, LayerNorm, tied head.

    Args:
        config: with `vocab_size` set.
    """

    loops = False  # for the head and for caches, see `linear` and `GrowingPairs`

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context_length, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        self.reset_parameters()

    def forward(self, tokens: Tensor, cache: AttentionCache | None = None) -> Tensor:
        """Logits (B, T, V) for integers (B, T). With a cache, the tokens continue those it has read.

        Raises:
            UsageError: the text would grow past the context length, beyond which there are no positions.
        """
        return self.head(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: AttentionCache | None = None) -> Tensor:
        """The normed last residual stream (B, T, C): what `head` turns into logits."""
        start = cache.length if cache else 0
        end = start + tokens.shape[1]
        if end > self.config.context_length:
            raise UsageError(
                f"a transformer trained on {self.config.context_length} tokens cannot read {end}",
                hint="Use a shorter prompt or window, or fewer new tokens; a mosaic has no such limit.",
            )
        recorded = cache is not None and cache.newest is not None
        positions = self.positions(cache.newest) if recorded else self.positions.weight[start:end]
        x = self.dropout((self.embedding(tokens) + positions).to(self.norm.weight.dtype))
        for layer, block in enumerate(self.blocks):
            x = block(x, cache.layers[layer] if cache else None)
        if cache is not None:
            cache.length = end
        return self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        """What `head` takes, from the residual stream after the last block: both (..., C)."""
        return self.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V) of hidden states (B, T, C)."""
        return linear(hidden, self.embedding.weight, self.loops)

    def make_cache(self) -> AttentionCache:
        """An empty cache. It takes batch size, dtype and device from what it first stores."""
        return AttentionCache([GrowingPairs(loops=self.loops) for _ in self.blocks])

    def begin_step(self, seed: int, step: int) -> None:
        """A training step of a transformer draws nothing but dropout."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """GPT-2's starting values: std 0.02, and 0.02 / sqrt(2 N) where a layer writes into the residual stream."""
        for name, parameter in self.named_parameters():
            if name.endswith("output.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.num_layers))
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
