"""`mosaic train`: from a recipe to a trained run."""

import re
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Debug, Json, Seed, Set
from mosaic_cli.commands.prepare import prepare_with_progress
from mosaic_cli.errors import CheckpointError, Interrupted, NonFiniteError, UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.recipe import LoadedRecipe, Recipe
    from mosaic_cli.runs.directory import Run
    from mosaic_cli.training.loop import StepReport, Trainer

EPILOG = "Example: mosaic train quickstart --run first --set train.max_steps=200"


def train(
    recipe: Annotated[str | None, typer.Argument(help="A YAML file, or the name of a built-in recipe.")] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run; default: the recipe's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Train to this step (train.max_steps).")] = None,
    time_limit: Annotated[str | None, typer.Option(help="Stop and save after this long: 90s, 10m, 2h.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would be and cost; train nothing.")
    ] = False,
    profile: Annotated[
        int | None, typer.Option(min=1, help="Say where the time of this many steps goes; keep nothing.")
    ] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="Compile the model (train.compile).")] = None,
    log_to: Annotated[str | None, typer.Option(help="Also log to: tensorboard.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="auto, float32 or bfloat16.")] = None,
    seed: Seed = None,
    set_: Set = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model as a recipe says; prepares the data first if it is not there. Prints the run's folder."""
    from mosaic_cli.recipe import load_recipe
    from mosaic_cli.runs.directory import locate_run, refuse_existing

    if recipe is None and not (resume and run is not None):
        raise UsageError("no recipe", hint="mosaic train RECIPE, or mosaic train --resume --run NAME")
    limit = _seconds(time_limit)
    write_event = _open_log(log_to)
    flags = {
        "train.max_steps": steps,
        "train.compile": compile,
        "train.device": device,
        "train.dtype": dtype,
        "train.seed": seed,
    }
    begun = None if run is None else locate_run(run)
    if recipe is None:
        _check_begun(begun)
    loaded = load_recipe(recipe or begun.recipe_path, flags=flags, overrides=set_)
    begun = begun or locate_run(loaded.recipe.name)
    if profile is not None:
        if resume or dry_run:
            raise UsageError("a profile begins from nothing", where="--profile", hint="Leave out --resume, --dry-run.")
        return _profile(loaded.recipe, profile, json)
    if dry_run:
        from mosaic_cli.commands.dry_run import show_dry_run

        return show_dry_run(loaded, json)
    if resume:
        _check_begun(begun)
    else:
        refuse_existing(begun)
    trainer, _ = train_run(loaded, begun, resume, limit, write_event(begun.path))
    _report(trainer, json)


def train_run(
    loaded: "LoadedRecipe",
    run: "Run",
    resume: bool,
    limit: float | None = None,
    write_event: "Callable[[StepReport], None]" = lambda _: None,
) -> "tuple[Trainer, int | None]":
    """Train a run to its end, drawing how far it is; prepares its data if that is not there.

    Args:
        limit: seconds after which it is stopped and saved.
        write_event: called with each step's report.

    Returns:
        The trainer, and the signal that came during the last step, if one did.

    Raises:
        Interrupted: stopped by a signal, saved.
    """
    with run.locked():
        trainer = _make_trainer(loaded, run, resume)
        return trainer, _train(trainer, limit, write_event)


def _check_begun(run: "Run") -> None:
    if not run.exists():
        raise UsageError(
            f"there is no run {run.name!r} to resume",
            where=run.path,
            hint="Begin it: mosaic train RECIPE, without --resume.",
        )


def _profile(recipe: "Recipe", steps: int, json: bool) -> None:
    from mosaic_cli.commands.profile import check_profile, show_profile

    check_profile(recipe)
    show_profile(recipe, _prepared_placement(recipe), steps, json)


def _make_trainer(loaded: "LoadedRecipe", run: "Run", resume: bool) -> "Trainer":
    from mosaic_cli.training.setup import begin, take_up

    placement = _prepared_placement(loaded.recipe)
    trainer = take_up(run, loaded, placement) if resume else begin(loaded.recipe, run.name, placement)
    if reason := trainer.run.info()["fallback_reason"]:
        display.warn(f"training on {trainer.run.info()['data_source']}, NOT on what the recipe names: {reason}")
    return trainer


def _prepared_placement(recipe: "Recipe") -> "Placement":
    """Where to train, once the data is there."""
    from mosaic_cli.core.kernels import implementation
    from mosaic_cli.training.setup import data_differences, training_placement

    placement = training_placement(recipe)
    computing = implementation(placement.device, placement.dtype, recipe.model, recipe.train.compile)
    display.note(", ".join(filter(None, [f"training on {placement.reason}", computing, f"seed {recipe.train.seed}"])))
    if not recipe.data_dir.exists():
        prepare_with_progress(recipe.data, recipe.data_dir)
    elif differences := data_differences(recipe):
        display.warn(
            f"training on {recipe.data_dir} as it was prepared: {'; '.join(differences)}. To prepare it anew: "
            f"mosaic prepare RECIPE --force"
        )
    return placement


def _train(trainer: "Trainer", limit: float | None, write_event: Callable) -> int | None:
    """Run the loop under a display and a signal handler, and keep run.json's status true."""
    run, start = trainer.run, time.monotonic()
    before = run.info()["seconds"]
    caught: list[int] = []

    def on_signal(number: int, _: object) -> None:
        caught.append(number)
        if len(caught) > 1:
            raise KeyboardInterrupt
        display.note("stopping after this step; once more to leave at once")

    def should_stop() -> bool:
        return bool(caught) or (limit is not None and time.monotonic() - start > limit)

    def record(status: str, **more: object) -> None:
        run.update_info(status=status, step=trainer.state.step, seconds=before + time.monotonic() - start, **more)

    def record_failure(status: str, **more: object) -> None:
        try:
            record(status, **more)
        except CheckpointError as error:  # a full disk, say, which must not hide why the run ended
            display.warn(error.message)

    go_on = f"Go on: mosaic train --resume --run {run.name}"
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with display.TrainingDisplay(trainer.train.max_steps) as shown:
            for report in trainer.steps(should_stop):
                shown.show(report)
                write_event(report)
                if report.saved:  # so that a kill does not lose the time of the steps that were saved
                    record("running")
        finished = trainer.state.step == trainer.train.max_steps
        record("finished" if finished else "interrupted")
    except KeyboardInterrupt as left:
        record_failure("interrupted")
        raise Interrupted(
            "left at once; the last checkpoint is intact", caught[-1], where=run.path, hint=go_on
        ) from left
    except BaseException as error:
        diverged = isinstance(error, NonFiniteError)
        record_failure("failed", error=getattr(error, "message", repr(error)), diverged=diverged)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if caught and not finished:
        raise Interrupted(f"stopped at step {trainer.state.step}, saved", caught[0], where=run.path, hint=go_on)
    return caught[0] if caught else None


def _report(trainer: "Trainer", json: bool) -> None:
    info = trainer.run.info()
    metrics = trainer.run.metrics()
    losses = [line["val_loss"] for line in metrics if "val_loss" in line]
    values = {
        "run": str(trainer.run.path),
        "steps": trainer.state.step,
        "tokens": trainer.state.tokens,
        "parameters": info["parameters"],
        "train_loss": metrics[-1]["train_loss"] if metrics else None,
        "val_loss": losses[-1] if losses else None,
        "seconds": info["seconds"],
        "tokens_per_second": trainer.state.tokens / info["seconds"],
        "data_source": info["data_source"],
    }
    if json:
        display.print_json("mosaic.train/1", values)
        return
    val = f"validation loss {losses[-1]:.4f}, " if losses else ""
    display.note(
        f"{values['steps']} steps, {values['tokens']:,} tokens of {values['data_source']}, {val}"
        f"{display.format_seconds(values['seconds'])}, {values['tokens_per_second']:,.0f} tokens/s over all"
    )
    if info["fallback_reason"]:
        display.warn(f"the numbers are for {info['data_source']}: {info['fallback_reason']}")
    display.result(values["run"])


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text)
    if not match:
        raise UsageError(f"time limit {text!r} is not a duration", where="--time-limit", hint="Like 90s, 10m or 2h.")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _open_log(log_to: str | None) -> Callable:
    """A function of the run's folder that returns a function of a StepReport."""
    if log_to is None:
        return lambda _: lambda report: None
    if log_to != "tensorboard":
        raise UsageError(
            f"cannot log to {log_to!r}", where="--log-to", hint="Known: tensorboard. metrics.jsonl is always written."
        )
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "tensorboard is not installed", where="--log-to", hint="pip install 'mosaic-cli[tensorboard]'"
        ) from error

    def open_in(path: object) -> Callable:
        writer = SummaryWriter(path)

        def write(report: object) -> None:
            writer.add_scalar("loss/train", report.loss, report.step)
            writer.add_scalar("learning_rate", report.learning_rate, report.step)
            writer.add_scalar("grad_norm", report.grad_norm, report.step)
            if report.validation is not None:
                writer.add_scalar("loss/val", report.validation.loss, report.step)
                writer.flush()

        return write

    return open_in
