"""Interference: facts of a story that is read after other stories, some of which spoke of the same things.

What came before is of no use for them. A memory without positions may take another story's fact for this one's, where
both are about the same thing; where no other story speaks of it, it should recall as well as in a story alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.long_stories import nouns
from mosaic_cli.data.recalls import HELD_OUT_SEED, TokenRecall, TokenStory, token_stories
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement
from mosaic_cli.evaluation.far_recall import likeliest
from mosaic_cli.intervals import Estimate, estimate

BEFORE_START = 2_000_000  # from here on, held-out stories that come before: no story is asked about and before
BEFORE_STRIDE = 1_000  # stories that may come before one


@dataclass(frozen=True)
class AfterAnswer:
    """One recall, whether a story before spoke of the same thing, and whether the model got it right."""

    recall: TokenRecall
    clash: bool
    right: bool


@dataclass
class RecallAfterResult:
    """Answers after at most `before` tokens of other stories; `unread` ones a transformer cannot reach."""

    before: int
    answers: list[AfterAnswer] = field(default_factory=list)
    unread: int = 0

    def accuracy(self, clash: bool) -> Estimate:
        """Share of right answers about things that a story before spoke of, or about those that none did."""
        return estimate(float(answer.right) for answer in self.answers if answer.clash == clash)


@torch.inference_mode()
def evaluate_recall_after(
    model: LanguageModel, tokenizer: Tokenizer, placement: Placement, lengths: tuple[int, ...], num_stories: int
) -> Iterator[list[RecallAfterResult]]:
    """Ask for the facts of the same stories after every length, yielding the growing results after each story.

    Args:
        model: either kind, on the placement's device, in evaluation mode.
        lengths: tokens of other stories to read first; whole ones, as many as fit.

    Raises:
        DataError: a tokenizer of characters that the stories go beyond.
    """
    results = [RecallAfterResult(length) for length in lengths]
    limit = model.config.longest_text
    for index, story in enumerate(token_stories(tokenizer, num_stories, HELD_OUT_SEED)):
        others = _others(tokenizer, index, max(lengths))
        for result in results:
            before, things = _before(others, result.before)
            read = [r for r in story.recalls if limit is None or len(before) + r.answer <= limit]
            said = likeliest(model, before + story.tokens, [len(before) + r.answer for r in read], placement)
            result.unread += len(story.recalls) - len(read)
            result.answers += [
                AfterAnswer(recall, recall.recall.about in things, token == story.tokens[recall.answer])
                for recall, token in zip(read, said, strict=True)
            ]
        yield results


def _others(tokenizer: Tokenizer, index: int, tokens: int) -> list[TokenStory]:
    """Held-out stories of so many tokens or more, which no other index has."""
    stories: list[TokenStory] = []
    following = token_stories(tokenizer, BEFORE_STRIDE, HELD_OUT_SEED, BEFORE_START + index * BEFORE_STRIDE)
    while sum(len(story.tokens) for story in stories) < tokens:
        stories.append(next(following))
    return stories


def _before(others: list[TokenStory], tokens: int) -> tuple[list[int], frozenset[str]]:
    """The first stories that have at most so many tokens together, and the things they speak of."""
    taken: list[int] = []
    things: frozenset[str] = frozenset()
    for story in others:
        if len(taken) + len(story.tokens) > tokens:
            break
        taken += story.tokens
        things |= nouns(story.story.text)
    return taken, things
