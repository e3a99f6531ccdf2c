"""RegBench's two metrics (arXiv 2401.12973), on languages that nothing was trained on.

After each character that is read, the automaton allows some letters, all alike. Accuracy is the share of positions
whose likeliest token is one of them; TVD is the mean total variation distance, half the summed difference between the
model's distribution over all its tokens and the automaton's. A problem's last character is not read: nothing follows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.tasks.regbench import LETTERS, Problem
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement
from mosaic_cli.evaluation.ngrams import ngram_predictions
from mosaic_cli.intervals import Estimate, estimate_ratio

BATCH = 8  # problems read at once


@dataclass
class RegBenchResult:
    """What was predicted of some problems, a number each: positions right, summed distance, positions."""

    right: list[int] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def add(self, predicted: np.ndarray, problem: Problem) -> None:
        """Take in the distributions (positions, tokens) after the first characters of a problem; letters come first."""
        right, distance = compare(predicted, problem.language.next_letters(problem.text)[: len(predicted)])
        self.right.append(int(right.sum()))
        self.distance.append(float(distance.sum()))
        self.positions.append(len(right))

    @property
    def accuracy(self) -> Estimate:
        """Share of positions; the problem is the unit of the interval."""
        return estimate_ratio(self.right, self.positions)

    @property
    def tvd(self) -> Estimate:
        """Mean over positions; the problem is the unit of the interval."""
        return estimate_ratio(self.distance, self.positions)


def compare(predicted: np.ndarray, allowed: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Whether the likeliest token is allowed, and the total variation distance: (positions,) each.

    Args:
        predicted: (positions, tokens).
        allowed: for each position the tokens that may follow, at least one.
    """
    truth = np.zeros_like(predicted)
    for row, tokens in zip(truth, allowed, strict=True):
        row[tokens] = 1 / len(tokens)
    right = truth[np.arange(len(truth)), predicted.argmax(axis=1)] > 0
    return right, np.abs(predicted - truth).sum(axis=1) / 2


@torch.inference_mode()
def evaluate_regbench(
    model: LanguageModel, tokenizer: Tokenizer, placement: Placement, problems: Sequence[Problem]
) -> Iterator[RegBenchResult]:
    """Score a model, yielding the growing result after each batch.

    Args:
        model: either kind, on the placement's device, in evaluation mode; its tokens are the task's, so that letters
            have the first ids.
    """
    result = RegBenchResult()
    problems = sorted(problems, key=lambda problem: len(problem.text))
    for start in range(0, len(problems), BATCH):
        batch = problems[start : start + BATCH]
        texts = [tokenizer.encode(problem.text)[:-1] for problem in batch]
        inputs = torch.zeros(len(batch), max(map(len, texts)), dtype=torch.long)  # the filling comes after all else
        for row, ids in zip(inputs, texts, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        with placement.autocast():
            logits = model(inputs.to(placement.device))
        predicted = logits.double().softmax(dim=-1).cpu().numpy()
        for row, ids, problem in zip(predicted, texts, batch, strict=True):
            result.add(row[: len(ids)], problem)
        yield result


def evaluate_ngram(order: int, problems: Sequence[Problem]) -> Iterator[RegBenchResult]:
    """Score the in-context n-gram model, yielding the growing result after each problem."""
    result = RegBenchResult()
    for problem in problems:
        result.add(ngram_predictions(problem.text[:-1], order, LETTERS), problem)
        yield result
