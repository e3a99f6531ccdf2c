"""The language model of Memory Mosaics (arXiv 2405.06394, 2507.03285)."""

import math
import random

import torch
from torch import Tensor, nn

from mosaic_cli.core.cache import ContextualCache, MemoryCache, PersistentCache, WindowedCache
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.initial import draw_starting_values
from mosaic_cli.core.linear import linear
from mosaic_cli.core.memory import make_contextual_memory, make_persistent_memory


class Block(nn.Module):
    """x += contextual(LN x); x += persistent(LN x). Holds 12 C^2 weights in v1 when M = 3.5 C."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.contextual_norm = nn.LayerNorm(config.d_model, bias=False)
        self.contextual = make_contextual_memory(config)
        self.persistent_norm = nn.LayerNorm(config.d_model, bias=False)
        self.persistent = make_persistent_memory(config)

    def forward(
        self,
        x: Tensor,
        contextual: ContextualCache | WindowedCache | None = None,
        persistent: PersistentCache | None = None,
    ) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.contextual(self.contextual_norm(x), contextual)
        return x + self.persistent(self.persistent_norm(x), persistent)


class Mosaic(nn.Module):
    """Embedding, blocks, LayerNorm, and a head tied to the embedding. No position code anywhere.

    Args:
        config: with `vocab_size` set.
    """

    loops = False  # for the head, see `linear`

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        self.logit_scale = 1 / math.sqrt(config.d_model) if config.init == "paper" else 1.0
        draw_starting_values(self.embedding.weight, self.blocks, config)

    def forward(self, tokens: Tensor, cache: MemoryCache | None = None) -> Tensor:
        """Logits (B, T, V) for integers (B, T). With a cache, the tokens continue those it has read."""
        return self.head(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: MemoryCache | None = None) -> Tensor:
        """The normed last residual stream (B, T, C): what `head` turns into logits."""
        x = self.embedding(tokens).to(self.norm.weight.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, cache.contextual[layer], cache.persistent[layer]) if cache else block(x)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.finish(x)

    def finish(self, x: Tensor) -> Tensor:
        """What `head` takes, from the residual stream after the last block: both (..., C)."""
        return self.norm(x) * self.logit_scale

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V) of hidden states (B, T, C)."""
        return linear(hidden, self.embedding.weight, self.loops)

    @torch.no_grad()
    def make_cache(self) -> MemoryCache:
        """An empty memory for these weights. It takes batch size, dtype and device from what it first stores."""
        return MemoryCache(
            [block.contextual.make_cache() for block in self.blocks],
            [block.persistent.make_cache() for block in self.blocks],
        )

    def begin_step(self, seed: int, step: int) -> None:
        """Draw from what age on long-term memories read in a training step: one number for all of them (v2).

        A function of seed and step alone, so a run that is taken up draws the same.
        """
        config = self.config
        if config.max_long_delay is None:
            return
        delay = random.Random(f"{seed}:{step}").randint(config.long_delay, config.max_long_delay)
        for block in self.blocks:
            block.contextual.long.training_delay = delay
