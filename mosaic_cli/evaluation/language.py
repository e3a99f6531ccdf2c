"""Loss, perplexity and bits per byte of a text, whole and by position in the window."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.model import LanguageModel, next_token_loss
from mosaic_cli.data.batches import Tokens, check_length
from mosaic_cli.device import Placement
from mosaic_cli.intervals import Z_95

MAX_EXPONENT = math.log(sys.float_info.max)


@dataclass
class LanguageResult:
    """What a model pays for a text, in nats; windows of `context_length` tokens, side by side, none left out."""

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

    def add(self, losses: np.ndarray) -> None:
        """Take in the losses (windows, tokens) of some windows, in float64."""
        self.window_sums.extend(losses.sum(axis=1).tolist())
        self.window_sizes.extend([losses.shape[1]] * len(losses))
        self.position_sums[: losses.shape[1]] += losses.sum(axis=0)
        self.position_counts[: losses.shape[1]] += len(losses)
        if self.windows is not None and losses.shape[1] == self.context_length:
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
        windows = max(1, tokens // self.context_length)
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

        Normal approximation for a ratio of sums (losses over tokens); infinite with a single window.
        """
        n = len(self.window_sums)
        if n < 2:
            return (-math.inf, math.inf)
        residuals = np.array(self.window_sums) - self.loss * np.array(self.window_sizes)
        error = Z_95 * math.sqrt(float(np.square(residuals).sum()) * n / (n - 1)) / self.tokens
        return (self.loss - error, self.loss + error)

    @property
    def loss_by_position(self) -> list[float]:
        """Mean loss at each position of the window, from 0."""
        seen = self.position_counts > 0
        return (self.position_sums[seen] / self.position_counts[seen]).tolist()


def evaluate_language(
    model: LanguageModel,
    tokens: Tokens,
    placement: Placement,
    *,
    context_length: int | None = None,
    max_tokens: int | None = None,
    num_bytes: float | None = None,
    batch_tokens: int = 8192,
    keep_windows: bool = False,
) -> Iterator[LanguageResult]:
    """Score a text, yielding the growing result after each batch; the last one is the answer.

    Every token but the first is predicted exactly once; the last window may be shorter. The result does not depend on
    `batch_tokens` beyond rounding.

    Args:
        model: either kind, on the placement's device; left in the mode it was in.
        tokens: the text.
        context_length: tokens a window reads; default the model's own.
        max_tokens: read no more than this many tokens from the start, in whole windows, but at least one.
        num_bytes: bytes of the whole text, for bits per byte.
        batch_tokens: tokens read at once.
        keep_windows: keep the losses of every whole window, four bytes a token.

    Raises:
        DataError: fewer tokens than one window needs.
    """
    T = context_length or model.config.context_length
    check_length(tokens, 1, "val")
    end = min(len(tokens) - 1, max(T, max_tokens // T * T) if max_tokens else len(tokens))
    result = LanguageResult(T, end, num_bytes if end == len(tokens) - 1 else None, windows=[] if keep_windows else None)
    rows = max(1, batch_tokens // T)
    was_training = model.training
    model.eval()
    try:
        full = end // T
        for first in range(0, full, rows):
            windows = [tokens.read(w * T, (w + 1) * T + 1) for w in range(first, min(first + rows, full))]
            result.add(_losses(model, np.stack(windows), placement))
            yield result
        if end % T:
            result.add(_losses(model, tokens.read(full * T, end + 1)[None], placement))
            yield result
    finally:
        model.train(was_training)


@torch.inference_mode()
def _losses(model: LanguageModel, windows: np.ndarray, placement: Placement) -> np.ndarray:
    batch: Tensor = torch.from_numpy(windows).to(placement.device)
    with placement.autocast():
        logits = model(batch[:, :-1])
    return next_token_loss(logits, batch[:, 1:], reduction="none").double().cpu().numpy()
