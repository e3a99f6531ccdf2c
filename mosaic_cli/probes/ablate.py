"""What memories are worth: the loss of a text without them, one set of memories at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.model import LanguageModel, next_token_loss
from mosaic_cli.data.batches import Tokens
from mosaic_cli.device import Placement
from mosaic_cli.errors import DataError, NonFiniteError, UsageError
from mosaic_cli.intervals import estimate_mean
from mosaic_cli.probes.edits import Change, Changes, Memories, edited, stored_pairs
from mosaic_cli.probes.reading import has_slots, pair_kinds

METHODS = ("drop", "zero", "mean")
BATCH_TOKENS = 4096  # tokens read at once: a dense retrieval holds tokens x pairs weights per head


@dataclass(frozen=True)
class Ablation:
    """The loss of a text with and without some memories, in nats per token.

    interval: 95 % confidence interval of the change, paired by window; None with a single window.
    """

    memories: Memories
    baseline: float
    loss: float
    interval: tuple[float, float] | None

    @property
    def change(self) -> float:
        """What forgetting the memories costs; negative where they did harm."""
        return self.loss - self.baseline


def every_memory(model: LanguageModel, slots: bool = True) -> list[Memories]:
    """Every head of every kind that the model has, one at a time, then each layer's kind as a whole.

    `slots`: whether slots are among them, where the model has any.
    """
    kinds = pair_kinds(model) + (("slot",) if slots and has_slots(model) else ())
    layers, heads = range(model.config.num_layers), range(model.config.num_heads)
    single = [Memories(layer, head, kind, None) for kind in kinds for layer in layers for head in heads]
    return single + [Memories(layer, None, kind, None) for kind in kinds for layer in layers]


def first_windows(tokens: Tokens, context_length: int, count: int) -> Tensor:
    """The first `count` whole windows of a text, side by side, or as many as it has: (W, context_length + 1).

    Raises:
        DataError: the text is shorter than one window.
    """
    if len(tokens) < context_length + 1:
        raise DataError(
            f"the text has {len(tokens)} tokens, but one window needs {context_length + 1}",
            hint="Name a longer text with --on, or shorter windows with --context.",
        )
    count = min(count, (len(tokens) - 1) // context_length)
    starts = range(0, count * context_length, context_length)
    return torch.from_numpy(np.stack([tokens.read(start, start + context_length + 1) for start in starts]))


def ablate(
    model: LanguageModel,
    windows: Tensor,
    memories: list[Memories],
    placement: Placement,
    *,
    method: str = "drop",
    distances: tuple[int, int] | None = None,
) -> Iterator[Ablation]:
    """Measure the loss on windows without each of some sets of memories, one after the other.

    Args:
        model: either kind, on the placement's device and in evaluation mode.
        windows: (W, T + 1) tokens; T are read, each predicts the next.
        memories: names; each is taken away alone, and a pair's number is its position in every window.
        method: `drop` forgets them, the others of the head take up their weight, and a head with nothing left reads
            zero. With `zero` and `mean` they keep their weight, but their values are zero, or the mean of all values
            of that head that the reader sees (so never of later ones; for slots: of all slots).
        distances: (first, last), only pairs that stand so far from their reader; 1 is the newest pair it sees.

    Raises:
        UsageError: an unknown method, a memory that does not exist, distances of slots or below 1, or a transformer
            and windows longer than its context. All before the first result.
        NonFiniteError: the loss with all memories is not finite.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} is not one of {', '.join(METHODS)}", where="--method")
    T = windows.shape[1] - 1
    changes = [_without(model, one, T, method, distances) for one in memories]
    baseline = _window_losses(model, windows, placement, {})
    if not math.isfinite(sum(baseline)):
        raise NonFiniteError("the model's loss is not finite", hint="Use an earlier checkpoint: --ckpt RUN@STEP.")
    return _ablations(model, windows, placement, baseline, list(zip(memories, changes, strict=True)))


def _ablations(
    model: LanguageModel,
    windows: Tensor,
    placement: Placement,
    baseline: list[float],
    changes: list[tuple[Memories, Changes]],
) -> Iterator[Ablation]:
    for memories, change in changes:
        losses = _window_losses(model, windows, placement, change)
        # paired by window, which is the unit: tokens of one are not independent
        found = estimate_mean([loss - before for loss, before in zip(losses, baseline, strict=True)])
        interval = None if found.low is None else (found.low, found.high)
        yield Ablation(memories, fmean(baseline), fmean(losses), interval)


def _without(
    model: LanguageModel, memories: Memories, num_tokens: int, method: str, distances: tuple[int, int] | None
) -> Changes:
    """The change that takes memories away from texts of `num_tokens` tokens."""
    pairs = stored_pairs(model, num_tokens)
    memories.check(model, pairs)
    if distances is not None:
        _check_distances(memories, distances)
    config = model.config
    count = config.num_slots if memories.kind == "slot" else pairs
    chosen = torch.zeros(1, config.num_heads, count, dtype=torch.bool, device=model.embedding.weight.device)
    chosen[:, memories.heads, memories.indices] = True
    how = {"dropped": chosen} if method == "drop" else {"blanked": chosen, "to_mean": method == "mean"}
    return {(layer, memories.kind): Change(**how, distances=distances) for layer in memories.layers(model)}


def _check_distances(memories: Memories, distances: tuple[int, int]) -> None:
    first, last = distances
    if not 1 <= first <= last:
        raise UsageError(
            f"distances {first}-{last} are not a range from 1 on", where="--distance", hint="Like --distance 1-16."
        )
    if memories.kind == "slot":
        raise UsageError(
            f"{memories} stands at no distance: slots are not a part of the text",
            where="--distance",
            hint="Name pairs: --memories L*.H*.ctx",
        )


@torch.no_grad()
def _window_losses(model: LanguageModel, windows: Tensor, placement: Placement, changes: Changes) -> list[float]:
    """Mean loss of each window."""
    losses: list[float] = []
    with edited(model, changes), placement.autocast():
        for batch in windows.split(max(1, BATCH_TOKENS // windows.shape[1])):
            batch = batch.to(placement.device)
            by_token = next_token_loss(model(batch[:, :-1]), batch[:, 1:], reduction="none")  # (B, T)
            losses.extend(by_token.double().mean(1).tolist())
    return losses
