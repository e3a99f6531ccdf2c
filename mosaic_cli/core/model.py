"""What every command needs of a model, whichever kind it is."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_cli.core import ops
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.loss import ChunkedLoss, chunk_tokens, chunks_pay
from mosaic_cli.core.memory import PairMemory, PersistentMemory
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.core.transformer import Transformer

WORTH_LOADING = 2**34  # tokens to be decoded times parameters to be read for each, for which loops are worth a second


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
    def begin_step(self, seed: int, step: int) -> None: ...


def build_model(config: ModelConfig) -> Mosaic | Transformer:
    """A model of the kind that the configuration names, with its starting values drawn from torch's generator."""
    return {"mosaic": Mosaic, "transformer": Transformer}[config.kind](config)


def arrange_for_decoding(model: nn.Module, dtype: torch.dtype = torch.float32, tokens: int = 0) -> bool:
    """Have a model read its weights faster, one token at a time, in place.

    One product makes the projections of keys and values. On a CPU slots lie in another order, unless loops read them.
    Elsewhere matrices are rounded to the dtype of products once, not for each token; embeddings, which products do not
    take, are rounded with them.
    Not for a model that is trained on: its steps would round otherwise than those of the run it came from.

    Args:
        dtype: of products.
        tokens: how many are going to be decoded, of all texts together. If that is much work for a CPU, large matrices
            and memories may be read by compiled loops, which take a second to load.

    Returns:
        Whether they may be.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if not on_cpu:
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.to(dtype)
    loops = on_cpu and tokens * count_parameters(model) >= WORTH_LOADING
    for module in model.modules():
        if hasattr(module, "loops"):
            module.loops = loops
        if isinstance(module, PairMemory):
            module.join_projections()
        if isinstance(module, PersistentMemory) and on_cpu and not loops:
            module.turn_slots()
    return loops


def next_token_loss(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats per token, computed in float32 or wider; logits (B, T, V), targets (B, T).

    A target of -100 does not count and costs 0. `reduction` is `mean` over those that count, `sum`, or `none` for the
    loss of each token (B, T).
    """
    wide = ops.wide(logits.flatten(0, 1))
    loss = F.cross_entropy(wide, targets.flatten(), reduction=reduction)
    return loss.view_as(targets) if reduction == "none" else loss


def training_loss(model: LanguageModel, tokens: Tensor, targets: Tensor) -> Tensor:
    """`next_token_loss(model(tokens), targets, "sum")` with its gradients, but the logits are cut up where that pays.

    `tokens` and `targets` are (B, T); the loss is ().
    """
    hidden, head = model.hidden(tokens), model.embedding.weight
    if chunks_pay(targets.numel(), len(head), hidden.device):
        return ChunkedLoss.apply(hidden.flatten(0, 1), head, targets.flatten())
    return next_token_loss(model.head(hidden), targets, "sum")


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


def parameters_of(config: ModelConfig) -> int:
    """Parameters of a model of this shape, which is not made."""
    with torch.device("meta"):
        return count_parameters(build_model(config))


def flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of a forward pass per token of a full window: two per weight used, and the reads.

    Training takes three times as many. A read costs 2 products of C per pair.
    """
    C, N = config.d_model, config.num_layers
    weights = N * config.block_weights + config.vocab_size * C
    memories = config.memories if config.kind == "mosaic" else ("full",)
    return 2 * weights + round(N * 4 * C * sum(_mean_pairs(memory, config) for memory in memories))


def _mean_pairs(memory: str, config: ModelConfig) -> float:
    """Pairs that a position reads, averaged over a window of T tokens; where all are read, half a window."""
    T = config.context_length
    if memory == "short":
        filling = min(T, config.short_window)
        return (filling * filling / 2 + (T - filling) * filling) / T
    held = T if memory == "full" else max(0, T - config.long_delay)
    return held * held / 2 / T
