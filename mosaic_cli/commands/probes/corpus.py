"""What the probes that read a corpus share: their options, and the folder that their results go to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
    folder = out or run.path / "probes" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError("not a folder", where=folder, hint="Name another folder: --out DIR") from error
    return folder
