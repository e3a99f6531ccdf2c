"""Questions far back: read in chunks as at once, counted by hand on a model that is told what to say."""

import pytest
import torch
from torch import nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.data.long_stories import long_stories
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import choose_placement
from mosaic_cli.evaluation import far_recall
from mosaic_cli.evaluation.far_recall import evaluate_far_recall, likeliest
from tests.tiny_models import tiny_model, tiny_tokens

CPU = choose_placement("cpu", "float32")
BYTES = Tokenizer.of_bytes()
DISTANCES = (600, 1500)


class Oracle(nn.Module):
    """Says the token that really comes next in the text it reads, but a wrong one before positions in `wrong`."""

    def __init__(self, texts, wrong=(), kind="mosaic", context_length=10_000):
        super().__init__()
        self.config = ModelConfig(
            kind=kind, num_layers=1, num_heads=1, d_model=1, context_length=context_length, vocab_size=BYTES.vocab_size
        )
        self._texts, self._wrong = iter(texts), wrong

    def make_cache(self):
        self._text, self._read = next(self._texts).tokens, 0
        return self

    def hidden(self, tokens, cache):
        self._read += tokens.shape[1]
        said = [*self._text[1:], 0]
        for position in (position for position in self._wrong if position < len(said)):
            said[position - 1] = (said[position - 1] + 1) % BYTES.vocab_size
        return torch.tensor(said)[None, self._read - tokens.shape[1] : self._read, None]

    def head(self, hidden):
        return nn.functional.one_hot(hidden[..., 0], BYTES.vocab_size).float()


@pytest.fixture(scope="module")
def texts():
    return [text for texts in long_stories(BYTES, DISTANCES, 2) for text in texts]


def _last(steps):
    *_, result = steps
    return result


def test_a_model_that_knows_is_always_right(texts):
    near, far = _last(evaluate_far_recall(Oracle(texts), BYTES, CPU, DISTANCES, 2))
    assert near.accuracy.mean == far.accuracy.mean == 1 and near.unread == far.unread == 0
    assert near.accuracy.n == len(texts[0].answers) + len(texts[2].answers)
    assert near.span[1] < far.span[0] and far.chance == near.chance
    chances = [1 / (1 + answer.recall.distractors) for text in texts[::2] for answer in text.answers]
    assert near.chance == pytest.approx(sum(chances) / len(chances))


def test_a_wrong_answer_counts_at_its_distance(texts):
    wrong = [texts[1].answers[0].position]
    near, far = _last(evaluate_far_recall(Oracle(texts, wrong), BYTES, CPU, DISTANCES, 1))
    n = len(texts[1].answers)
    assert near.accuracy.mean == 1 and far.accuracy.mean == pytest.approx((n - 1) / n)


def test_a_transformer_is_asked_what_it_can_read(texts):
    limit = texts[0].answers[0].position  # its prediction is the last one that fits
    model = Oracle(texts, kind="transformer", context_length=limit)
    near, far = _last(evaluate_far_recall(model, BYTES, CPU, DISTANCES, 1))
    assert len(near.answers) == 1 and near.unread == len(texts[0].answers) - 1
    assert far.unread == len(texts[1].answers) and far.accuracy.n == 0 and far.chance is far.span is None


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_reading_in_chunks_changes_nothing(kind, monkeypatch):
    model, tokens, positions = tiny_model(kind, context_length=40), tiny_tokens(40), [1, 7, 8, 9, 30]
    whole = model(torch.tensor([tokens]))[0].argmax(-1)
    monkeypatch.setattr(far_recall, "READ_CHUNK", 8)
    assert likeliest(model, tokens, positions, CPU) == [whole[position - 1].item() for position in positions]
