"""How likely a model finds a text after another: what multiple-choice tasks and perplexities are made of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.device import Placement
from mosaic_cli.errors import DataError, NonFiniteError, UsageError

BATCH_TOKENS = 8192  # read at once when no number of texts is given
READ_CHUNK = 2048  # positions of a text read at once: bounds the memory of a long one
IGNORED = -100  # a target that is not scored


@dataclass(frozen=True)
class Score:
    """What a model gives to a continuation."""

    log_probability: float
    """In nats, summed over its tokens."""
    is_greedy: bool
    """Whether each of its tokens is the likeliest at its place."""


def score_continuations(
    model: LanguageModel,
    pairs: Sequence[tuple[list[int], list[int]]],
    placement: Placement,
    *,
    max_length: int | None = None,
    batch_size: int | None = None,
) -> Iterator[tuple[int, Score]]:
    """Score each continuation after its context, yielding (index of the pair, score) as they are found, longest first.

    The scores do not depend on the batch beyond rounding: shorter texts are padded behind their end.

    Args:
        model: either kind, on the placement's device; left in the mode it was in.
        pairs: (context, continuation) as tokens, at least one of each.
        max_length: tokens read at most; of a longer text the beginning is left out. A transformer needs it.
        batch_size: texts read side by side; default as many as make `BATCH_TOKENS` tokens.

    Raises:
        DataError: a context or continuation without a token.
        UsageError: a continuation longer than `max_length`.
        NonFiniteError: a log-probability that is not finite.
    """
    for context, continuation in pairs:
        if not context or not continuation:
            raise DataError(
                f"a context of {len(context)} and a continuation of {len(continuation)} tokens cannot be scored",
                hint="Both need a token. Where the two meet inside of a word, its token may swallow the continuation.",
            )
        if max_length is not None and len(continuation) > max_length:
            raise UsageError(
                f"a continuation of {len(continuation)} tokens is longer than the {max_length} that are read",
                where="max_length",
                hint="A mosaic has no such limit.",
            )
    texts = [_last_window(*pair, max_length) for pair in pairs]
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index][0]))
    was_training = model.training
    model.eval()
    try:
        start = 0
        while start < len(order):
            rows = batch_size or max(1, BATCH_TOKENS // len(texts[order[start]][0]))
            batch = order[start : start + rows]
            yield from zip(batch, _score(model, [texts[index] for index in batch], placement), strict=True)
            start += rows
    finally:
        model.train(was_training)


def _last_window(context: list[int], continuation: list[int], max_length: int | None) -> tuple[list[int], list[int]]:
    """Inputs and targets of equal length, not longer than `max_length`; only the continuation's targets count."""
    inputs = (context + continuation)[:-1]
    targets = [IGNORED] * (len(context) - 1) + continuation
    start = 0 if max_length is None else max(0, len(inputs) - max_length)
    return inputs[start:], targets[start:]


@torch.inference_mode()
def _score(model: LanguageModel, texts: list[tuple[list[int], list[int]]], placement: Placement) -> list[Score]:
    inputs, wanted = zip(*texts, strict=True)
    tokens, targets = _padded(inputs, 0).to(placement.device), _padded(wanted, IGNORED).to(placement.device)
    cache = model.make_cache() if tokens.shape[1] > READ_CHUNK else None
    found, rows = [], []
    for chunk, goals in zip(tokens.split(READ_CHUNK, dim=1), targets.split(READ_CHUNK, dim=1), strict=True):
        scored = goals != IGNORED
        with placement.autocast():
            logits = model.head(model.hidden(chunk, cache)[scored]).float()  # (tokens, V)
        losses = F.cross_entropy(logits, goals[scored], reduction="none")
        found.append(torch.stack([losses, logits.argmax(dim=-1) != goals[scored]]).cpu().double())
        rows.append(scored.nonzero()[:, 0].cpu())
    sums = torch.zeros(2, len(texts), dtype=torch.float64).index_add_(1, torch.cat(rows), torch.cat(found, dim=1))
    if not sums.isfinite().all():
        raise NonFiniteError("a log-probability is not finite", hint="Use an earlier checkpoint: RUN@STEP.")
    return [Score(-loss, wrong == 0) for loss, wrong in sums.T.tolist()]


def _padded(rows: Sequence[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
