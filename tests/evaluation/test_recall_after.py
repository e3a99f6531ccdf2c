"""Facts after other stories, counted by hand on a model that is told what to say."""

import pytest
from test_far_recall import Oracle

from mosaic_cli.data.long_stories import nouns
from mosaic_cli.data.recalls import HELD_OUT_SEED, token_stories
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import choose_placement
from mosaic_cli.evaluation.recall_after import BEFORE_START, evaluate_recall_after

CPU = choose_placement("cpu", "float32")
BYTES = Tokenizer.of_bytes()
LENGTHS = (0, 20_000)


class _Text:
    def __init__(self, tokens):
        self.tokens = tokens


@pytest.fixture(scope="module")
def story():
    return next(token_stories(BYTES, 1, HELD_OUT_SEED))


@pytest.fixture(scope="module")
def before():
    """What the first story is read after, by the definition: whole stories that fit."""
    taken = []
    for other in token_stories(BYTES, 50, HELD_OUT_SEED, BEFORE_START):
        if sum(len(one.tokens) for one in taken) + len(other.tokens) > LENGTHS[1]:
            return taken
        taken.append(other)
    raise AssertionError("too few stories")


@pytest.fixture(scope="module")
def texts(story, before):
    return [_Text(story.tokens), _Text([token for one in before for token in one.tokens] + story.tokens)]


def _ask(model):
    *_, results = evaluate_recall_after(model, BYTES, CPU, LENGTHS, 1)
    return results


def test_facts_are_parted_by_what_the_other_stories_spoke_of(story, before, texts):
    alone, after = _ask(Oracle(texts))
    assert alone.accuracy(False).n == len(story.recalls) and alone.accuracy(True).n == 0
    things = set().union(*(nouns(one.story.text) for one in before))
    clashes = [recall for recall in story.recalls if recall.recall.about in things]
    assert 0 < len(clashes) < len(story.recalls), "the fixture has both"
    assert after.accuracy(True).n == len(clashes) and after.accuracy(False).n == len(story.recalls) - len(clashes)
    assert alone.accuracy(False).mean == after.accuracy(True).mean == after.accuracy(False).mean == 1


def test_a_wrong_answer_counts_in_its_part(story, texts):
    wrong = story.recalls[0]
    place = len(texts[1].tokens) - len(story.tokens) + wrong.answer
    alone, after = _ask(Oracle(texts, [place]))
    group = next(answer.clash for answer in after.answers if answer.recall == wrong)
    n = after.accuracy(group).n
    assert alone.accuracy(False).mean == after.accuracy(not group).mean == 1
    assert after.accuracy(group).mean == pytest.approx((n - 1) / n)


def test_a_transformer_is_asked_what_it_can_read(story, texts):
    model = Oracle(texts, kind="transformer", context_length=story.recalls[0].answer)
    alone, after = _ask(model)
    assert len(alone.answers) == 1 and alone.unread == len(story.recalls) - 1
    assert after.unread == len(story.recalls) and after.accuracy(False).n == after.accuracy(True).n == 0
