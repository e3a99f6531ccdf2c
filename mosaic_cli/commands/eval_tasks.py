"""What `mosaic eval --on` measures besides a text: tasks with figures of their own."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mosaic_cli.commands import (
    association_table,
    far_recall_table,
    length_table,
    manyshot_table,
    recall_after_table,
    recall_table,
    regbench_table,
)

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
    rows_beside: Callable[[], list[dict]] = list
    """Objects of what needs no model."""
    draw: "Callable[[list[dict], Path], list[Path]] | None" = None
    """The objects as a figure, where --figure can be given; returns the files."""


def _association(on: str) -> EvalTask:
    row = partial(association_table.association_row, on=on)
    return EvalTask(row, association_table.print_associations, association_table.FIGURES)


TASKS = {
    "recall": EvalTask(recall_table.recall_row, recall_table.print_recall, ("accuracy", "recalls")),
    "regbench": EvalTask(
        regbench_table.regbench_row, regbench_table.print_regbench, regbench_table.FIGURES, regbench_table.ngram_rows
    ),
    "mqar": _association("mqar"),
    "induction": _association("induction"),
    "recall-far": EvalTask(
        far_recall_table.far_recall_row, far_recall_table.print_far_recall, far_recall_table.FIGURES
    ),
    "recall-after": EvalTask(
        recall_after_table.recall_after_row, recall_after_table.print_recall_after, recall_after_table.FIGURES
    ),
    "length": EvalTask(
        length_table.length_row, length_table.print_length, length_table.FIGURES, draw=length_table.draw_length
    ),
    "manyshot": EvalTask(manyshot_table.manyshot_row, manyshot_table.print_manyshot, manyshot_table.FIGURES),
}
