"""Rows: a split of whole problems, each read by itself, of which some tokens are asked for.

On disk they are a split like any other: a row is what stands before an end-of-text token. The manifest's `rows` says
which tokens are asked for.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from mosaic_cli.data.batches import IGNORED, Batch, EpochStream, Tokens, WindowBatches
from mosaic_cli.data.shards import SCAN_TOKENS, Manifest, RowRule, TokenShards, open_split
from mosaic_cli.errors import UsageError


class Rows:
    """The rows of one split.

    Args:
        tokens: rows of at least two tokens, end-of-text after each.
        rule: which targets count.
    """

    def __init__(self, tokens: TokenShards, rule: RowRule, end_of_text: int):
        self._tokens, self.rule = tokens, rule
        reads = (range(at, min(at + SCAN_TOKENS, len(tokens))) for at in range(0, len(tokens), SCAN_TOKENS))
        ends = [at.start + np.flatnonzero(tokens.read(at.start, at.stop) == end_of_text) for at in reads]
        self._ends = np.concatenate([[-1], *ends])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def length(self, row: int) -> int:
        """Tokens of one row."""
        return int(self._ends[row + 1] - self._ends[row]) - 1

    def read(self, row: int) -> np.ndarray:
        """The tokens of one row, end-of-text left out, as int64."""
        return self._tokens.read(int(self._ends[row]) + 1, int(self._ends[row + 1]))

    def batch(self, rows: list[int]) -> Batch:
        """Rows as inputs and targets (len(rows), tokens of the longest - 1), shorter ones filled up at their end."""
        read = [self.read(row) for row in rows]
        inputs = np.zeros((len(rows), max(map(len, read)) - 1), dtype=np.int64)
        targets = np.full_like(inputs, IGNORED)
        for tokens, row_inputs, row_targets in zip(read, inputs, targets, strict=True):
            n = len(tokens) - 1
            row_inputs[:n] = tokens[:-1]
            row_targets[:n] = np.where(self.asked(tokens), tokens[1:], IGNORED)
        return Batch(inputs, targets)

    def asked(self, tokens: np.ndarray) -> np.ndarray:
        """Which of the targets tokens[1:] count: an array of booleans (len(tokens) - 1,)."""
        asked = ~np.isin(tokens[1:], self.rule.ignored)
        if self.rule.after is not None:
            asked[: np.flatnonzero(tokens == self.rule.after)[0] + 1] = False
        return asked

    def asked_within(self, max_tokens: int | None) -> int:
        """Targets that count in the rows that `in_order` gives for the same bound."""
        return sum(self._asked[: self._rows_within(max_tokens)])

    def in_order(self, max_tokens: int | None, batch_tokens: int) -> Iterator[Batch]:
        """All rows from the first on, or whole ones with at most `max_tokens` targets that count, but at least one.

        Args:
            batch_tokens: tokens of a batch, the filling included; at least one row.
        """
        waiting: list[int] = []
        longest = 0
        for row in range(self._rows_within(max_tokens)):
            longest = max(longest, self.length(row))
            if waiting and (len(waiting) + 1) * longest > batch_tokens:
                yield self.batch(waiting)
                waiting, longest = [], self.length(row)
            waiting.append(row)
        yield self.batch(waiting)

    @cached_property
    def _asked(self) -> list[int]:
        """Targets that count in each row."""
        return [int(self.asked(self.read(row)).sum()) for row in range(len(self))]

    def _rows_within(self, max_tokens: int | None) -> int:
        if max_tokens is None:
            return len(self)
        return max(1, int(np.searchsorted(np.cumsum(self._asked), max_tokens, side="right")))


class RowBatches(EpochStream):
    """Batches of rows, the shortest row first, so that parts of a batch can be trimmed to their own longest.

    Raises:
        UsageError: a row may be longer than `context_length`.
    """

    def __init__(self, rows: Rows, context_length: int, batch_size: int, seed: int):
        if rows.rule.longest - 1 > context_length:
            raise UsageError(
                f"a row may have {rows.rule.longest} tokens, more than a context of {context_length} can learn from",
                where="model.context_length",
                hint=f"Set it to {rows.rule.longest - 1} or more.",
            )
        self.rows = rows
        super().__init__(batch_size, seed)

    def __next__(self) -> Batch:
        return self.rows.batch(sorted((self._next_item() for _ in range(self.batch_size)), key=self.rows.length))

    def _draw_order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(self.rows))


def open_data(folder: str | Path, split: str, verify: bool = True) -> TokenShards | Rows:
    """The tokens of one split, or its rows where the data consists of rows; `verify` as for `open_split`.

    Raises:
        UsageError, DataError: see `open_split`.
    """
    tokens, manifest = open_split(folder, split, verify), Manifest.load(folder)
    return tokens if manifest.rows is None else Rows(tokens, manifest.rows, manifest.end_of_text)


def batches_of(data: Tokens | Rows, context_length: int, batch_size: int, seed: int) -> WindowBatches | RowBatches:
    """The stream of training batches that the kind of data calls for; raises as these do."""
    stream = RowBatches if isinstance(data, Rows) else WindowBatches
    return stream(data, context_length, batch_size, seed)
