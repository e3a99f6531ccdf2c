"""What every command needs of a model, whichever kind it is."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.loss import ChunkedMeanLoss, chunk_tokens, chunks_pay
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.core.transformer import Transformer


class LanguageModel(Protocol):
    """The contract of both kinds: see `Mosaic` for the shapes."""

    config: ModelConfig
    embedding: nn.Embedding
    """Its weight (V, C) is the head's as well."""

    def __call__(self, tokens: Tensor, cache=None) -> Tensor: ...
    def hidden(self, tokens: Tensor, cache=None) -> Tensor: ...
    def finish(self, x: Tensor) -> Tensor: ...
    def head(self, hidden: Tensor) -> Tensor: ...
    def make_cache(self): ...


def build_model(config: ModelConfig) -> Mosaic | Transformer:
    """A model of the kind that the configuration names, with its starting values drawn from torch's generator."""
    return {"mosaic": Mosaic, "transformer": Transformer}[config.kind](config)


def next_token_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats per token, computed in float32 or wider; logits (B, T, V), targets (B, T).

    `reduction` is `mean`, or `none` for the loss of each token (B, T).
    """
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(wide, targets.flatten(), reduction=reduction)
    return loss if reduction == "mean" else loss.view_as(targets)


def training_loss(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """`next_token_loss(model(tokens), targets)` () with its gradients, but the logits are cut up where that pays.

    `tokens` and `targets` are (B, T).
    """
    hidden, head = model.hidden(tokens), model.embedding.weight
    if chunks_pay(targets.numel(), len(head), hidden.device):
        return ChunkedMeanLoss.apply(hidden.flatten(0, 1), head, targets.flatten())
    return next_token_loss(model.head(hidden), targets)


@torch.no_grad()
def token_losses(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """`next_token_loss(model(tokens), targets, "none")` (B, T) without gradients, with a chunk's logits at a time."""
    hidden = model.hidden(tokens)
    if not chunks_pay(targets.numel(), model.config.vocab_size, hidden.device):
        return next_token_loss(model.head(hidden), targets, "none")
    chunk = chunk_tokens(hidden.device)
    pieces = zip(hidden.flatten(0, 1).split(chunk), targets.flatten().split(chunk), strict=True)
    return torch.cat([next_token_loss(model.head(h)[None], t[None], "none")[0] for h, t in pieces]).view_as(targets)


def count_parameters(model: nn.Module) -> int:
    """All parameters, the tied head counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of a forward pass per token of a full window: two per weight used, and the reads.

    Training takes three times as many. The reads of the past average half a window: 2 products of C per pair.
    """
    C, N, T = config.d_model, config.num_layers, config.context_length
    weights = N * (5 * C * C + 2 * config.num_slots * C) + config.vocab_size * C
    return 2 * weights + N * 2 * C * T
