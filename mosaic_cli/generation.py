"""Writing text: samplers, and a loop that reads the prompt once and then one token at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.device import Placement
from mosaic_cli.errors import UsageError

PREFILL_CHUNK = 2048  # tokens of a prompt read at once: bounds the memory of reading a long one


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The filters apply in the order of the fields.

    Raises:
        UsageError: a value out of range.
    """

    temperature: float = 0.8
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    top_p: float | None = None
    """Keep the likeliest tokens that together reach probability p."""
    min_p: float | None = None
    """Keep tokens at least this share as likely as the likeliest."""

    def __post_init__(self):
        if self.temperature < 0:
            raise UsageError(f"temperature {self.temperature} is negative", where="--temperature")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k {self.top_k} keeps no token", where="--top-k")
        for name, value in (("top_p", self.top_p), ("min_p", self.min_p)):
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"{name} {value} is not in (0, 1]", where=f"--{name.replace('_', '-')}")


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw one token for each row of logits (B, V) -> (B,)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filtered_probabilities(logits, sampling)
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logits.device)


def filtered_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (B, V) that `sample` draws from, in float32; temperature above 0."""
    logits = logits.float() / sampling.temperature
    if sampling.top_k is not None:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if sampling.top_p is not None:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the token that crosses p is kept
        probabilities = probabilities.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0)
    if sampling.min_p is not None:
        floor = sampling.min_p * probabilities.max(dim=-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < floor, 0)
    return probabilities / probabilities.sum(dim=-1, keepdim=True)


def generate(
    model: LanguageModel,
    prompt: list[int],
    placement: Placement,
    *,
    num_samples: int = 1,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Continue a prompt, yielding the next token of each sample as it is drawn.

    Each token is read once: the model's cache holds what came before. The first item comes after the whole prompt has
    been read, so the time to it is the prefill's.

    Args:
        model: either kind, on the placement's device.
        prompt: at least one token.
        num_samples: continuations written side by side (the batch).
        seed: of the draws, which leave torch's global generator alone.

    Raises:
        UsageError: an empty prompt; with a transformer, more tokens than its context length.
    """
    if not prompt:
        raise UsageError("the prompt holds no token", hint='Give some text: mosaic generate --ckpt RUN "Once upon"')
    if model.config.kind == "transformer" and len(prompt) + max_new_tokens - 1 > model.config.context_length:
        raise UsageError(
            f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones do not fit the transformer's context "
            f"of {model.config.context_length}",
            where="--max-new-tokens",
            hint=f"At most {max(0, model.config.context_length - len(prompt) + 1)} new tokens fit; a mosaic has no "
            "such limit.",
        )
    sampling = sampling or Sampling()
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    try:
        cache = model.make_cache()
        tokens = torch.tensor([prompt], device=placement.device).expand(num_samples, -1)
        logits = _read(model, tokens, cache, placement)
        for step in range(max_new_tokens):
            drawn = sample(logits, sampling, generator)
            yield drawn.tolist()
            if step + 1 < max_new_tokens:
                logits = _read(model, drawn[:, None], cache, placement)
    finally:
        model.train(was_training)


@torch.inference_mode()
def _read(model: LanguageModel, tokens: Tensor, cache: object, placement: Placement) -> Tensor:
    """Logits (B, V) after the last of the tokens (B, T)."""
    with placement.autocast():
        for chunk in tokens.split(PREFILL_CHUNK, dim=1):
            hidden = model.hidden(chunk, cache)
        return model.head(hidden[:, -1])
