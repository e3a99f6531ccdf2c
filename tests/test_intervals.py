"""Intervals worked by hand."""

import pytest

from mosaic_cli.intervals import T_95, Z_95, Estimate, estimate, estimate_few, student_95


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


def test_a_few_numbers_have_student_s_interval():
    found = estimate_few([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.302653 / 3**0.5) == 2 - found.low
    assert estimate_few([0.3]) == Estimate(0.3, None, None, 1)


def test_student_s_interval_narrows_to_the_normal_s():
    assert student_95(11) == pytest.approx(2.200985, rel=1e-3) and student_95(30) == pytest.approx(2.042272, rel=1e-3)
    widths = [student_95(degrees) for degrees in range(1, 40)]
    assert widths == sorted(widths, reverse=True) and student_95(10**6) == pytest.approx(Z_95, rel=1e-5)
    assert len(T_95) == 10
