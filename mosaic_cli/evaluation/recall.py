"""Recall in context: facts that built-in stories state once and ask back later (DESIGN: the built-in stories).

An answer is right when its first token is the likeliest one. Nothing but memory tells it: answers are drawn
independently of what they are about, and two facts of a kind never begin alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.recalls import HELD_OUT_SEED, TokenRecall, token_stories
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement
from mosaic_cli.intervals import Estimate, estimate


@dataclass(frozen=True)
class Answer:
    """One recall, and whether the model got it right. distance: tokens from the statement to the answer."""

    recall: TokenRecall
    distance: int
    right: bool


@dataclass
class RecallResult:
    """What a model recalls of `stories` stories; `unread` recalls stood beyond a transformer's context."""

    stories: int = 0
    unread: int = 0
    answers: list[Answer] = field(default_factory=list)

    def accuracy(self, chosen: Callable[[Answer], bool] = lambda answer: True) -> Estimate:
        """Share of right answers among those chosen, each recall a case."""
        return estimate(float(answer.right) for answer in self.answers if chosen(answer))

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the answers that the story has stated for facts of the kind."""
        return sum(1 / (1 + answer.recall.recall.distractors) for answer in self.answers) / len(self.answers)

    def by_form(self) -> dict[str, Estimate]:
        """Accuracy for each form of recall."""
        forms = sorted({answer.recall.recall.form for answer in self.answers})
        return {form: self.accuracy(lambda answer, form=form: answer.recall.recall.form == form) for form in forms}

    def by_distance(self) -> dict[tuple[int, int], Estimate]:
        """Accuracy for distances of [low, high) tokens, doubling."""
        longest = max((answer.distance for answer in self.answers), default=0)
        spans = [(2**i, 2 ** (i + 1)) for i in range(longest.bit_length())]
        rows = {span: self.accuracy(lambda a, span=span: span[0] <= a.distance < span[1]) for span in spans}
        return {span: row for span, row in rows.items() if row.n}


@torch.inference_mode()
def evaluate_recall(
    model: LanguageModel, tokenizer: Tokenizer, placement: Placement, num_stories: int = 200
) -> Iterator[RecallResult]:
    """Ask for every fact of held-out stories, yielding the growing result after each story.

    Args:
        model: either kind, on the placement's device, in evaluation mode.

    Raises:
        DataError: a tokenizer of characters that the stories go beyond.
    """
    result = RecallResult()
    limit = model.config.longest_text
    for story in token_stories(tokenizer, num_stories, HELD_OUT_SEED):
        tokens = story.tokens[:limit]
        with placement.autocast():
            likeliest = model(torch.tensor([tokens], device=placement.device))[0].argmax(-1)
        for recall in story.recalls:
            if recall.answer > len(tokens):
                result.unread += 1
                continue
            right = bool(likeliest[recall.answer - 1] == story.tokens[recall.answer])
            result.answers.append(Answer(recall, recall.answer - recall.source, right))
        result.stories += 1
        yield result
