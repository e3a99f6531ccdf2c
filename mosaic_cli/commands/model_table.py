"""What the tasks of `mosaic eval` share: which model it is, and tables with a column a model."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mosaic_cli.commands import display

if TYPE_CHECKING:
    from mosaic_cli.runs.loading import TrainedModel


def describe(one: "TrainedModel") -> dict[str, object]:
    """Which model it is: what every object of `mosaic eval --json` begins with."""
    from mosaic_cli.core.model import count_parameters

    return {
        "ckpt": one.spec,
        "checkpoint": str(one.checkpoint),
        "kind": one.model.config.kind,
        "parameters": count_parameters(one.model),
    }


def print_models(title: str, rows: list[dict], lines: Iterable[list[str]], caption: str) -> None:
    """A table on stdout: name, kind and parameters of each model, then the lines, each a label and a cell a model."""
    display.print_table(
        title,
        ["", *(row["ckpt"] for row in rows)],
        [
            ["kind", *(row["kind"] for row in rows)],
            ["parameters", *(f"{row['parameters']:,}" for row in rows)],
            *lines,
        ],
        caption=caption,
    )


def with_interval(mean: float, low: float | None, high: float | None) -> str:
    """A cell: the figure, and its interval if it has one."""
    return f"{mean:.3f}" if low is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def share(row: dict | None) -> str:
    """A cell: the share of right answers among `n`, and that of guessing (`chance`) where the row has it."""
    if row is None:
        return ""
    if not row["n"]:
        return "beyond its context"
    guess = f", guessing {row['chance']:.3f}" if row.get("chance") else ""
    return with_interval(row["mean"], row["low"], row["high"]) + guess
