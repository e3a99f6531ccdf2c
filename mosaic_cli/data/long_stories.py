"""Built-in stories made long: paragraphs of other stories between a story's facts and the questions about them.

What stands between has none of the story's things and animals, so a question is about one fact alone; people and
answers may come again there, as in a long text they would. `told_in_turns` writes texts to train on, `long_stories`
questions at a given distance.
"""

import itertools
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mosaic_cli.data.recalls import HELD_OUT_SEED
from mosaic_cli.data.stories import Recall, Story, write_story
from mosaic_cli.data.story_words import ANIMALS, THINGS
from mosaic_cli.data.tokenizer import Tokenizer

BREAK = "\n\n"
ASKED = ("reply", "question")
BETWEEN_START = 1_000_000  # from here on, held-out stories that lend paragraphs: no story is long and lent
BETWEEN_STRIDE = 1_000  # stories that one long story may take paragraphs from
TURNS_SHARE = 1 / 3  # of the texts; with twice the length, half of all tokens
TURNS_STRIDE = 16  # stories that one text told in turns may choose its two from
_NOUNS = frozenset(noun for noun, _ in THINGS + ANIMALS)
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class FarAnswer:
    """One question's answer, in tokens: where it begins, and where the text said it last."""

    recall: Recall
    position: int
    said: int

    @property
    def distance(self) -> int:
        """Tokens from where the text said it last."""
        return self.position - self.said


@dataclass(frozen=True, slots=True)
class LongStory:
    """A text as a model reads it, end-of-text first, and the answers to the questions at its end."""

    tokens: list[int]
    answers: tuple[FarAnswer, ...]


def told_in_turns(seed: int, index: int) -> str:
    """Text number `index` of `seed`: one story, or, every third time on average, two of them in turns.

    Then a paragraph of either follows a paragraph of either, all orders being equally likely. So facts are up to a few
    paragraphs further from their questions than in one story, and one story stands beside the other in memory, as
    stories do in a long text. The same on every machine and Python version.
    """
    uniform = random.Random(f"{seed}:{index}:turns").random
    numbers = itertools.count(index * TURNS_STRIDE)
    one = write_story(seed, next(numbers)).text
    if uniform() >= TURNS_SHARE:
        return one
    texts = (write_story(seed, number).text for number in numbers)
    other = next(text for text in texts if not nouns(one) & nouns(text))
    return BREAK.join(_merged(one.split(BREAK), other.split(BREAK), uniform))


def _merged(one: list[str], other: list[str], uniform: Callable[[], float]) -> Iterator[str]:
    """Both lists in their own order, merged in one of all possible ways."""
    while one or other:
        source = one if uniform() * (len(one) + len(other)) < len(one) else other
        yield source.pop(0)


def long_stories(tokenizer: Tokenizer, distances: tuple[int, ...], count: int) -> Iterator[list[LongStory]]:
    """`count` held-out stories, each with the first answer at most so many tokens from where it was said last.

    It is at most a paragraph nearer. Stories in which it is further away as they are written are left out, so that all
    distances are asked the same questions.

    Raises:
        DataError: a tokenizer of characters that the stories go beyond.
    """
    index = found = 0
    while found < count:
        story = write_story(HELD_OUT_SEED, index)
        plain = _place(tokenizer, story, "")
        if plain.answers[0].distance <= min(distances):
            found += 1
            pieces = _between(tokenizer, story, index, max(distances) - plain.answers[0].distance)
            yield [_place(tokenizer, story, _filling(pieces, far - plain.answers[0].distance)) for far in distances]
        index += 1


def nouns(text: str) -> frozenset[str]:
    """The things and animals that a text is about."""
    return _NOUNS.intersection(_WORD.findall(text.lower()))


def _place(tokenizer: Tokenizer, story: Story, filling: str) -> LongStory:
    """The story with `filling` before the paragraph that asks."""
    asked = [recall for recall in story.recalls if recall.form in ASKED]
    cut = story.text.rindex(BREAK, 0, asked[0].answer.start)
    ids, starts = tokenizer.encode_with_starts(story.text[:cut] + filling + story.text[cut:])

    def token_of(character: int) -> int:  # end-of-text stands before the first
        return bisect_right(starts, character + (len(filling) if character > cut else 0))

    answers = tuple(FarAnswer(one, token_of(one.answer.start), token_of(one.sources[-1].start)) for one in asked)
    return LongStory([tokenizer.end_of_text, *ids], answers)


def _between(tokenizer: Tokenizer, story: Story, index: int, tokens: int) -> list[tuple[str, int]]:
    """Paragraphs of other stories in the order of their text, each with its break and its number of tokens."""
    pieces: list[tuple[str, int]] = []
    own, number = nouns(story.text), BETWEEN_START + index * BETWEEN_STRIDE
    while sum(length for _, length in pieces) <= tokens:
        text = write_story(HELD_OUT_SEED, number).text
        number += 1
        if not own & nouns(text):
            paragraphs = [BREAK + paragraph for paragraph in text.split(BREAK)]
            pieces += [(paragraph, len(tokenizer.encode(paragraph))) for paragraph in paragraphs]
    return pieces


def _filling(pieces: list[tuple[str, int]], tokens: int) -> str:
    """As many of the first pieces as have at most so many tokens together."""
    taken: list[str] = []
    for text, length in pieces:
        tokens -= length
        if tokens < 0:
            break
        taken.append(text)
    return "".join(taken)
