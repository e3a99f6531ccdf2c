"""Batches in a random order that can be stopped and taken up again exactly.

Each epoch cuts the tokens into non-overlapping windows, starting at a random offset, and visits them in a random
order. Both are drawn from the seed and the epoch's number, so the stream's whole state is three integers. Rows
(`rows.py`) are a stream of the same kind.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from mosaic_cli.errors import DataError

IGNORED = -100  # the target where nothing is asked for: torch's ignore_index


class Batch(NamedTuple):
    """Inputs and targets, int64 arrays (rows, T); a target is the token after its input, or `IGNORED`."""

    inputs: np.ndarray
    targets: np.ndarray

    @classmethod
    def of_windows(cls, windows: np.ndarray) -> "Batch":
        """Windows (rows, T + 1) as inputs and, one step shifted, targets."""
        return cls(windows[:, :-1], windows[:, 1:])

    @property
    def asked(self) -> int:
        """Targets that count."""
        return int((self.targets != IGNORED).sum())

    def parts(self, rows: int) -> Iterator["Batch"]:
        """`rows` rows at a time, without the columns after the last target that counts in any of them."""
        for start in range(0, len(self.inputs), rows):
            part = Batch(self.inputs[start : start + rows], self.targets[start : start + rows])
            columns = np.flatnonzero((part.targets != IGNORED).any(axis=0))
            if len(columns):
                end = int(columns[-1]) + 1
                yield Batch(part.inputs[:, :end], part.targets[:, :end])


class Tokens(Protocol):
    """A long sequence of tokens, such as `shards.TokenShards`."""

    def __len__(self) -> int: ...
    def read(self, start: int, stop: int) -> np.ndarray: ...


class EpochStream:
    """An endless iterator over items in an order that is drawn for each epoch from the seed and its number."""

    def __init__(self, batch_size: int, seed: int):
        self.batch_size = batch_size
        self.seed = seed
        self._start_epoch(0, 0)

    def __iter__(self) -> "EpochStream":
        return self

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: seed, epoch, and items of the epoch already given out."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.seed = state["seed"]
        self._start_epoch(state["epoch"], state["position"])

    def _draw_order(self, generator: np.random.Generator) -> np.ndarray:
        """The items of an epoch in their order."""
        raise NotImplementedError

    def _start_epoch(self, epoch: int, position: int) -> None:
        self.order = self._draw_order(np.random.Generator(np.random.PCG64([self.seed, epoch])))
        self.epoch, self.position = epoch, position

    def _next_item(self) -> int:
        if self.position == len(self.order):
            self._start_epoch(self.epoch + 1, 0)
        self.position += 1
        return int(self.order[self.position - 1])


class WindowBatches(EpochStream):
    """Batches of windows (batch_size, context_length): the targets are the inputs, one step shifted.

    Raises:
        DataError: fewer tokens than one window needs.
    """

    def __init__(self, tokens: Tokens, context_length: int, batch_size: int, seed: int):
        check_length(tokens, context_length, "train")
        self.tokens = tokens
        self.context_length = context_length
        super().__init__(batch_size, seed)

    def __next__(self) -> Batch:
        return Batch.of_windows(np.stack([self._next_window() for _ in range(self.batch_size)]))

    def _draw_order(self, generator: np.random.Generator) -> np.ndarray:
        spare = len(self.tokens) - 1 - self.context_length  # how far the first window may move
        self.offset = int(generator.integers(0, min(self.context_length, spare + 1)))
        return generator.permutation((len(self.tokens) - 1 - self.offset) // self.context_length)

    def _next_window(self) -> np.ndarray:
        item = self._next_item()  # first: a new epoch has another offset
        start = self.offset + item * self.context_length
        return self.tokens.read(start, start + self.context_length + 1)


def check_length(tokens: Tokens, context_length: int, split: str) -> None:
    """Raises DataError when `tokens` cannot fill one window and its last target."""
    if len(tokens) < context_length + 1:
        raise DataError(
            f"the {split} split has {len(tokens)} tokens, but one window needs {context_length + 1}",
            where=f"{split} split",
            hint="Prepare more text, hold out another share (data.val_fraction), or lower model.context_length.",
        )
