"""What a study still costs, before it begins."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mosaic_cli.core.model import flops_per_token, parameters_of
from mosaic_cli.data.shards import Manifest
from mosaic_cli.recipe import Recipe
from mosaic_cli.runs.directory import locate_run
from mosaic_cli.studies.collect import choose
from mosaic_cli.studies.outcome import State, read_outcome
from mosaic_cli.studies.plan import Cell, Chosen, Plan, PlannedRun
from mosaic_cli.training.cost import expected_vocab, sample_batch, step_seconds
from mosaic_cli.training.setup import training_placement

ENDED = ("done", "diverged")


@dataclass(frozen=True)
class CellCost:
    """A cell's runs and what one of them costs."""

    cell: str
    runs: int
    """All of the cell's runs, done or not; at most this many while the sweep is not over."""
    left: float
    """How many of them are to be done, a run that was begun counting by the steps that are left."""
    parameters: int
    tokens: int
    """Training tokens of a run."""
    flops: float
    """Floating-point operations of a run's training."""
    seconds: float | None
    """Expected time of a run, from a few timed steps; None where nothing is left to do, or the machine has not the
    memory."""

    def values(self) -> dict[str, Any]:
        """As an object for `--json`."""
        left = self.seconds * self.left if self.seconds is not None else 0.0
        return {**vars(self), "seconds_left": left}


def study_costs(plan: Plan, states: dict[str, State]) -> Iterator[CellCost]:
    """What each cell still costs, cell by cell; a few steps are timed for those that have runs to do.

    Args:
        states: how far each of the plan's runs is, by name.
    """
    chosen = None
    if all(states[run.name] in ENDED for run in plan.sweep()):
        chosen = choose(plan, {run.name: read_outcome(run, []) for run in plan.sweep()})
    for cell in plan.cells.values():
        known, further = _runs(plan, cell, chosen)
        left = sum(_share_left(run, states[run.name]) for run in known) + further
        yield _cell_cost(known[0].recipe, cell, len(known) + further, left)


def _cell_cost(recipe: Recipe, cell: Cell, runs: int, left: float) -> CellCost:
    placement = training_placement(recipe)
    vocab_size, _ = expected_vocab(recipe)
    config = recipe.model.with_vocab(vocab_size)
    batch = sample_batch(recipe, vocab_size)
    steps = recipe.train.max_steps
    seconds = None
    if left:
        a_step = step_seconds(recipe, vocab_size, batch, placement)
        if a_step is not None:
            seconds = a_step * (steps + _validation_steps(recipe, batch.asked))
    tokens = batch.asked * steps
    flops = 3 * tokens * flops_per_token(config)
    return CellCost(cell.label, runs, left, parameters_of(config), tokens, flops, seconds)


def _runs(plan: Plan, cell: Cell, chosen: Chosen | None) -> tuple[list[PlannedRun], int]:
    """The cell's runs that are sure, and how many more there may be once the sweep has chosen."""
    sweep = [run for run in plan.sweep() if run.cell.label == cell.label]
    if chosen is not None:
        runs = {run.name: run for run in [*sweep, *plan.follow_up(chosen)] if run.cell.label == cell.label}
        return list(runs.values()), 0
    also_carried = bool(plan.study.tune) and plan.partner(cell) is not None
    return sweep, (len(plan.study.seeds) - 1) * (1 + also_carried)


def _share_left(run: PlannedRun, state: State) -> float:
    if state in ENDED:
        return 0.0
    done = locate_run(run.name).info().get("step", 0) if state == "begun" else 0
    return 1 - done / run.recipe.train.max_steps


def _validation_steps(recipe: Recipe, step_tokens: int) -> float:
    """Time of all validations in training steps, three times as dear a token; 0 while the split is not prepared."""
    if not recipe.data_dir.exists():
        return 0.0
    whole = Manifest.load(recipe.data_dir).val.tokens
    part = min(whole, recipe.train.eval_tokens or whole)
    return (part * (recipe.train.max_steps // recipe.train.eval_interval) + whole) / (3 * step_tokens)
