"""Intervals worked by hand."""

import pytest

from mosaic_cli.intervals import Z_95, Estimate, estimate


def test_nothing_is_known_of_nothing():
    assert estimate([]) == estimate([None]) == Estimate(None, None, None, 0)


@pytest.mark.parametrize(("values", "low", "high"), [([1.0] * 10, 1 / (1 + Z_95**2 / 10), 1), ([0.0] * 10, 0, 0.27753)])
def test_shares_at_the_ends_have_wilson_s_interval(values, low, high):
    found = estimate(values)
    assert found.n == 10 and found.low == pytest.approx(low, abs=1e-5) and found.high == pytest.approx(high, abs=1e-5)


def test_half_of_a_hundred():
    found = estimate([0.0, 1.0] * 50)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.40383, 0.59617), abs=1e-5)


def test_other_numbers_have_standard_errors():
    found = estimate([1.0, 2.0, 3.0, None])
    assert found.mean == 2 and found.high - 2 == pytest.approx(Z_95 / 3**0.5) == 2 - found.low
    assert estimate([0.3]) == Estimate(0.3, None, None, 1)
