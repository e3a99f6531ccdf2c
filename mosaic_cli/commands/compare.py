"""`mosaic compare`: studies, each a grid of runs that are trained, evaluated and reported."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Debug, Json, Set
from mosaic_cli.errors import Interrupted, NonFiniteError, UsageError

if TYPE_CHECKING:
    from mosaic_cli.studies.cost import CellCost
    from mosaic_cli.studies.outcome import Outcome, State
    from mosaic_cli.studies.plan import Plan, PlannedRun

EPILOG = "Example: mosaic compare stories-depth --dry-run"


def compare(
    study: Annotated[list[str], typer.Argument(help="A YAML file, or the name of a built-in study.")],
    name: Annotated[str | None, typer.Option(help="Another name for the study, its runs and its results.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and figures; default: studies/results here.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which runs there would be and what they cost; train nothing.")
    ] = False,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train and evaluate all runs of a study, as far as they are not done, and compare them.

    Runs are ordinary runs, in runs/. Stopped, it goes on where it was when it is called again.
    """
    from mosaic_cli.studies.outcome import check_data, state_of
    from mosaic_cli.studies.plan import Plan
    from mosaic_cli.studies.results import RESULTS
    from mosaic_cli.studies.study import load_study

    if name is not None and len(study) > 1:
        raise UsageError("one name for several studies", where="--name", hint="Compare them one at a time.")
    plans = [Plan(load_study(one, set_, name)) for one in study]
    states = [{run.name: state_of(run) for run in plan.runs.values()} for plan in plans]
    for plan in plans:
        check_data(plan)
    costs = list(map(_costs, plans, states))
    if dry_run:
        return _show_costs(plans, states, costs, json)
    for plan, cost in zip(plans, costs, strict=True):
        display.note(f"{plan.study.name}: {_summary(cost)}")
    results = []
    for plan, spec in zip(plans, study, strict=True):
        try:
            results.append(_carry_out(plan, _command(plan, spec, name), out or RESULTS))
        except Interrupted as stopped:
            stopped.hint = f"Go on: {' '.join(_command(plan, spec, name))}"
            raise
        if not json:
            _print(results[-1])
    if json:
        display.print_json("mosaic.compare/1", {"studies": results})


def _command(plan: "Plan", spec: str, name: str | None) -> list[str]:
    """The command of one study alone."""
    renamed = ["--name", name] if name else []
    return ["mosaic", "compare", spec, *renamed, *(word for one in plan.loaded.overrides for word in ("-s", one))]


def _carry_out(plan: "Plan", command: list[str], folder: Path) -> dict[str, Any]:
    """Train and evaluate what is not done, write the results and draw them."""
    from mosaic_cli.commands.study_figures import draw_study
    from mosaic_cli.studies.collect import choose, collect
    from mosaic_cli.studies.results import write_results

    outcomes = {run.name: _outcome(plan, run) for run in plan.sweep()}
    chosen = choose(plan, outcomes)
    outcomes |= {run.name: _outcome(plan, run) for run in plan.follow_up(chosen) if run.name not in outcomes}
    results = collect(plan, outcomes, chosen, command)
    path = write_results(results, folder)
    for figure in draw_study(results, folder):
        display.note(f"drawn: {figure}")
    display.note(f"written: {path}")
    return results


def _outcome(plan: "Plan", planned: "PlannedRun") -> "Outcome":
    """Bring one run to its end, and evaluate it."""
    from mosaic_cli.runs.directory import locate_run
    from mosaic_cli.studies.outcome import evaluations, read_outcome, remember_evaluation, state_of

    state = state_of(planned)
    if state in ("new", "begun"):
        display.note(f"{planned.name}: {'go on' if state == 'begun' else 'begin'}")
        state = _train(planned, resume=state == "begun")
    run = locate_run(planned.name)
    missing = [on for on in plan.study.evaluate if on not in evaluations(run)] if state != "diverged" else []
    for on in missing:
        remember_evaluation(run, on, _evaluate(planned, on))
    return read_outcome(planned, plan.study.figures)


def _train(planned: "PlannedRun", resume: bool) -> str:
    from mosaic_cli.commands.train import train_run
    from mosaic_cli.runs.directory import locate_run

    try:
        _, caught = train_run(planned.loaded, locate_run(planned.name), resume)
    except NonFiniteError as error:
        display.warn(f"{planned.name} diverged: {error.message}")
        return "diverged"
    if caught is not None:  # during the last step, which ended the run but should end the study too
        raise Interrupted(f"stopped after {planned.name}, which is finished", caught)
    return "done"


def _evaluate(planned: "PlannedRun", on: str) -> dict[str, object]:
    from mosaic_cli.commands.evaluate import evaluate_one
    from mosaic_cli.device import choose_placement
    from mosaic_cli.runs.loading import load_trained

    placement = choose_placement(planned.recipe.train.device, planned.recipe.train.dtype)
    return evaluate_one(load_trained(planned.name, placement), on, placement)


def _costs(plan: "Plan", states: "dict[str, State]") -> "list[CellCost]":
    from mosaic_cli.studies.cost import study_costs

    costs = []
    with display.Bar() as bar:
        for cost in study_costs(plan, states):
            costs.append(cost)
            bar.update(f"{plan.study.name}: timing a few steps", len(costs), len(plan.cells))
    return costs


def _summary(costs: "list[CellCost]") -> str:
    left = sum(cost.left for cost in costs)
    if not left:
        return f"all {sum(cost.runs for cost in costs)} runs are done"
    seconds = sum(cost.values()["seconds_left"] for cost in costs)
    untimed = sum(cost.left for cost in costs if cost.seconds is None)
    others = f" and {untimed:.4g} runs for which this machine has not the memory" if untimed else ""
    return (
        f"{left:.4g} of at most {sum(cost.runs for cost in costs)} runs to do, "
        f"{sum(cost.flops * cost.left for cost in costs):.3g} floating-point operations, "
        f"about {display.format_seconds(seconds)}{others}"
    )


def _show_costs(
    plans: "list[Plan]", states: "list[dict[str, State]]", costs: "list[list[CellCost]]", json: bool
) -> None:
    from mosaic_cli.training.cost import TIMED_STEPS

    if json:
        studies = [
            {
                "name": plan.study.name,
                "cells": [one.values() for one in cost],
                "runs": [{"name": name, "state": state} for name, state in known.items()],
            }
            for plan, known, cost in zip(plans, states, costs, strict=True)
        ]
        return display.print_json("mosaic.compare-dry-run/1", {"studies": studies})
    for plan, cost in zip(plans, costs, strict=True):
        display.print_table(
            plan.study.name,
            ["cell", "runs", "to do", "parameters", "tokens a run", "operations a run", "time a run", "time left"],
            [_cost_row(one) for one in cost],
            caption=f"{_summary(cost)}. Time from {TIMED_STEPS} steps on random tokens. Runs: at most this many, until "
            "the sweep has chosen.",
        )


def _cost_row(cost: "CellCost") -> list[str]:
    time = "" if cost.seconds is None else display.format_seconds(cost.seconds)
    left = "no memory" if cost.left and not time else display.format_seconds(cost.values()["seconds_left"])
    amounts = [f"{cost.left:.4g}", f"{cost.parameters:,}", f"{cost.tokens:,}", f"{cost.flops:.3g}"]
    return [cost.cell or "all", str(cost.runs), *amounts, time, left]


def _print(results: dict[str, Any]) -> None:
    from mosaic_cli.studies.tables import provenance, study_tables

    for table in study_tables(results):
        display.print_table(*table)
    for line in provenance(results):
        display.note(line.replace("`", ""))
