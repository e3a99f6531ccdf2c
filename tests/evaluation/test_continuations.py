"""Continuations: scored as the model's own forward says, whatever stands beside them in the batch."""

import pytest
import torch

from mosaic_cli.device import choose_placement
from mosaic_cli.errors import DataError, NonFiniteError, UsageError
from mosaic_cli.evaluation import continuations
from mosaic_cli.evaluation.continuations import score_continuations
from tests.tiny_models import tiny_model, tiny_tokens

PLACEMENT = choose_placement("cpu", "float32")
PAIRS = [(tiny_tokens(context, seed), tiny_tokens(length, seed + 9)) for seed, (context, length) in
         enumerate([(1, 1), (5, 3), (20, 1), (1, 12), (9, 9)])]  # fmt: skip


def _scores(model, pairs=PAIRS, **options):
    found = dict(score_continuations(model, pairs, PLACEMENT, **options))
    return [found[index] for index in range(len(pairs))]


def _values(scores):
    return [score.log_probability for score in scores]


@torch.no_grad()
def _alone(model, context, continuation):
    logits = model(torch.tensor([(context + continuation)[:-1]]))[0, len(context) - 1 :].log_softmax(-1)
    return logits.gather(1, torch.tensor(continuation)[:, None]).sum().item()


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_scores_are_the_model_s_own(kind):
    model = tiny_model(kind)
    assert _values(_scores(model)) == pytest.approx([_alone(model, *pair) for pair in PAIRS], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_does_not_matter(batch_size):
    model = tiny_model()
    assert _values(_scores(model, batch_size=batch_size)) == pytest.approx(_values(_scores(model)), rel=1e-5)


def test_long_texts_are_read_in_pieces(monkeypatch):
    model = tiny_model()
    whole = _values(_scores(model))
    monkeypatch.setattr(continuations, "READ_CHUNK", 4)
    assert _values(_scores(model)) == pytest.approx(whole, rel=1e-5)


def test_greedy_is_what_greedy_decoding_would_write():
    model, context = tiny_model(), tiny_tokens(6)
    written = []
    for _ in range(3):
        written.append(model(torch.tensor([context + written]))[0, -1].argmax().item())
    other = [*written[:2], (written[2] + 1) % 17]
    assert [score.is_greedy for score in _scores(model, [(context, written), (context, other)])] == [True, False]


def test_of_a_text_too_long_the_beginning_is_left_out():
    model = tiny_model("transformer", context_length=8)
    context, continuation = tiny_tokens(20), tiny_tokens(3, seed=2)
    expected = _alone(model, context[-6:], continuation)  # 8 inputs: 6 of the context, 2 of the continuation
    assert _values(_scores(model, [(context, continuation)], max_length=8)) == pytest.approx([expected], rel=1e-5)
    with pytest.raises(UsageError, match="longer than the 8"):
        _scores(model, [(context, tiny_tokens(9))], max_length=8)


def test_what_cannot_be_scored_is_refused():
    model = tiny_model()
    for pair in ([], [1]), ([1], []):
        with pytest.raises(DataError, match="cannot be scored"):
            _scores(model, [pair])
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    with pytest.raises(NonFiniteError):
        _scores(model)
