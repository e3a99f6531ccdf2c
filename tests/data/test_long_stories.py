"""Long stories: the same questions at every distance, and nothing between that they could be about."""

import random
from collections import Counter

import pytest

from mosaic_cli.data.long_stories import BREAK, TURNS_STRIDE, _merged, long_stories, nouns, told_in_turns
from mosaic_cli.data.stories import write_story
from mosaic_cli.data.tokenizer import Tokenizer

DISTANCES = (128, 256, 1024)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([write_story(7, index).text for index in range(60)], 2000)


@pytest.fixture(scope="module")
def texts(tokenizer):
    return list(long_stories(tokenizer, DISTANCES, 4))


def test_the_first_answer_stands_as_far_as_was_asked(texts):
    for versions in texts:
        for distance, text in zip(DISTANCES, versions, strict=True):
            first = text.answers[0].distance
            assert first <= distance
            assert first > distance - 120, "a paragraph more would have been too much"


def test_tokens_are_the_answer_and_what_said_it(tokenizer, texts):
    for versions in texts:
        for text in versions:
            for answer in text.answers:
                said, asked = (
                    tokenizer.decode(text.tokens[at : at + 1]).strip().lower() for at in (answer.said, answer.position)
                )
                assert said and (said.startswith(asked) or asked.startswith(said))


def test_the_same_is_asked_at_every_distance(tokenizer, texts):
    for versions in texts:
        asked = [[answer.recall for answer in text.answers] for text in versions]
        assert asked[0] == asked[1] == asked[2] and asked[0]
        ends = {tokenizer.decode(text.tokens[text.answers[0].position :]) for text in versions}
        assert len(ends) == 1


def test_what_stands_between_is_about_other_things(tokenizer, texts):
    for versions in texts:
        whole = tokenizer.decode(versions[-1].tokens)
        paragraphs = whole.split(BREAK)
        own = [paragraph for paragraph in tokenizer.decode(versions[0].tokens).split(BREAK) if paragraph]
        about = nouns(own[1])  # the paragraph that states facts
        between = [paragraph for paragraph in paragraphs if paragraph not in own]
        assert about and between and not any(about & nouns(paragraph) for paragraph in between)


def test_the_stories_are_the_same_each_time(tokenizer, texts):
    assert list(long_stories(tokenizer, DISTANCES, 2)) == texts[:2]


def test_two_stories_take_turns_and_share_nothing():
    orders = []
    for index in range(90):
        text = told_in_turns(5, index)
        one = write_story(5, index * TURNS_STRIDE).text
        if text == one:
            continue
        numbers = range(index * TURNS_STRIDE + 1, (index + 1) * TURNS_STRIDE)
        others = (write_story(5, number).text for number in numbers)
        other = next(text for text in others if not nouns(one) & nouns(text))
        paragraphs, left, right = text.split(BREAK), one.split(BREAK), other.split(BREAK)
        assert sorted(paragraphs) == sorted(left + right)
        for own in (left, right):  # a story goes on in its order
            assert [paragraph for paragraph in paragraphs if paragraph in own] == own
        orders.append(tuple(paragraph in left for paragraph in paragraphs))
    assert 18 <= len(orders) <= 42  # 30, and 4.5 more or less by chance
    assert len(set(orders)) > 0.8 * len(orders) and {order[0] for order in orders} == {True, False}


def test_all_orders_of_turns_are_equally_likely():
    """Each way in which two paragraphs of one and two of the other can follow each other: one in six."""
    uniform = random.Random(1).random
    found = Counter("".join(_merged(list("aa"), list("bb"), uniform)) for _ in range(6000))
    assert len(found) == 6 and all(abs(times - 1000) < 4 * 29 for times in found.values())
