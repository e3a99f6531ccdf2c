"""A run's folder: what it holds, and how a command finds one by name.

recipe.yaml  run.json  metrics.jsonl  tokenizer.json  checkpoints/{step-XXXXXXXX/, latest, best}
"""

import difflib
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_cli import __version__
from mosaic_cli.errors import CheckpointError, UsageError
from mosaic_cli.files import dump_json, load_json, locked, write_atomically
from mosaic_cli.recipe import RUN_NAME, Recipe

FORMAT_VERSION = 1
RUNS = Path("runs")


@dataclass(frozen=True)
class Run:
    """The folder of one training run."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def tokenizer_path(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "run.json").is_file()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run, begun or not, while the block runs: two processes that train it would mix their steps.

        Raises:
            UsageError: another process holds it.
        """
        in_use = UsageError(
            f"the run {self.name!r} is in use: another mosaic train is at work on it",
            where=self.path,
            hint="Wait until it ends, or stop it. Or begin another: --run OTHER-NAME.",
        )
        return locked(self.path, in_use)

    def info(self) -> dict[str, Any]:
        """The content of run.json."""
        return load_json(self.path / "run.json", FORMAT_VERSION, CheckpointError)

    def write(self, name: str, text: str) -> None:
        """Replace a file of the run, given by its path inside the folder.

        Raises:
            CheckpointError: it could not be written; the old one is untouched.
        """
        with _writing(self.path / name):
            write_atomically(self.path / name, text)

    def update_info(self, **values: Any) -> None:
        """Change some values of run.json."""
        self.write("run.json", dump_json({**self.info(), **values}))

    def log(self, **values: Any) -> None:
        """Append a line to metrics.jsonl."""
        with _writing(self.metrics_path), open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last line torn by a crash is left out."""
        if not self.metrics_path.is_file():
            return []
        try:
            lines = self.metrics_path.read_text(encoding="utf-8").split("\n")
            return [json.loads(line) for line in lines[:-1] if line]
        except ValueError as error:
            raise CheckpointError(
                f"metrics.jsonl is damaged: {error}",
                where=self.metrics_path,
                hint="Delete the damaged lines; only the record of past steps is lost.",
            ) from error

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps after `step`, which a resumed run will do again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def pointer(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` names, or None where there is none yet."""
        file = self.checkpoints / name
        if not file.is_file():
            return None
        return self.checkpoints / file.read_text(encoding="utf-8").strip()

    def point(self, name: str, checkpoint: Path) -> None:
        """Let `latest` or `best` name a checkpoint."""
        self.write(f"checkpoints/{name}", checkpoint.name + "\n")

    def point_nowhere(self, name: str) -> None:
        """Let `latest` or `best` be as before there was one."""
        (self.checkpoints / name).unlink(missing_ok=True)

    def prune(self, keep: int) -> None:
        """Delete all checkpoints but the newest `keep`, the best one and the latest one, and what a kill left half
        written."""
        folders = sorted(self.checkpoints.glob("step-*"))
        protected = {self.pointer("best"), self.pointer("latest"), *folders[-keep:]}
        for folder in folders:
            if folder not in protected:
                folder.rename(folder.with_name(f".{folder.name}.tmp"))  # at once, so that a kill leaves no half of one
        for leftover in self.checkpoints.glob(".step-*.tmp"):
            shutil.rmtree(leftover)


def create_run(name: str, recipe: Recipe, root: Path = RUNS, **info: Any) -> Run:
    """Begin a run in `root/name` with its recipe and run.json.

    Raises:
        UsageError: the name is not a plain name, or a run of that name exists.
    """
    run = locate_run(name, root)
    refuse_existing(run)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    run.write("recipe.yaml", recipe.to_yaml())
    run.write(
        "run.json",
        dump_json(
            {
                "format_version": FORMAT_VERSION,
                "name": name,
                "status": "running",
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "git_commit": _git_commit(),
                "versions": _versions(),
                "seed": recipe.train.seed,
                **info,
            }
        ),
    )
    return run


def refuse_existing(run: Run) -> None:
    """Raises UsageError when a run was begun in this folder: nothing is overwritten or resumed unasked."""
    if run.exists():
        raise UsageError(
            f"the run {run.name!r} exists",
            where=run.path,
            hint=f"Go on with it: --run {run.name} --resume. Or begin another: --run OTHER-NAME.",
        )


def locate_run(name: str, root: Path = RUNS) -> Run:
    """The folder that a run's name stands for, whether or not it exists.

    Raises:
        UsageError: the name holds a path or odd characters.
    """
    if not RUN_NAME.fullmatch(name):
        raise UsageError(
            f"run name {name!r} is not a plain name",
            where="--run",
            hint="Use letters, digits, dots, dashes and underscores; runs live in runs/.",
        )
    return Run(root / name)


def find_checkpoint(spec: str, root: Path = RUNS) -> tuple[Run | None, Path]:
    """Resolve `--ckpt`: a run's name or folder, optionally with @best, @latest or @STEP, or a checkpoint folder.

    Without @ it is the best checkpoint, or the latest one where no validation has happened yet.

    Returns:
        The run (None for a checkpoint folder that lies in no run) and the checkpoint's folder.

    Raises:
        UsageError: no such run or checkpoint.
    """
    name, which = (spec, "") if Path(spec).exists() else spec.partition("@")[::2]
    path = Path(name)
    if _is_checkpoint(path) and not which:
        run = Run(path.resolve().parent.parent)
        return (run if run.exists() else None), path
    run = Run(path) if (path / "run.json").is_file() else Run(root / name)
    if not run.exists() and path.is_file():
        raise UsageError(
            f"{name} is a file, neither a run nor a checkpoint folder",
            where="--ckpt",
            hint=f"Pickled weights (.pt, .pkl) are never read. {_similar_runs(name, root)}",
        )
    if not run.exists():
        raise UsageError(f"no run {name!r}", where=run.path, hint=_similar_runs(name, root))
    return run, _checkpoint_of(run, which)


def _is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, a damaged one included."""
    return path.is_dir() and any((path / name).is_file() for name in ("state.json", "model.safetensors"))


def _checkpoint_of(run: Run, which: str) -> Path:
    if which.isdecimal():
        checkpoint = run.checkpoints / f"step-{int(which):08d}"
    elif which in ("", "best", "latest"):
        checkpoint = run.pointer(which or "best") or (run.pointer("latest") if not which else None)
    else:
        raise UsageError(f"@{which} is not @best, @latest or @STEP", where=run.path)
    if checkpoint is None or not checkpoint.is_dir():
        there = ", ".join(str(int(p.name[5:])) for p in sorted(run.checkpoints.glob("step-*"))) or "none"
        raise UsageError(
            f"the run {run.name!r} has no checkpoint {which or 'yet'}",
            where=run.checkpoints,
            hint=f"Steps saved: {there}.",
        )
    return checkpoint


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns a write that the system refuses (a full disk, say) into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path.name} could not be written: {error.strerror}",
            where=path,
            hint="Free some disk space, then train with --resume.",
        ) from error


def _similar_runs(name: str, root: Path) -> str:
    names = sorted(path.parent.name for path in root.glob("*/run.json"))
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Runs here: {', '.join(names)}." if names else "Train one first: mosaic train RECIPE"


def _versions() -> dict[str, str]:
    import torch

    return {"mosaic": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _git_commit() -> str | None:
    """The commit of the toolkit's checkout, or None when it was installed otherwise."""
    checkout = Path(__file__).parent.parent.parent
    if not (checkout / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
