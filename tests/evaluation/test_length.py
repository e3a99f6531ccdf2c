"""Loss beyond the training length: which losses are set side by side, and ratios that are known."""

import numpy as np
import pytest

from mosaic_cli.device import choose_placement
from mosaic_cli.evaluation.length import _compare, evaluate_length, longest_window, reference
from tests.tiny_models import tiny_model

CPU = choose_placement("cpu", "float32")
T = 8


def test_every_target_has_the_loss_of_a_second_half():
    num_targets = 31
    targets = np.arange(num_targets, dtype=float)
    even = targets[: num_targets // T * T].reshape(-1, T)
    odd = targets[T // 2 :][: (num_targets - T // 2) // T * T].reshape(-1, T)
    found = reference(even, odd, num_targets)
    assert np.isnan(found[: T // 2]).all() and np.isnan(found[28:]).all()
    assert (found[T // 2 : 28] == targets[T // 2 : 28]).all()


def test_a_known_ratio_is_found_whatever_the_tokens_cost():
    generator = np.random.default_rng(0)
    known = generator.gamma(2.0, size=10 * 32)
    long = known.reshape(10, 32).copy()
    long[:, 8:16] *= 1.1
    long[:, 16:] *= 1 + generator.normal(0.02, 0.01, (10, 16))
    result = _compare(known, long, T)
    assert [(band.start, band.stop) for band in result.bands] == [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32)]
    assert result.ratio(1) == pytest.approx(1) and result.ratio(2) == pytest.approx(1.1)
    last = result.bands[-1].ratio
    assert last.low < 1.02 < last.high and last.high - last.low < 0.01, "the text's own variance cancels out"
    assert result.ratio(8) is None and result.loss == pytest.approx(known.mean())


def test_tokens_without_a_reference_do_not_count():
    known = np.ones(4 * 16)
    known[: T // 2] = np.nan
    long = np.full((4, 16), 2.0)
    long[0, : T // 2] = 100
    assert [band.ratio.mean for band in _compare(known, long, T).bands] == [2.0] * 4


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_inside_the_training_length_the_losses_are_the_same(kind, array_tokens):
    model = tiny_model(kind, context_length=T)
    tokens = array_tokens(np.random.default_rng(0).integers(0, 17, 300))
    window = longest_window(model, len(tokens))
    assert window == (T if kind == "transformer" else 4 * T)
    *shares, result = evaluate_length(model, tokens, window, CPU, batch_tokens=40)
    assert shares == sorted(shares) and shares[-1] == 1
    assert (result.window, result.windows) == (window, 299 // window)
    assert result.ratio(1) == pytest.approx(1, rel=1e-5)
    assert (result.ratio(4) is None) == (kind == "transformer")


def test_a_short_text_has_shorter_windows_or_none():
    model = tiny_model("mosaic", context_length=T)
    lengths = {1 + 16 * 8 * T: 16 * T, 16 * 8 * T: 8 * T, 1 + 8 * T: T, 8 * T: 0}
    assert {count: longest_window(model, count) for count in lengths} == lengths
