"""The crossing of synthetic losses, whose place is known."""

import numpy as np
import pytest

from mosaic_cli.evaluation.crossing import find_crossing, smooth

T = 200


def _losses(difference, windows=200, noise=0.3, seed=1):
    """Two models' losses: windows differ far more from each other than models do."""
    generator = np.random.default_rng(seed)
    shared = 3 + generator.normal(0, 2, (windows, 1)) + generator.normal(0, 1, (windows, T))
    return shared + difference + generator.normal(0, noise, (windows, T)), shared


def test_a_known_crossing_lies_in_its_interval():
    true = 50
    for seed in range(3):
        found = find_crossing(*_losses(0.2 * np.log((true + 1) / (np.arange(T) + 1)), seed=seed))
        assert found.low <= true <= found.high and found.low <= found.position <= found.high
        assert found.low >= 38 and found.high <= 65 and found.share == 1 and found.windows == 200


def test_without_noise_the_crossing_is_exact():
    difference = np.where(np.arange(T) < 80, 1.0, -1.0)
    found = find_crossing(*_losses(difference, noise=0))
    assert found.position == found.low == found.high == 80


def test_a_lead_that_is_lost_again_is_no_crossing():
    positions = np.arange(T)
    late = np.where((positions > 50) & (positions < 190), -1.0, 1.0)
    found = find_crossing(*_losses(late, noise=0))
    assert (found.position, found.low, found.high, found.share) == (None, None, None, 0)


def test_a_model_that_is_ahead_everywhere_crosses_at_the_start():
    found = find_crossing(*_losses(-0.5))
    assert (found.position, found.low, found.high) == (0, 0, 0)


def test_a_crossing_that_is_not_sure_has_no_upper_end():
    found = find_crossing(*_losses(np.where(np.arange(T) < 120, 0.3, -0.04), windows=30, seed=1))
    assert found.position is not None and found.high is None and 0 < found.share < 0.975


def test_more_windows_make_the_interval_narrower():
    difference = 0.1 * np.log(51 / (np.arange(T) + 1))
    few, many = (find_crossing(*_losses(difference, windows=n)) for n in (50, 800))
    assert many.high - many.low < few.high - few.low


def test_smoothing_keeps_straight_lines_and_the_first_positions():
    line = np.arange(100.0)
    assert smooth(line)[:-8] == pytest.approx(line[:-8])
    curve = np.random.default_rng(0).normal(size=100)
    assert smooth(curve)[:4] == pytest.approx(curve[:4]) and smooth(curve)[40] == pytest.approx(curve[32:49].mean())


def test_losses_of_other_windows_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        find_crossing(np.zeros((3, 5)), np.zeros((4, 5)))
