"""Findings of many prompts as figures with confidence intervals: what `mosaic probe verify` reports."""

import math
from collections.abc import Callable, Iterable

from mosaic_cli.intervals import Estimate, estimate, estimate_lead
from mosaic_cli.probes.verify import FORMS, RANKINGS, Finding

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
