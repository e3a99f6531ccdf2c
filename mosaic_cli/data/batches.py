"""Training windows in a random order that can be stopped and taken up again exactly.

Each epoch cuts the tokens into non-overlapping windows, starting at a random offset, and visits them in a random
order. Both are drawn from the seed and the epoch's number, so the stream's whole state is three integers.
"""

from typing import Protocol

import numpy as np

from mosaic_cli.errors import DataError


class Tokens(Protocol):
    """A long sequence of tokens, such as `shards.TokenShards`."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> np.ndarray: ...


class WindowBatches:
    """An endless iterator of batches (batch_size, context_length + 1) of int64 tokens.

    Row r holds the inputs [:-1] and, one step shifted, the targets [1:].

    Raises:
        DataError: fewer tokens than one window needs.
    """

    def __init__(self, tokens: Tokens, context_length: int, batch_size: int, seed: int):
        check_length(tokens, context_length, "train")
        self.tokens = tokens
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        self._start_epoch(0, 0)

    def __iter__(self) -> "WindowBatches":
        return self

    def __next__(self) -> np.ndarray:
        return np.stack([self._next_window() for _ in range(self.batch_size)])

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: seed, epoch, and windows of the epoch already given out."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.seed = state["seed"]
        self._start_epoch(state["epoch"], state["position"])

    def _start_epoch(self, epoch: int, position: int) -> None:
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        spare = len(self.tokens) - 1 - self.context_length  # how far the first window may move
        self.offset = int(generator.integers(0, min(self.context_length, spare + 1)))
        num_windows = (len(self.tokens) - 1 - self.offset) // self.context_length
        self.order = generator.permutation(num_windows)
        self.epoch, self.position = epoch, position

    def _next_window(self) -> np.ndarray:
        if self.position == len(self.order):
            self._start_epoch(self.epoch + 1, 0)
        start = self.offset + int(self.order[self.position]) * self.context_length
        self.position += 1
        return self.tokens.read(start, start + self.context_length + 1)


def check_length(tokens: Tokens, context_length: int, split: str) -> None:
    """Raises DataError when `tokens` cannot fill one window and its last target."""
    if len(tokens) < context_length + 1:
        raise DataError(
            f"the {split} split has {len(tokens)} tokens, but one window needs {context_length + 1}",
            where=f"{split} split",
            hint="Prepare more text, hold out another share (data.val_fraction), or lower model.context_length.",
        )
