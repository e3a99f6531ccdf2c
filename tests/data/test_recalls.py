"""Recalls as places in tokens: what stands there is what the story says."""

import pytest

from mosaic_cli.data.recalls import token_stories, tokenize_story
from mosaic_cli.data.stories import write_story
from mosaic_cli.data.tokenizer import Tokenizer

STORIES = 20


def _tokenizer(kind):
    texts = [write_story(7, index).text for index in range(60)]
    if kind == "char":
        return Tokenizer.of_characters("".join(texts) + "".join(write_story(1, i).text for i in range(STORIES)))
    return Tokenizer.of_bytes() if kind == "byte" else Tokenizer.train(texts, int(kind))


@pytest.fixture(params=["char", "byte", "400", "2000"])
def tokenizer(request):
    return _tokenizer(request.param)


def test_tokens_hold_the_words(tokenizer):
    count = 0
    for story in token_stories(tokenizer, STORIES, seed=1):
        text = story.story.text
        assert story.tokens == [tokenizer.end_of_text, *tokenizer.encode(text)]
        assert len(story.recalls) == len(story.story.recalls)
        for recall in story.recalls:
            count += 1
            span, source = recall.recall.answer, recall.recall.source
            before = tokenizer.decode(story.tokens[: recall.answer])
            words = tokenizer.decode(story.tokens[recall.answer : recall.answer + recall.length])
            assert text.startswith(before + words)
            assert words.strip() == text[span.start : span.end]  # a space before a word belongs to its token
            assert span.start - 1 <= len(before) <= span.start
            told = tokenizer.decode(story.tokens[: recall.source])
            assert source.start - 1 <= len(told) <= source.start
            assert recall.sources[0] == recall.source < recall.answer
            assert list(recall.sources) == sorted(set(recall.sources)) and recall.sources[-1] < recall.answer
            for place in recall.sources:
                said = tokenizer.decode(story.tokens[place : place + 1]).strip().lower()
                assert said and text[source.start : source.end].lower().startswith(said)
    assert count > 5 * STORIES


def test_stories_are_taken_up_anywhere():
    tokenizer = Tokenizer.of_bytes()
    several = list(token_stories(tokenizer, 4, seed=3, start=2))
    assert several[2] == tokenize_story(tokenizer, write_story(3, 4))
    assert several[1:] == list(token_stories(tokenizer, 3, seed=3, start=3))
