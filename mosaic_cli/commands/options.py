"""Options that several commands share, declared once so that they mean the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (also MOSAIC_DEBUG=1).")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Seed of the random draws (train: weights, order, dropout; prepare: the story writer)."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override a recipe key, such as train.max_steps=100; repeatable."
    ),
]
Ckpt = Annotated[
    str, typer.Option("--ckpt", metavar="RUN", help="Run name, run folder, checkpoint folder, or RUN@best|latest|STEP.")
]
DataDir = Annotated[Path | None, typer.Option("--data", help="Folder of prepared data; default: the run's own.")]
PromptFile = Annotated[Path | None, typer.Option("--prompt-file", help="Read the prompt from a file.")]
