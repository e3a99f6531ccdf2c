"""From the runs of a study to its results, and the choice that the sweep leads to."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

from mosaic_cli.intervals import Estimate, estimate_few
from mosaic_cli.studies.outcome import Outcome
from mosaic_cli.studies.plan import Cell, Chosen, Plan
from mosaic_cli.studies.results import FORMAT, FORMAT_VERSION
from mosaic_cli.studies.study import FIGURES, KIND

Outcomes = dict[str, Outcome]  # by the run's name


def choose(plan: Plan, outcomes: Outcomes) -> Chosen:
    """For each cell the combination whose first seed has the lowest validation loss."""
    chosen: Chosen = {}
    for label, cell in plan.cells.items():
        swept = [outcomes[plan.run(cell, tuned, plan.study.seeds[0]).name] for tuned in plan.combinations]
        finite = [one for one in swept if one.loss is not None]
        chosen[label] = min(finite, key=lambda one: one.loss).planned.tuned if finite else None
    return chosen


def collect(plan: Plan, outcomes: Outcomes, chosen: Chosen, command: list[str]) -> dict[str, Any]:
    """The results of a study whose runs have all ended: see docs/formats.md."""
    study, ended = plan.study, list(outcomes.values())
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": study.name,
        "command": command,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "study": study.model_dump(mode="json"),
        "overrides": list(plan.loaded.overrides),
        "machines": _distinct(
            f"{one.info['machine']}; {one.info['device']} in {one.info['dtype']}, threads: {one.info['threads']}"
            for one in ended
        ),
        "torch": _distinct(one.info["versions"]["torch"] for one in ended),
        "commits": _distinct(one.info["git_commit"] for one in ended),
        "data": _distinct(one.info["data_source"] for one in ended),
        "fallbacks": _distinct(one.info["fallback_reason"] for one in ended),
        "figures": [
            {"key": f"{on}.{name}", "on": on, "name": name, **FIGURES[on][name]._asdict()} for on, name in study.figures
        ],
        "cells": [_cell(plan, cell, outcomes, chosen) for cell in plan.cells.values()],
        "differences": [
            _difference(plan, cell, partner, outcomes, chosen)
            for cell in plan.cells.values()
            if (partner := plan.partner(cell)) and chosen[cell.label] is not None and chosen[partner.label] is not None
        ],
        "sweep": [_swept(plan, one, chosen) for one in ended if study.tune and one.planned.seed == study.seeds[0]],
        "runs": [_run(one) for one in ended],
    }


def _cell(plan: Plan, cell: Cell, outcomes: Outcomes, chosen: Chosen) -> dict[str, Any]:
    tuned = chosen[cell.label]
    runs = _runs(plan, cell, tuned, outcomes) if tuned is not None else []
    first = outcomes[plan.run(cell, plan.combinations[0] if tuned is None else tuned, plan.study.seeds[0]).name]
    return {
        "label": cell.label,
        "values": cell.values,
        "settings": cell.settings,
        "parameters": first.info["parameters"],
        "tuned": tuned,
        "at_edge": _at_edge(plan, tuned),
        "seeds": len(runs),
        "diverged": sum(one.figures is None for one in runs),
        "seconds": statistics.fmean(one.info["seconds"] for one in runs) if runs else None,
        "figures": {key: _estimate(one.figures[key] for one in runs if one.figures) for key in _keys(plan)},
        "steps_to_reach": None if plan.study.reach is None else _steps_to(plan.study.reach, runs),
        "published": _published(plan, cell),
    }


def _steps_to(loss: float, runs: list[Outcome]) -> dict[str, Any]:
    """Steps until a run's validation loss is at most `loss`, over the runs that get there."""
    firsts = (
        next((step for step, found in zip(one.steps, one.val_losses, strict=True) if found <= loss), None)
        for one in runs
    )
    return _estimate(firsts)


