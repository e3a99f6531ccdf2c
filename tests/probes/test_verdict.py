"""Figures with intervals: against values worked out by hand, and None where nothing is known."""

import math

import pytest

from mosaic_cli.probes.verdict import (
    BY_RANKING,
    CONTROLS,
    FIGURES,
    Estimate,
    estimate,
    estimate_lead,
    extremes,
    harmonic_mean,
    summarise,
)
from mosaic_cli.probes.verify import FORMS, RANKINGS, Finding

Z2 = 1.959964**2


def test_nothing_known_is_none():
    assert estimate([]) == estimate([None, None]) == estimate_lead([]) == Estimate(None, None, None, 0)


@pytest.mark.parametrize("n", [1, 4, 200])
def test_wilson_s_interval_of_shares(n):
    none, every = estimate([0.0] * n), estimate([None, *[1.0] * n])
    assert (none.mean, every.mean, none.n, every.n) == (0, 1, n, n)
    assert none.low == pytest.approx(0, abs=1e-15) and none.high == pytest.approx(Z2 / (n + Z2))
    assert every.low == pytest.approx(n / (n + Z2)) and every.high == pytest.approx(1)


def test_wilson_s_interval_of_a_half():
    half = estimate([1.0, 0.0] * 50)
    assert half.mean == 0.5 and half.n == 100
    assert (half.low, half.high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))  # textbook's


def test_the_normal_interval_of_other_numbers():
    found = estimate([1.0, None, 2.0, 6.0])
    half = 1.959964 * math.sqrt(7 / 3)  # standard deviation sqrt(7) of three numbers
    assert (found.mean, found.n) == (3, 3)
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert estimate([0.25]) == Estimate(0.25, None, None, 1)


def test_leads_may_be_below_zero():
    found = estimate_lead([1.0, 0.0, 0.0, 0.0])  # one prompt of four in favour proves nothing
    middle, square = 1 / 6, 2 / 6
    half = 1.959964 * math.sqrt((square - middle**2) / 6)
    assert (found.mean, found.n) == (0.25, 4)
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert found.low < 0
    assert estimate_lead([0.0] * 50).low == -estimate_lead([0.0] * 50).high < 0
    ahead = estimate_lead([1.0] * 50)
    assert ahead.mean == ahead.high == 1 and 0.85 < ahead.low < 1
    assert estimate_lead([0.1, 0.3]) == estimate([0.1, 0.3])


def test_extremes():
    assert extremes([0.5, 0.1, 0.3]) == Estimate(pytest.approx(0.3), 0.1, 0.5, 3)


def test_harmonic_mean():
    assert harmonic_mean(1.0, 0.5, 0.25) == pytest.approx(3 / 7)
    assert harmonic_mean(1.0, 0.0) == 0 and harmonic_mean(1.0, None, 0.0) is None


def _ranked(value):
    return dict.fromkeys(BY_RANKING, value)


def _findings():
    """Two prompts that were answered, and one that was not."""
    errors = {"completeness_error": 1e-6, "plain_logit_error": 0.0}
    one = Finding("reply", "place", {**errors, "answered": 1.0, "edit_efficacy": 1.0, "edit_specificity": 0.5})
    other = Finding("reply", "owner", {**errors, "answered": 1.0, "edit_efficacy": 1.0, "edit_generalisation": 0.0})
    for finding, value in ((one, 1.0), (other, 0.0)):
        finding.figures |= _ranked(value)
        finding.rank = {name: _ranked(value if name not in CONTROLS else 0.0) for name in RANKINGS}
        finding.layers = [(-1.0, -2.0 - value), (-0.5, -0.5)]
    missed = Finding("mention", "place", {**errors, "completeness_error": 4e-6, "answered": 0.0})
    return [one, other, missed]


def test_a_summary_of_findings():
    found = summarise(_findings())
    assert found["samples"] == 3
    assert found["completeness_error"] == {"mean": pytest.approx(2e-6), "low": 1e-6, "high": 4e-6, "n": 3}
    assert found["answered"]["mean"] == pytest.approx(2 / 3) and found["answered"]["n"] == 3
    assert found["source_top1"]["mean"] == 0.5 and found["source_top1"]["n"] == 2
    assert found["edit_generalisation"]["n"] == found["edit_specificity"]["n"] == 1
    assert found["edit_harmonic_mean"] == 0
    assert found.keys() >= set(FIGURES)
    assert found["controls"].keys() == set(CONTROLS)
    assert found["controls"]["random"]["source_top3"] == vars(estimate([0.0, 0.0]))
    assert found["rankings"].keys() == set(RANKINGS) - set(CONTROLS)
    assert found["leads"]["recency"]["source_top1"] == vars(estimate_lead([1.0, 0.0]))
    assert found["leads"]["recency"]["sufficiency"] == vars(estimate_lead([-1.0, 0.0]))  # less is better
    assert found["by_form"].keys() == set(FORMS) and found["by_kind"].keys() == {"place", "owner"}
    assert found["by_form"]["mention"]["answered"]["mean"] == 0
    assert found["by_form"]["question"]["answered"] == vars(Estimate(None, None, None, 0))
    assert found["by_kind"]["owner"]["source_top1"]["mean"] == 0
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    assert (found["layers"][0]["direct"]["mean"], found["layers"][0]["total"]["mean"]) == (-1, -2.5)
    assert found["layers"][0]["gap"]["mean"] == -1.5 and found["layers"][1]["gap"]["mean"] == 0


def test_a_summary_of_a_model_that_answers_nothing():
    found = summarise(_findings()[2:])
    assert found["answered"]["mean"] == 0 and found["layers"] == [] and found["edit_harmonic_mean"] is None
    for name in set(FIGURES) - {"answered"}:
        assert found[name] == vars(Estimate(None, None, None, 0))
    assert found["controls"]["random"]["source_top1"]["n"] == found["leads"]["random"]["source_top1"]["n"] == 0
