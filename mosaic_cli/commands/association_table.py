"""`mosaic eval --on mqar|induction`: how many answers to lists are right, by length of the list and distance."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.commands.model_table import describe, print_models, share
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.runs.loading import TrainedModel

FIGURES = ("accuracy", "accuracy_beyond", "answers")  # what --min and --max may name
ITEMS = {"mqar": "pairs", "induction": "letters"}


def association_row(one: "TrainedModel", placement: "Placement", on: str) -> dict[str, object]:
    """The object of one model.

    Raises:
        UsageError: the model was not trained on the task, or its context is shorter than the shortest problem.
    """
    from mosaic_cli.data.tasks.associations import TEST_SIZES, TRAINING_SIZES
    from mosaic_cli.data.tasks.registry import ASSOCIATIONS, check_trained_on
    from mosaic_cli.evaluation.associations import accuracy, accuracy_by_distance, evaluate_associations

    check_trained_on(on, one.tokenizer, one.spec)
    results = []
    with display.Bar() as bar:
        for result in evaluate_associations(one.model, one.tokenizer, placement, ASSOCIATIONS[on], TEST_SIZES):
            results.append(result)
            bar.update(f"{one.spec}, lengths of list", len(results), len(TEST_SIZES))
    inside = [result for result in results if result.size <= TRAINING_SIZES[1]]
    whole, beyond = accuracy(inside), accuracy([result for result in results if result not in inside])
    if not whole.n:
        raise UsageError(f"no answer lies within the context of {one.spec}", hint="Train with a longer context_length.")
    return {
        **describe(one),
        "on": on,
        "accuracy": whole.mean,
        "interval": [whole.low, whole.high],
        "answers": whole.n,
        "accuracy_beyond": beyond.mean,
        "by_size": [
            {
                "size": result.size,
                "trained": result in inside,
                "chance": result.chance,
                "unread": result.unread,
                **vars(accuracy([result])),
            }
            for result in results
        ],
        "by_distance": [{"from": a, "to": b - 1, **vars(row)} for (a, b), row in accuracy_by_distance(results).items()],
    }


def print_associations(rows: list[dict]) -> None:
    """A table on stdout: accuracy by length of the list, then by distance."""
    items = ITEMS[rows[0]["on"]]
    spans = sorted({(r["from"], r["to"]) for row in rows for r in row["by_distance"]})
    by_span = [{(r["from"], r["to"]): r for r in row["by_distance"]} for row in rows]
    sizes = zip(*(row["by_size"] for row in rows), strict=True)
    print_models(
        f"Answers right: {rows[0]['on']}",
        rows,
        [
            *([f"{r[0]['size']} {items}{'' if r[0]['trained'] else ' (untrained)'}", *map(share, r)] for r in sizes),
            *([f"{a} to {b} tokens ago", *(share(row.get((a, b))) for row in by_span)] for a, b in spans),
        ],
        caption="Right: the likeliest of all tokens. Interval: 95 %, Wilson, each answer a case. Guessing: among what "
        "the list has and was not asked back yet. Untrained: longer than any list in training; a transformer cannot "
        "read past its context. By distance: all lists.",
    )
