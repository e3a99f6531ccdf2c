"""Lists asked back: how many answers are right, by how long the list was and how far back the answer stood."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.tasks.associations import Answer, AssociationTask
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement
from mosaic_cli.intervals import Estimate, estimate

ANSWERS = 1024  # of each size: Wilson's interval is then .004 wide where all are right
BATCH_TOKENS = 8192


@dataclass
class AssociationResult:
    """Answers to lists of one size, each with whether it was right; `unread` ones stood beyond a model's context."""

    size: int
    answers: list[tuple[Answer, bool]] = field(default_factory=list)
    unread: int = 0

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing among what the list has and the problem has not asked back yet."""
        choices = [1 / answer.choices for answer, _ in self.answers]
        return sum(choices) / len(choices) if choices else None


def accuracy(results: list[AssociationResult]) -> Estimate:
    """Share of right answers, each a case."""
    return estimate(float(right) for result in results for _, right in result.answers)


def accuracy_by_distance(results: list[AssociationResult]) -> dict[tuple[int, int], Estimate]:
    """Accuracy for answers that stood [low, high) tokens back, doubling."""
    cases = [(answer.position - answer.source, float(right)) for result in results for answer, right in result.answers]
    longest = max((distance for distance, _ in cases), default=0)
    spans = [(2**i, 2 ** (i + 1)) for i in range(longest.bit_length())]
    rows = {(a, b): estimate(right for distance, right in cases if a <= distance < b) for a, b in spans}
    return {span: row for span, row in rows.items() if row.n}


@torch.inference_mode()
def evaluate_associations(
    model: LanguageModel, tokenizer: Tokenizer, placement: Placement, task: AssociationTask, sizes: tuple[int, ...]
) -> Iterator[AssociationResult]:
    """Ask a model, yielding the result of each size. An answer is right when it is the likeliest of all tokens.

    Args:
        model: either kind, on the placement's device, in evaluation mode; its tokens are the task's.
    """
    limit = model.config.longest_text
    for size in sizes:
        problems = list(task.testing_problems(size, -(-ANSWERS // size)))
        ids = torch.tensor([tokenizer.encode(problem.text) for problem in problems])
        result = AssociationResult(size)
        rows = max(1, BATCH_TOKENS // ids.shape[1])
        for start in range(0, len(problems), rows):
            inputs = ids[start : start + rows, :limit].to(placement.device)
            with placement.autocast():
                likeliest = model(inputs).argmax(-1).tolist()
            for said, tokens, problem in zip(
                likeliest, ids[start : start + rows].tolist(), problems[start : start + rows], strict=True
            ):
                for answer in problem.answers:
                    if answer.position > len(said):
                        result.unread += 1
                    else:
                        result.answers.append((answer, said[answer.position - 1] == tokens[answer.position]))
        yield result