def _difference(plan: Plan, cell: Cell, partner: Cell, outcomes: Outcomes, chosen: Chosen) -> dict[str, Any]:
    """Mosaic minus transformer, seed by seed: each with its own tuned values, and both with the transformer's."""
    theirs = _runs(plan, partner, chosen[partner.label], outcomes)
    own = _runs(plan, cell, chosen[cell.label], outcomes)
    carried = _runs(plan, cell, chosen[partner.label], outcomes)

    def over_seeds(ours: list[Outcome], figure: Callable[[Outcome, Outcome], float | None]) -> dict[str, Any]:
        pairs = [(one, other) for one, other in zip(ours, theirs, strict=True) if one.figures and other.figures]
        return _estimate(value for pair in pairs if (value := figure(*pair)) is not None)

    by_key = {key: partial(_lead, key) for key in _keys(plan)}
    return {
        "values": {key: value for key, value in cell.values.items() if key != KIND},
        "tuned_for_each": {key: over_seeds(own, figure) for key, figure in by_key.items()},
        "carried_over": {
            "tuned": chosen[partner.label],
            "figures": {key: _estimate(one.figures[key] for one in carried if one.figures) for key in _keys(plan)},
            "differences": {key: over_seeds(carried, figure) for key, figure in by_key.items()},
        }
        if plan.study.tune
        else None,
        "seconds_ratio": over_seeds(own, lambda one, other: one.info["seconds"] / other.info["seconds"]),
        "val_loss_at_equal_time": over_seeds(own, _difference_at_equal_time),
    }


def _lead(key: str, one: Outcome, other: Outcome) -> float | None:
    """Difference in a figure; None where one of the two does not have it."""
    first, second = one.figures[key], other.figures[key]
    return None if first is None or second is None else first - second


def _difference_at_equal_time(one: Outcome, other: Outcome) -> float | None:
    """Difference in validation loss when the faster of the two has ended; None before the slower one's first."""
    seconds = min(one.info["seconds"], other.info["seconds"])
    first, second = (loss_at(run, seconds) for run in (one, other))
    return None if first is None or second is None else first - second


def loss_at(run: Outcome, seconds: float) -> float | None:
    """Validation loss after this wall time, between validations along a line; None before the first.

    All steps count as equally long, because only some of them are on record.
    """
    step = seconds / run.info["seconds"] * run.steps[-1]
    for (before, low), (after, high) in pairwise(zip(run.steps, run.val_losses, strict=True)):
        if before <= step < after:
            return low + (high - low) * (step - before) / (after - before)
    return run.val_losses[-1] if step >= run.steps[-1] else None


def _swept(plan: Plan, one: Outcome, chosen: Chosen) -> dict[str, Any]:
    cell = one.planned.cell
    return {
        "label": cell.label,
        "tuned": one.planned.tuned,
        "val_loss": one.loss,
        "chosen": one.planned.tuned == chosen[cell.label],
        "run": one.planned.name,
    }


def _run(one: Outcome) -> dict[str, Any]:
    return {
        "name": one.planned.name,
        "cell": one.planned.cell.label,
        "tuned": one.planned.tuned,
        "seed": one.planned.seed,
        "diverged": one.figures is None,
        "figures": one.figures,
        "steps": one.info["step"],
        "tokens": one.tokens,
        "seconds": one.info["seconds"],
        "started": one.info["started"],
        "curve": {"steps": one.steps, "val_loss": one.val_losses},
    }


def _runs(plan: Plan, cell: Cell, tuned: dict[str, Any], outcomes: Outcomes) -> list[Outcome]:
    return [outcomes[run.name] for run in plan.chosen_runs(cell, tuned)]


def _keys(plan: Plan) -> list[str]:
    return [f"{on}.{name}" for on, name in plan.study.figures]


def _estimate(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and Student's 95 % interval over the seeds that have the figure."""
    known = [value for value in values if value is not None]
    found: Estimate = estimate_few(known)
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": found.mean, "sd": deviation, "low": found.low, "high": found.high, "n": found.n}


def _at_edge(plan: Plan, tuned: dict[str, Any] | None) -> list[str]:
    """Tuned keys whose chosen value is the smallest or largest tried, so that a better one may lie beyond."""
    return [
        key
        for key, values in plan.study.tune.items()
        if tuned is not None and len(values) > 1 and _all_numbers(values) and tuned[key] in (min(values), max(values))
    ]


def _published(plan: Plan, cell: Cell) -> dict[str, float]:
    found: dict[str, float] = {}
    for row in plan.study.published.values if plan.study.published else []:
        if all(cell.values[key] == value for key, value in row.items() if key in cell.values):
            for on, name in reversed(plan.study.figures):  # a name of two evaluations is the first one's
                if name in row:
                    found[f"{on}.{name}"] = row[name]
    return found


def _all_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))
