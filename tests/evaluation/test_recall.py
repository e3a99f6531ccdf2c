"""Recall of stated facts: counted by hand on a model that is told what to say."""

import pytest
import torch
from torch import nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.data.recalls import HELD_OUT_SEED, token_stories
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import choose_placement
from mosaic_cli.evaluation.recall import evaluate_recall

CPU = choose_placement("cpu", "float32")
BYTES = Tokenizer.of_bytes()


class Oracle(nn.Module):
    """Says the token that really comes next, but a wrong one before each position in `wrong`."""

    def __init__(self, stories, wrong=(), kind="mosaic", context_length=10_000):
        super().__init__()
        self.config = ModelConfig(
            kind=kind, num_layers=1, num_heads=1, d_model=1, context_length=context_length, vocab_size=BYTES.vocab_size
        )
        self._stories, self._wrong = iter(stories), set(wrong)

    def forward(self, tokens):
        story = next(self._stories).tokens
        said = [*story[1:], 0]
        for position in self._wrong:
            said[position - 1] = (said[position - 1] + 1) % BYTES.vocab_size
        logits = nn.functional.one_hot(torch.tensor(said), BYTES.vocab_size).float()
        return logits[None, : tokens.shape[1]]


def _last(steps):
    *_, result = steps
    return result


def test_a_model_that_knows_is_always_right():
    stories = list(token_stories(BYTES, 3, HELD_OUT_SEED))
    result = _last(evaluate_recall(Oracle(stories), BYTES, CPU, 3))
    assert result.stories == 3 and result.unread == 0
    assert result.accuracy().mean == 1 and result.accuracy().n == sum(len(story.recalls) for story in stories)
    assert all(row.mean == 1 for row in result.by_form().values())


def test_one_wrong_answer_counts_where_it_belongs():
    (story,) = stories = list(token_stories(BYTES, 1, HELD_OUT_SEED))
    missed = story.recalls[0]
    result = _last(evaluate_recall(Oracle(stories, wrong=[missed.answer]), BYTES, CPU, 1))
    n = len(story.recalls)
    assert result.accuracy().mean == pytest.approx((n - 1) / n)
    form = missed.recall.form
    same_form = sum(recall.recall.form == form for recall in story.recalls)
    assert result.by_form()[form].mean == pytest.approx((same_form - 1) / same_form)
    distance = missed.answer - missed.source
    (row,) = [row for (low, high), row in result.by_distance().items() if low <= distance < high]
    assert row.mean == pytest.approx((row.n - 1) / row.n)


def test_guessing_is_among_the_facts_of_the_kind():
    (story,) = stories = list(token_stories(BYTES, 1, HELD_OUT_SEED))
    chances = [1 / (1 + recall.recall.distractors) for recall in story.recalls]
    result = _last(evaluate_recall(Oracle(stories), BYTES, CPU, 1))
    assert result.chance == pytest.approx(sum(chances) / len(chances))


def test_a_transformer_is_asked_what_it_can_read():
    (story,) = stories = list(token_stories(BYTES, 1, HELD_OUT_SEED))
    limit = story.recalls[1].answer  # its prediction is the last one that fits
    result = _last(evaluate_recall(Oracle(stories, kind="transformer", context_length=limit), BYTES, CPU, 1))
    assert result.accuracy().n == 2 and result.unread == len(story.recalls) - 2
