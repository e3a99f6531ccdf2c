"""`mosaic eval --on manyshot`: classification in context, by the number of shots."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.commands.model_table import describe, print_models, share
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.evaluation.manyshot import ManyShotResult
    from mosaic_cli.runs.loading import TrainedModel

ON = "manyshot"
ROWS = 64
FIGURES = ("semantic", "anonymous", "semantic_beyond", "anonymous_beyond")  # what --min and --max may name


def manyshot_row(one: "TrainedModel", placement: "Placement") -> dict[str, object]:
    """The object of one model.

    Raises:
        UsageError: the model was not trained on the task, or its context holds no request whose class came before.
    """
    from mosaic_cli.data.tasks.manyshot import MODES, TEST_SHOTS, TRAINING_SHOTS, testing_problems
    from mosaic_cli.data.tasks.registry import check_trained_on
    from mosaic_cli.evaluation.manyshot import evaluate_manyshot

    check_trained_on(ON, one.tokenizer, one.spec)
    longest = TRAINING_SHOTS[1]
    figures: dict[str, object] = {}
    by_shots: list[dict] = []
    for mode in MODES:
        with display.Bar() as bar:
            for result in evaluate_manyshot(one.model, one.tokenizer, placement, testing_problems(mode, ROWS)):
                bar.update(f"{one.spec}, {mode} rows", len(result.rows), ROWS)
        figures[mode] = result.accuracy(0, longest - 1).mean
        figures[f"{mode}_beyond"] = result.accuracy(longest, TEST_SHOTS - 1).mean
        if figures[mode] is None:
            raise UsageError(
                f"no request of a class that came before lies within the context of {one.spec}",
                hint="Train with a longer context_length.",
            )
        spans = [(1, 2), (3, 5), (6, 11), (12, longest - 1), (longest, 2 * longest - 1), (2 * longest, TEST_SHOTS - 1)]
        by_shots += [_span(result, mode, first, last, last < longest) for first, last in spans]
        by_shots.append(_span(result, mode, 0, longest - 1, True, shown=False))
    return {
        **describe(one),
        "on": ON,
        **figures,
        "by_shots": by_shots,
    }


def _span(
    result: "ManyShotResult", mode: str, first: int, last: int, trained: bool, shown: bool = True
) -> dict[str, object]:
    return {
        "labels": mode,
        "from": first,
        "to": last,
        "trained": trained,
        "shown": shown,
        "chance": result.chance(first, last) if shown else None,
        **vars(result.accuracy(first, last, shown)),
    }


def print_manyshot(rows: list[dict]) -> None:
    """A table on stdout: accuracy by labels and number of shots."""
    by_shots = zip(*(row["by_shots"] for row in rows), strict=True)
    print_models(
        f"Classification in context, {ROWS} rows of classes that no training row has",
        rows,
        [[_words(cells[0]), *map(share, cells)] for cells in by_shots],
        caption="Share of labels whose two tokens are the likeliest. Shots: requests with labels before the one that "
        "is asked, of all 8 classes; its own class is among them, but for the rows that say it is not. Guessing: among "
        "the labels shown. Untrained: more shots than any training row has; a transformer cannot read past its "
        "context. Interval: 95 %, the row is the unit.",
    )


def _words(span: dict) -> str:
    if not span["shown"]:
        return f"{span['labels']}, class not shown"
    return f"{span['labels']}, {span['from']} to {span['to']} shots{'' if span['trained'] else ' (untrained)'}"
