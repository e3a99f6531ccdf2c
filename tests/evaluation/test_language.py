"""Evaluation: every token once, whatever the batch; figures worked by hand."""

import math

import numpy as np
import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model, next_token_loss
from mosaic_cli.device import choose_placement
from mosaic_cli.errors import DataError
from mosaic_cli.evaluation.language import LanguageResult, evaluate_language

PLACEMENT = choose_placement("cpu", "float32")


def _model():
    return build_model(ModelConfig(num_layers=1, num_heads=2, d_model=8, context_length=6, vocab_size=7))


def _evaluate(model, tokens, **options):
    *_, result = evaluate_language(model, tokens, PLACEMENT, **options)
    return result


def test_every_token_but_the_first_is_predicted_once(array_tokens):
    model, ids = _model(), np.random.default_rng(0).integers(0, 7, 21)
    result = _evaluate(model, array_tokens(ids))
    assert result.tokens == 20 and result.window_sizes == [6, 6, 6, 2]
    expected = 0.0
    with torch.no_grad():
        for start in range(0, 20, 6):
            window = torch.tensor(ids[start : start + 7])[None]
            expected += next_token_loss(model(window[:, :-1]), window[:, 1:], "none").sum().item()
    assert result.loss == pytest.approx(expected / 20, rel=1e-6)


def test_the_batch_size_does_not_matter(array_tokens):
    model, tokens = _model(), array_tokens(np.random.default_rng(0).integers(0, 7, 101))
    one, many = _evaluate(model, tokens, batch_tokens=1), _evaluate(model, tokens, batch_tokens=1000)
    assert one.loss == pytest.approx(many.loss, rel=1e-6)
    assert one.loss_by_position == pytest.approx(many.loss_by_position, rel=1e-5)


def test_figures_worked_by_hand():
    result = LanguageResult(context_length=2, total_tokens=5, num_bytes=10)
    result.add(np.array([[1.0, 2.0], [3.0, 4.0]]), np.full((2, 2), True))
    result.add(np.array([[5.0]]), np.array([[True]]))
    assert result.loss == 3 and result.perplexity == pytest.approx(math.e**3)
    assert result.bits_per_byte == pytest.approx(15 / math.log(2) / 10)
    assert result.loss_by_position == [3.0, 3.0]
    assert result.loss_of_first(2) == 1.5 and result.loss_of_first(1) == 1.5
    # residuals of the windows against the mean: 3 - 6, 7 - 6, 5 - 3
    half = 1.959964 * math.sqrt((9 + 1 + 4) * 3 / 2) / 5
    assert result.interval == pytest.approx((3 - half, 3 + half))


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    generator, covered = np.random.default_rng(1), 0
    for _ in range(400):
        result = LanguageResult(context_length=4, total_tokens=240)
        result.add(
            generator.normal(2, 1, (60, 1)) + generator.normal(0, 1, (60, 4)), np.full((60, 4), True)
        )  # windows share an effect
        low, high = result.interval
        covered += low <= 2 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_a_bound_reads_whole_windows_and_knows_no_bytes(array_tokens):
    tokens = array_tokens(np.zeros(100, int))
    assert _evaluate(_model(), tokens, max_tokens=20, num_bytes=5).tokens == 18
    assert _evaluate(_model(), tokens, max_tokens=1).tokens == 6
    assert _evaluate(_model(), tokens, max_tokens=20, num_bytes=5).bits_per_byte is None
    assert _evaluate(_model(), tokens, max_tokens=1000).tokens == 99


def test_one_window_has_no_interval(array_tokens):
    assert _evaluate(_model(), array_tokens(np.zeros(5, int))).interval == (-math.inf, math.inf)


def test_training_mode_is_given_back(array_tokens):
    model = _model().train()
    _evaluate(model, array_tokens(np.zeros(9, int)))
    assert model.training


def test_nothing_to_predict_is_an_error(array_tokens):
    with pytest.raises(DataError):
        _evaluate(_model(), array_tokens([1]))
