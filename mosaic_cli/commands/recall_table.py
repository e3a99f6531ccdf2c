"""`mosaic eval --on recall`: how many facts of held-out stories models recall."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.commands.model_table import describe, print_models, with_interval
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.runs.loading import TrainedModel

STORIES = 200


def recall_row(one: "TrainedModel", placement: "Placement") -> dict[str, object]:
    """The object of one model.

    Raises:
        UsageError: a context so short that no recall of any story fits.
    """
    from mosaic_cli.evaluation.recall import evaluate_recall

    with display.Bar() as bar:
        for result in evaluate_recall(one.model, one.tokenizer, placement, STORIES):
            bar.update(f"{one.spec}, stories", result.stories, STORIES)
    if not result.answers:
        raise UsageError(f"no recall lies within the context of {one.spec}", hint="Train with a longer context_length.")
    whole = result.accuracy()
    return {
        **describe(one),
        "on": "recall",
        "accuracy": whole.mean,
        "interval": [whole.low, whole.high],
        "chance": result.chance,
        "recalls": whole.n,
        "recalls_beyond_context": result.unread,
        "by_form": {form: vars(row) for form, row in result.by_form().items()},
        "by_distance": [{"from": a, "to": b - 1, **vars(row)} for (a, b), row in result.by_distance().items()],
    }


def print_recall(rows: list[dict]) -> None:
    """Tables on stdout: accuracy as a whole, by form, by distance."""
    forms = sorted({form for row in rows for form in row["by_form"]})
    spans = sorted({(r["from"], r["to"]) for row in rows for r in row["by_distance"]})
    by_span = [{(r["from"], r["to"]): r for r in row["by_distance"]} for row in rows]
    print_models(
        f"Facts recalled in {STORIES} held-out built-in stories",
        rows,
        [
            ["accuracy", *(with_interval(r["accuracy"], *r["interval"]) for r in rows)],
            ["guessing", *(f"{row['chance']:.3f}" for row in rows)],
            ["recalls", *(f"{row['recalls']:,}" for row in rows)],
            ["beyond the context", *(f"{row['recalls_beyond_context']:,}" for row in rows)],
            *([form, *(_cell(row["by_form"].get(form)) for row in rows)] for form in forms),
            *([f"{a} to {b} tokens ago", *(_cell(row.get((a, b))) for row in by_span)] for a, b in spans),
        ],
        caption="The answer's first token is the likeliest. Interval: 95 %, Wilson, each recall a case. Guessing: "
        "among the answers that the story gave to facts of the kind.",
    )


def _cell(estimate: dict | None) -> str:
    return "" if estimate is None else f"{estimate['mean']:.3f} of {estimate['n']}"
