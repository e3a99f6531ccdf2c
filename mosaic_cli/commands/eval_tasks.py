"""What `mosaic eval --on` measures besides a text: tasks with figures of their own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from mosaic_cli.commands import far_recall_table, length_table, manyshot_table, recall_table

if TYPE_CHECKING:
    from pathlib import Path

    from mosaic_cli.device import Placement
    from mosaic_cli.runs.loading import TrainedModel


class EvalTask(NamedTuple):
    """How a task is measured and shown."""

    row: Callable[["TrainedModel", "Placement"], dict]
    """The object of one model."""
    show: Callable[[list[dict]], None]
    """The objects as a table on stdout."""
    figures: tuple[str, ...]
    """Keys that --min and --max may name."""
    draw: "Callable[[list[dict], Path], list[Path]] | None" = None
    """The objects as a figure, where --figure can be given; returns the files."""


TASKS = {
    "recall": EvalTask(recall_table.recall_row, recall_table.print_recall, ("accuracy", "recalls")),
    "recall-far": EvalTask(
        far_recall_table.far_recall_row, far_recall_table.print_far_recall, far_recall_table.FIGURES
    ),
    "length": EvalTask(
        length_table.length_row, length_table.print_length, length_table.FIGURES, draw=length_table.draw_length
    ),
    "manyshot": EvalTask(manyshot_table.manyshot_row, manyshot_table.print_manyshot, manyshot_table.FIGURES),
}
