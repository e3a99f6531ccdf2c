"""Loss, perplexity and bits per byte of a text, whole and by position in the window."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from mosaic_cli.core.model import LanguageModel, token_losses
from mosaic_cli.data.batches import IGNORED, Batch, Tokens, check_length
from mosaic_cli.data.rows import Rows
from mosaic_cli.device import Placement
from mosaic_cli.intervals import estimate_ratio

MAX_EXPONENT = math.log(sys.float_info.max)


@dataclass
class LanguageResult:
    """What a model pays for a text, in nats; windows of `context_length` tokens, side by side, none left out.

    Of a split of rows, each row is a window, and only targets that count are tokens here.
    """

    context_length: int
    total_tokens: int
    num_bytes: float | None = None
    window_sums: list[float] = field(default_factory=list)  # summed loss of each window
    window_sizes: list[int] = field(default_factory=list)  # its predicted tokens
    position_sums: np.ndarray = None
    position_counts: np.ndarray = None
    windows: list[np.ndarray] | None = None  # losses of whole windows, where they were asked for

    def __post_init__(self):
        self.position_sums = np.zeros(self.context_length)
        self.position_counts = np.zeros(self.context_length, dtype=np.int64)

    def add(self, losses: np.ndarray, asked: np.ndarray) -> None:
        """Take in the losses (windows, tokens) of some windows, in float64: 0 where the boolean `asked` is false."""
        T = losses.shape[1]
        self.window_sums.extend(losses.sum(axis=1).tolist())
        self.window_sizes.extend(asked.sum(axis=1).tolist())
        self.position_sums[:T] += losses.sum(axis=0)
        self.position_counts[:T] += asked.sum(axis=0)
        if self.windows is not None and self.context_length == T:
            self.windows.append(losses.astype(np.float32))

    def losses_of_windows(self) -> np.ndarray:
        """Losses (windows, positions) of the whole windows; they must have been kept."""
        return np.concatenate([np.empty((0, self.context_length), np.float32), *self.windows])

    @property
    def tokens(self) -> int:
        """Tokens predicted so far."""
        return sum(self.window_sizes)

    @property
    def loss(self) -> float:
        """Mean loss in nats per token."""
        return math.fsum(self.window_sums) / self.tokens

    def loss_of_first(self, tokens: int) -> float:
        """The loss over the first `tokens` predicted tokens, in whole windows, but at least one."""
        windows = max(1, int(np.searchsorted(np.cumsum(self.window_sizes), tokens, side="right")))
        return math.fsum(self.window_sums[:windows]) / sum(self.window_sizes[:windows])

    @property
    def perplexity(self) -> float:
        """exp(loss), or infinity where that is beyond what a float holds."""
        return math.exp(self.loss) if self.loss < MAX_EXPONENT else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """Summed loss in bits over the bytes of the text that the predicted tokens stand for; None if not known."""
        if self.num_bytes is None:
            return None
        return self.loss * self.total_tokens / (math.log(2) * self.num_bytes)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the loss. The window is the unit: tokens of one window are not independent.

        Infinite with a single window.
        """
        whole = estimate_ratio(self.window_sums, self.window_sizes)
        return (-math.inf, math.inf) if whole.low is None else (whole.low, whole.high)

    @property
    def positions(self) -> list[int]:
        """Positions of the window, from 0, at which a token was predicted."""
        return np.flatnonzero(self.position_counts).tolist()

    @property
    def loss_by_position(self) -> list[float]:
        """Mean loss at each of `positions`."""
        return (self.position_sums[self.positions] / self.position_counts[self.positions]).tolist()


def evaluate_language(
    model: LanguageModel,
    tokens: Tokens | Rows,
    placement: Placement,
    *,
    context_length: int | None = None,
    max_tokens: int | None = None,
    num_bytes: float | None = None,
    batch_tokens: int = 8192,
    keep_windows: bool = False,
) -> Iterator[LanguageResult]:
    """Score a text, yielding the growing result after each batch; the last one is the answer.

    Every token but the first is predicted exactly once; the last window may be shorter. Rows are read as they are. The
    result does not depend on `batch_tokens` beyond rounding.

    Args:
        model: either kind, on the placement's device; left in the mode it was in.
        tokens: the text, or rows.
        context_length: tokens a window reads; default the model's own. Rows have their own length.
        max_tokens: predict no more than this many tokens from the start, in whole windows, but at least one.
        num_bytes: bytes of the whole text, for bits per byte.
        batch_tokens: tokens read at once.
        keep_windows: keep the losses of every whole window, four bytes a token; rows have none.

    Raises:
        DataError: fewer tokens than one window needs.
    """
    if isinstance(tokens, Rows):
        result = LanguageResult(tokens.rule.longest - 1, tokens.asked_within(max_tokens))
        batches = tokens.in_order(max_tokens, batch_tokens)
    else:
        T = context_length or model.config.context_length
        check_length(tokens, 1, "val")
        whole = len(tokens) - 1
        end = whole if max_tokens is None or max_tokens >= whole else max(T, max_tokens // T * T)
        end = min(end, whole)
        result = LanguageResult(T, end, num_bytes if end == whole else None, windows=[] if keep_windows else None)
        batches = _windows(tokens, T, end, batch_tokens)
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            result.add(_losses(model, batch, placement), batch.targets != IGNORED)
            yield result
    finally:
        model.train(was_training)


def _windows(tokens: Tokens, T: int, end: int, batch_tokens: int) -> Iterator[Batch]:
    """Windows of T predicted tokens side by side, up to token `end`, where a shorter one may be left."""
    rows, full = max(1, batch_tokens // T), end // T
    for first in range(0, full, rows):
        last = min(first + rows, full)
        yield Batch.of_windows(np.stack([tokens.read(w * T, (w + 1) * T + 1) for w in range(first, last)]))
    if end % T:
        yield Batch.of_windows(tokens.read(full * T, end + 1)[None])


@torch.inference_mode()
def _losses(model: LanguageModel, batch: Batch, placement: Placement) -> np.ndarray:
    inputs, targets = (placement.move(array) for array in batch)
    with placement.autocast():
        losses = token_losses(model, inputs, targets)
    return losses.double().cpu().numpy()
