"""What probes share: options, and the folder that their results go to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.runs.directory import Run

On = Annotated[str, typer.Option("--on", help="val: the run's own validation split; or a text, jsonl or parquet file.")]
Windows = Annotated[
    int, typer.Option("--windows", min=1, help="Windows to read, side by side from the start of the text.")
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for the JSON and the figures; default: RUN/probes/NAME.")
]


def results_folder(out: Path | None, run: "Run", name: str) -> Path:
    """Make the folder for a probe's results, before the work begins: `out`, or the run's own.

    Raises:
        UsageError: a file is in the way.
    """
    return make_folder(out or run.path / "probes" / name)


def make_folder(folder: Path, instead: str = "--out DIR") -> Path:
    """Make a folder, unless it is there; raises UsageError where a file is in the way, with the option that names
    another."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError("not a folder", where=folder, hint=f"Name another folder: {instead}") from error
    return folder


def save(folder: Path, name: str, schema: str, values: dict, draw: Callable[[dict, Path], None] | None = None) -> None:
    """Write the object that `--json` prints to NAME.json, and its figure, if it has one, to NAME.png and NAME.svg."""
    text = json.dumps({"schema": schema, **values}, ensure_ascii=False, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    if draw is None:
        display.note(f"written: {folder / name}.json")
        return
    for suffix in ("png", "svg"):
        draw(values, folder / f"{name}.{suffix}")
    display.note(f"written: {name}.json, {name}.png and {name}.svg in {folder}")
