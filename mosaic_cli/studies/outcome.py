"""What became of a planned run: whether it is there, whether it is the one that was planned, and what it is worth."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mosaic_cli.data.shards import Manifest
from mosaic_cli.errors import CheckpointError, UsageError
from mosaic_cli.files import dump_json, load_json
from mosaic_cli.recipe import load_recipe
from mosaic_cli.runs.directory import Run, locate_run
from mosaic_cli.studies.plan import Plan, PlannedRun
from mosaic_cli.training.setup import LEAVES_RESULTS, data_differences, flat

EVALUATIONS = "evaluations.json"
FORMAT_VERSION = 1
State = Literal["new", "begun", "diverged", "done"]


@dataclass(frozen=True)
class Outcome:
    """A run that has ended; `figures` and `loss` are None where it diverged."""

    planned: PlannedRun
    info: dict[str, Any]
    """Its run.json."""
    tokens: int
    """Tokens it was trained on."""
    steps: list[int]
    val_losses: list[float]
    """Validation loss after each of `steps`."""
    loss: float | None
    """Lowest validation loss, that of the best checkpoint."""
    figures: dict[str, float | None] | None
    """`val.loss`, ... of the best checkpoint; None for one that this kind of model does not have."""


def state_of(planned: PlannedRun) -> State:
    """How far a planned run is: `diverged` means that it ended with a loss that is not finite.

    Raises:
        UsageError: there is a run of that name with another recipe or on other data.
    """
    run = locate_run(planned.name)
    if not run.exists():
        return "new"
    _check_is_the_planned_one(run, planned)
    info = run.info()
    if info.get("diverged"):
        return "diverged"
    return "done" if info["status"] == "finished" else "begun"


def check_data(plan: Plan) -> None:
    """Raises UsageError when prepared data is there that a recipe of the plan would not make."""
    for recipe in {run.recipe.data_dir: run.recipe for run in plan.runs.values()}.values():
        if recipe.data_dir.exists() and (differences := data_differences(recipe)):
            raise UsageError(
                f"{recipe.data_dir} holds other data: {'; '.join(differences)}",
                where=recipe.data_dir,
                hint="Give the study a folder of its own: -s data.dir=data/OTHER. Or move this one away.",
            )


def read_outcome(planned: PlannedRun, names: list[tuple[str, str]]) -> Outcome:
    """The outcome of a run that is done and evaluated, or diverged."""
    run = locate_run(planned.name)
    info = run.info()
    logged = run.metrics()
    tokens = logged[-1]["tokens"] if logged else 0
    lines = [line for line in logged if "val_loss" in line]
    curve = [line["step"] for line in lines], [line["val_loss"] for line in lines]
    if info.get("diverged"):
        return Outcome(planned, info, tokens, *curve, None, None)
    rows = evaluations(run)
    best = load_json(run.pointer("best") / "state.json", FORMAT_VERSION, CheckpointError)["best_val_loss"]
    return Outcome(planned, info, tokens, *curve, best, {f"{on}.{name}": rows[on][name] for on, name in names})


def evaluations(run: Run) -> dict[str, dict[str, Any]]:
    """What is known of a run's best checkpoint: for each word after `--on`, the object of `mosaic eval --json`."""
    path = run.path / EVALUATIONS
    if not path.is_file():
        return {}
    rows = load_json(path, FORMAT_VERSION, CheckpointError, hint="Delete it: it is computed again.")["rows"]
    best = run.pointer("best")
    return {on: row for on, row in rows.items() if best is not None and Path(row["checkpoint"]).name == best.name}


def remember_evaluation(run: Run, on: str, row: dict[str, Any]) -> None:
    """Keep an evaluation with its run."""
    rows = evaluations(run) | {on: row}
    run.write(EVALUATIONS, dump_json({"format_version": FORMAT_VERSION, "rows": rows}))


def _check_is_the_planned_one(run: Run, planned: PlannedRun) -> None:
    own, asked = flat(load_recipe(run.recipe_path).recipe), flat(planned.recipe)
    for key, value in asked.items():
        if own[key] != value and key != "name" and key not in LEAVES_RESULTS:
            raise UsageError(
                f"the run {run.name} exists with {key} {own[key]!r}, but the study says {value!r}",
                where=run.path,
                hint="Delete or rename that run, or give the study another name: --name OTHER.",
            )
    data = planned.recipe.data_dir
    if data.exists() and Manifest.load(data).fingerprint != run.info()["data_fingerprint"]:
        raise UsageError(
            f"the run {run.name} was trained on other data than what is in {data} now",
            where=run.path,
            hint="Delete or rename that run, or give the study another name: --name OTHER.",
        )
