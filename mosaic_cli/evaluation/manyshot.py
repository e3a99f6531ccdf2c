"""Many-shot classification: how many labels are right, by how many requests with their labels came before.

A label is right when each of its two tokens is the likeliest one, by all tokens before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.tasks.manyshot import ManyShot, Shot
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement
from mosaic_cli.intervals import Estimate, estimate_ratio

BATCH = 8  # rows read at once


@dataclass
class ManyShotResult:
    """For each row, for each request in turn, whether its label was right; None where a transformer cannot read."""

    rows: list[list[tuple[Shot, bool | None]]] = field(default_factory=list)

    def accuracy(self, first: int, last: int, shown: bool = True) -> Estimate:
        """Share of right labels of requests first .. last, counted from 0; the row is the unit of the interval.

        Args:
            shown: of requests whose class came before; or else of those whose class had not.
        """
        asked = [
            [right for shot, right in self._read(row, first, last) if (shot.seen > 0) == shown] for row in self.rows
        ]
        asked = [row for row in asked if row]
        return estimate_ratio([sum(row) for row in asked], list(map(len, asked))) if asked else Estimate(*[None] * 3, 0)

    def chance(self, first: int, last: int) -> float | None:
        """Accuracy of guessing among the labels that the row has shown, at requests whose class came before."""
        chances = [1 / shot.labels for row in self.rows for shot, _ in self._read(row, first, last) if shot.seen]
        return sum(chances) / len(chances) if chances else None

    def _read(self, row: list[tuple[Shot, bool | None]], first: int, last: int) -> list[tuple[Shot, bool]]:
        return [(shot, right) for shot, right in row[first : last + 1] if right is not None]


@torch.inference_mode()
def evaluate_manyshot(
    model: LanguageModel, tokenizer: Tokenizer, placement: Placement, problems: list[ManyShot]
) -> Iterator[ManyShotResult]:
    """Score a model, yielding the growing result after each batch.

    Args:
        model: either kind, on the placement's device, in evaluation mode; its tokens are the task's.
    """
    limit = model.config.longest_text
    result = ManyShotResult()
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        texts = [tokenizer.encode(problem.text) for problem in batch]
        inputs = torch.zeros(len(batch), max(map(len, texts)), dtype=torch.long)  # the filling comes after all else
        for row, ids in zip(inputs, texts, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        with placement.autocast():
            said = model(inputs[:, :limit].to(placement.device)).argmax(-1).tolist()
        for ids, heard, problem in zip(texts, said, batch, strict=True):
            result.rows.append([(shot, _right(heard, ids, shot.position)) for shot in problem.shots])
        yield result


def _right(said: list[int], tokens: list[int], position: int) -> bool | None:
    """Whether both tokens at position and after it were said one token earlier."""
    if position + 1 > len(said):
        return None
    return said[position - 1 : position + 1] == tokens[position : position + 2]
