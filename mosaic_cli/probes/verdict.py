"""Findings of many prompts as figures with confidence intervals: what `mosaic probe verify` reports."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mosaic_cli.probes.verify import FORMS, RANKINGS, Finding

Z_95 = 1.959964  # two-sided 95 % of a normal distribution
ERRORS = ("completeness_error", "plain_logit_error")
CONTROLS = ("random", "recency", "raw_weight")
BY_RANKING = (
    *("source_top1", "source_top3", "source_top10", "costliest_in_top3", "deletion_efficacy", "deletion_specificity"),
    *("comprehensiveness", "sufficiency", "rank_correlation"),
)
FIGURES = (
    *("answered", "source_top1", "source_top3", "source_top10", "costliest_in_top3"),
    *("deletion_efficacy", "deletion_specificity", "source_deletion_efficacy", "source_deletion_specificity"),
    *("edit_efficacy", "edit_generalisation", "edit_specificity", "comprehensiveness", "sufficiency"),
    *("rank_correlation", "subset_correlation_contribution", "subset_correlation_unread"),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts with a 95 % interval. n prompts had the figure; with none, all is None."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def estimate(values: Iterable[float | None]) -> Estimate:
    """Wilson's interval for shares of yes and no, which is honest near 0 and 1; else mean +- 1.96 standard errors."""
    known = [value for value in values if value is not None]
    n = len(known)
    if n == 0:
        return Estimate(None, None, None, 0)
    mean = math.fsum(known) / n
    if set(known) <= {0.0, 1.0}:
        middle, half = mean + Z_95**2 / (2 * n), Z_95 * math.sqrt(mean * (1 - mean) / n + (Z_95 / (2 * n)) ** 2)
        return Estimate(mean, (middle - half) / (1 + Z_95**2 / n), (middle + half) / (1 + Z_95**2 / n), n)
    return _normal(known)


def _normal(known: list[float]) -> Estimate:
    n, mean = len(known), math.fsum(known) / len(known)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = Z_95 * math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1) / n)
    return Estimate(mean, mean - half, mean + half, n)


def estimate_lead(leads: Iterable[float | None]) -> Estimate:
    """As `estimate`, for differences of two figures of the same prompt.

    Differences of yes and no are -1, 0 or 1. Their interval is Agresti and Min's (2005), which counts half a prompt
    more for each of the four outcomes: so it stays honest where all prompts agree.
    """
    known = [lead for lead in leads if lead is not None]
    if not known or not set(known) <= {-1.0, 0.0, 1.0}:
        return _normal(known) if known else Estimate(None, None, None, 0)
    n = len(known) + 2
    middle = math.fsum(known) / n
    half = Z_95 * math.sqrt(((math.fsum(lead**2 for lead in known) + 1) / n - middle**2) / n)
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Estimate(math.fsum(known) / len(known), low, high, len(known))


def extremes(values: Iterable[float]) -> Estimate:
    """Mean, smallest and largest: for errors, of which none may be left out."""
    known = list(values)
    return Estimate(math.fsum(known) / len(known), min(known), max(known), len(known))


def harmonic_mean(*means: float | None) -> float | None:
    """Harmonic mean of the edits' three figures; None where one is missing, 0 where one is 0."""
    if None in means:
        return None
    return 0.0 if 0.0 in means else len(means) / sum(1 / mean for mean in means)


def summarise(findings: list[Finding]) -> dict:
    """The object of `mosaic.probe.verify/1`: estimates as {mean, low, high, n}, over all prompts and by form."""
    edits = [_figure(findings, f"edit_{name}").mean for name in ("efficacy", "generalisation", "specificity")]
    return {
        "samples": len(findings),
        **{name: vars(extremes(f.figures[name] for f in findings)) for name in ERRORS},
        **{name: vars(_figure(findings, name)) for name in FIGURES},
        "edit_harmonic_mean": harmonic_mean(*edits),
        "controls": {name: _ranked(findings, name) for name in CONTROLS},
        "rankings": {name: _ranked(findings, name) for name in RANKINGS if name not in CONTROLS},
        "leads": {name: _leads(findings, name) for name in CONTROLS},
        "by_form": {form: _row(findings, lambda f, form=form: f.form == form) for form in FORMS},
        "by_kind": {kind: _row(findings, lambda f, kind=kind: f.kind == kind) for kind in _kinds(findings)},
        "layers": _layers(findings),
    }


def _kinds(findings: list[Finding]) -> list[str]:
    return sorted({finding.kind for finding in findings})


def _figure(findings: list[Finding], name: str) -> Estimate:
    return estimate(finding.figures.get(name) for finding in findings)


def _ranked(findings: list[Finding], ranking: str) -> dict[str, dict]:
    rows = [finding.rank[ranking] for finding in findings if finding.rank]
    return {name: vars(estimate(row[name] for row in rows)) for name in BY_RANKING}


def _leads(findings: list[Finding], control: str) -> dict[str, dict]:
    """By how much the trace does better than a control on the same prompts; above 0 throughout when it is ahead."""
    better = {name: 1 for name in BY_RANKING if name != "rank_correlation"} | {"sufficiency": -1}
    used = {name: "unread" if name == "costliest_in_top3" else "contribution" for name in better}
    rows = [finding.rank for finding in findings if finding.rank]
    return {
        name: vars(estimate_lead(sign * (row[used[name]][name] - row[control][name]) for row in rows))
        for name, sign in better.items()
    }


def _row(findings: list[Finding], chosen: Callable[[Finding], bool]) -> dict[str, dict]:
    return {name: vars(_figure([f for f in findings if chosen(f)], name)) for name in FIGURES}


def _layers(findings: list[Finding]) -> list[dict]:
    """For each layer, of its pair whose deletion cost the answer most: the direct and the total cost, and their gap."""
    rows = [finding.layers for finding in findings if finding.layers]
    return [
        {
            "layer": layer,
            "direct": vars(estimate(row[layer][0] for row in rows)),
            "total": vars(estimate(row[layer][1] for row in rows)),
            "gap": vars(estimate(row[layer][1] - row[layer][0] for row in rows)),
        }
        for layer in range(len(rows[0]) if rows else 0)
    ]
