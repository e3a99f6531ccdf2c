"""Questions over a long context: a fact early in a text, the question late, other stories between.

An answer is right as in `recall`: its first token is the likeliest one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.long_stories import FarAnswer, long_stories
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement
from mosaic_cli.intervals import Estimate, estimate

READ_CHUNK = 1024  # tokens read at once: bounds the memory of reading a long text


@dataclass
class FarRecallResult:
    """Answers at most `distance` tokens away, with whether each was right; `unread` ones a transformer cannot reach."""

    distance: int
    answers: list[tuple[FarAnswer, bool]] = field(default_factory=list)
    unread: int = 0

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers, each a case; of none, nothing."""
        return estimate(float(right) for _, right in self.answers)

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing among the answers that the question's own story gave to facts of the kind."""
        chances = [1 / (1 + answer.recall.distractors) for answer, _ in self.answers]
        return sum(chances) / len(chances) if chances else None

    @property
    def span(self) -> tuple[int, int] | None:
        """The shortest and the longest distance."""
        distances = [answer.distance for answer, _ in self.answers]
        return (min(distances), max(distances)) if distances else None


@torch.inference_mode()
def evaluate_far_recall(
    model: LanguageModel, tokenizer: Tokenizer, placement: Placement, distances: tuple[int, ...], num_stories: int
) -> Iterator[list[FarRecallResult]]:
    """Ask the same questions at every distance, yielding the growing results, one a distance, after each story.

    Args:
        model: either kind, on the placement's device, in evaluation mode.

    Raises:
        DataError: a tokenizer of characters that the stories go beyond.
    """
    results = [FarRecallResult(distance) for distance in distances]
    limit = model.config.longest_text
    for texts in long_stories(tokenizer, distances, num_stories):
        for result, text in zip(results, texts, strict=True):
            read = [answer for answer in text.answers if limit is None or answer.position <= limit]
            result.unread += len(text.answers) - len(read)
            said = likeliest(model, text.tokens, [answer.position for answer in read], placement)
            result.answers += [
                (answer, token == text.tokens[answer.position]) for answer, token in zip(read, said, strict=True)
            ]
        yield results


@torch.inference_mode()
def likeliest(model: LanguageModel, tokens: list[int], positions: list[int], placement: Placement) -> list[int]:
    """The likeliest token at each of the rising `positions`, by the tokens before it, which are read in chunks."""
    said: list[int] = []
    cache, stop = model.make_cache(), max(positions, default=0)
    for start in range(0, stop, READ_CHUNK):
        chunk = tokens[start : min(start + READ_CHUNK, stop)]
        with placement.autocast():
            hidden = model.hidden(torch.tensor([chunk], device=placement.device), cache)
            wanted = [position - 1 - start for position in positions if start < position <= start + len(chunk)]
            said += model.head(hidden[:, wanted])[0].argmax(-1).tolist()
    return said
