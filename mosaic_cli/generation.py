"""Writing text: samplers, and a loop that reads the prompt once and then one token at a time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_cli.core.kernels import HAS_TRITON
from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.decoding import records, step_by_step
from mosaic_cli.device import Placement
from mosaic_cli.errors import UsageError

LEAST_TEMPERATURE = 1e-20  # above 0, by which logits can be divided
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
        if not self.temperature >= 0:
            raise UsageError(f"temperature {self.temperature} is not 0 or more", where="--temperature")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UsageError(
                f"temperature {self.temperature} is below {LEAST_TEMPERATURE}",
                where="--temperature",
                hint="0 takes the likeliest token.",
            )
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
    compiled: bool = False,
) -> Iterator[list[int]]:
    """Continue a prompt, yielding the next token of each sample as it is drawn.

    Each token is read once: the model's cache holds what came before. The first item comes after the whole prompt has
    been read, so the time to it is the prefill's.

    Args:
        model: either kind, on the placement's device.
        prompt: at least one token.
        num_samples: continuations written side by side (the batch).
        seed: of the draws, which leave torch's global generator alone.
        compiled: compile the step of decoding, where steps are recorded.

    Raises:
        UsageError: an empty prompt; with a transformer, more tokens than its context length; steps to be compiled that
            are not recorded.
    """
    if not prompt:
        raise UsageError("the prompt holds no token", hint='Give some text: mosaic generate --ckpt RUN "Once upon"')
    if compiled and not records(model, placement.device):
        raise UsageError(
            f"only recorded steps are compiled: on a GPU with Triton (here: {placement.device}"
            f"{'' if HAS_TRITON else ', no Triton'}), of a transformer or a mosaic v1, nothing edited",
            where="--compile",
            hint="Leave --compile out.",
        )
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
        logits = _read(model, torch.tensor([prompt], device=placement.device), cache, placement)
        if num_samples > 1:  # the prompt is read once, whatever the number of samples
            cache, logits = cache.repeat(num_samples), logits.expand(num_samples, -1)
        after = step_by_step(model, cache, placement, compiled)
        for step in range(max_new_tokens):
            drawn = sample(logits, sampling, generator)
            yield drawn.tolist()
            if step + 1 < max_new_tokens:
                logits = after(drawn)
    finally:
        model.train(was_training)


@dataclass
class Sample:
    """One finished continuation."""

    prompt: str
    text: str
    tokens: int
    """New tokens drawn, the one that ended it among them."""
    stop_reason: str
    """`end_of_text`, `stop` (a stop text appeared; it is left out) or `length`."""


class Writer:
    """Continues a text and streams what it writes: iterate over it for the pieces, then read `samples()`.

    Args:
        prompt: text; an empty one begins a new document.
        max_prompt_tokens: read only this many tokens of the prompt, its last.
        num_samples: continuations written side by side.
        stop: texts that end a continuation.

    Raises:
        UsageError: an empty stop text; no token of the prompt to read; on iterating, as `generate`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        prompt: str,
        placement: Placement,
        *,
        max_prompt_tokens: int | None = None,
        num_samples: int = 1,
        max_new_tokens: int = 200,
        sampling: Sampling | None = None,
        seed: int = 0,
        stop: tuple[str, ...] = (),
        compiled: bool = False,
    ):
        if "" in stop:
            raise UsageError("a stop text is empty", where="--stop", hint="Leave it out to write to the full length.")
        self.prompt, self.end_of_text = prompt, tokenizer.end_of_text
        self.prompt_ids = tokenizer.encode_prompt(prompt)
        if max_prompt_tokens is not None:
            if max_prompt_tokens < 1:
                raise UsageError(
                    f"{max_new_tokens} new tokens leave no room for the prompt",
                    hint=f"At most {max_new_tokens + max_prompt_tokens - 1} fit.",
                )
            self.prompt_ids = self.prompt_ids[-max_prompt_tokens:]
        self.prefill_seconds = self.decode_seconds = 0.0
        self.decoded_tokens = 0  # beyond each sample's first, which the prefill brought
        self._continuations = [_Continuation(tokenizer.stream(), stop) for _ in range(num_samples)]
        self._steps = generate(
            model,
            self.prompt_ids,
            placement,
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            compiled=compiled,
        )

    def __iter__(self) -> Iterator[list[str]]:
        """For each step, the text that became certain in each sample (often empty, never a torn character)."""
        started = time.perf_counter()
        for step, tokens in enumerate(self._steps):
            now = time.perf_counter()
            if step == 0:
                self.prefill_seconds, started = now - started, now
            else:
                self.decode_seconds = now - started
                self.decoded_tokens += len(tokens)
            yield [
                continuation.push(token, token == self.end_of_text)
                for continuation, token in zip(self._continuations, tokens, strict=True)
            ]
            if all(continuation.stop_reason for continuation in self._continuations):
                break
        self._steps.close()
        yield [continuation.finish() for continuation in self._continuations]

    def samples(self) -> list[Sample]:
        """The finished continuations, in order."""
        return [Sample(self.prompt, c.text, c.tokens, c.stop_reason) for c in self._continuations]

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens read per second (each counted once, however many samples share it)."""
        return len(self.prompt_ids) / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens drawn per second after the first, all samples together; None when there was only one step."""
        return self.decoded_tokens / self.decode_seconds if self.decoded_tokens else None


class _Continuation:
    """The text of one sample as it grows, held back where a stop text may be beginning."""

    def __init__(self, stream: object, stop: tuple[str, ...]):
        self.text, self.tokens, self.stop_reason = "", 0, ""
        self._stream, self._stop, self._held = stream, stop, ""

    def push(self, token: int, is_end: bool) -> str:
        if self.stop_reason:
            return ""
        self.tokens += 1
        if is_end:
            self.stop_reason = "end_of_text"
            return ""
        self._held += self._stream.push(token)
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stop_reason = "stop"
            self._held = self._held[: min(found)]
            return ""
        return self._release(len(self._held) - self._possible_stop())

    def finish(self) -> str:
        """The rest of the text, when nothing more will come."""
        self.stop_reason = self.stop_reason or "length"
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        piece, self._held = self._held[:length], self._held[length:]
        self.text += piece
        return piece

    def _possible_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        return max(
            (size for stop in self._stop for size in range(1, len(stop)) if self._held.endswith(stop[:size])),
            default=0,
        )


@torch.inference_mode()
def _read(model: LanguageModel, tokens: Tensor, cache: object, placement: Placement) -> Tensor:
    """Logits (B, V) after the last of the tokens (B, T)."""
    with placement.autocast():
        for chunk in tokens.split(PREFILL_CHUNK, dim=1):
            hidden = model.hidden(chunk, cache)
        return model.head(hidden[:, -1])
