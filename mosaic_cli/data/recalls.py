"""The recalls of built-in stories as places in a text of tokens: what must be answered where, and from where."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from .stories import Recall, Story, write_story
from .tokenizer import Tokenizer

HELD_OUT_SEED = 20_240_506  # of the story writer, for stories that no run is trained on: recipes take small seeds


@dataclass(frozen=True, slots=True)
class TokenRecall:
    """One recall of a story, counted in tokens. `recall` says its kind and form.

    answer, source: the token in which the answer begins, and the one that says the same in the statement.
    sources: `source`, and the same token of every repetition before the answer.
    length: tokens from the first of the answer to its last.
    """

    recall: Recall
    answer: int
    length: int
    source: int
    sources: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenStory:
    """A story as a model reads it: end-of-text, which begins a document, then the story."""

    story: Story
    tokens: list[int]
    recalls: tuple[TokenRecall, ...]


def token_stories(tokenizer: Tokenizer, count: int, seed: int, start: int = 0) -> Iterator[TokenStory]:
    """The stories start, start + 1, ... of a seed, `count` of them."""
    for index in range(start, start + count):
        yield tokenize_story(tokenizer, write_story(seed, index))


def tokenize_story(tokenizer: Tokenizer, story: Story) -> TokenStory:
    """Find the tokens that hold the spans of a story's recalls."""
    ids, starts = tokenizer.encode_with_starts(story.text)

    def token_of(character: int) -> int:
        return bisect_right(starts, character)  # 1 + the index of the token, as end-of-text stands before them

    recalls = tuple(
        TokenRecall(
            recall,
            answer=token_of(recall.answer.start),
            length=token_of(recall.answer.end - 1) - token_of(recall.answer.start) + 1,
            source=token_of(recall.source.start),
            sources=tuple(token_of(span.start) for span in recall.sources),
        )
        for recall in story.recalls
    )
    return TokenStory(story, [tokenizer.end_of_text, *ids], recalls)
