"""`mosaic eval --on recall-far`: questions about a fact far back in the text, by distance."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.commands.model_table import describe, print_models, share
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.evaluation.far_recall import FarRecallResult
    from mosaic_cli.runs.loading import TrainedModel

DISTANCES = (128, 256, 512, 1024, 2048, 4096)
STORIES = 100
FIGURES = (  # what --min and --max may name: one of each distance
    "accuracy_128",
    "accuracy_256",
    "accuracy_512",
    "accuracy_1024",
    "accuracy_2048",
    "accuracy_4096",
)


def far_recall_row(one: "TrainedModel", placement: "Placement") -> dict[str, object]:
    """The object of one model.

    Raises:
        UsageError: a context so short that no answer can be read.
    """
    from mosaic_cli.evaluation.far_recall import evaluate_far_recall

    results = []
    with display.Bar() as bar:
        for done, growing in enumerate(
            evaluate_far_recall(one.model, one.tokenizer, placement, DISTANCES, STORIES), start=1
        ):
            results = growing
            bar.update(f"{one.spec}, long stories", done, STORIES)
    if not any(result.answers for result in results):
        raise UsageError(f"no answer lies within the context of {one.spec}", hint="Train with a longer context_length.")
    return {
        **describe(one),
        "on": "recall-far",
        "context": one.model.config.context_length,
        "chance": next(result.chance for result in results if result.answers),
        **{name: result.accuracy.mean for name, result in zip(FIGURES, results, strict=True)},
        "by_distance": [_distance(result) for result in results],
    }


def _distance(result: "FarRecallResult") -> dict[str, object]:
    first, last = result.span or (None, None)
    return {
        "asked": result.distance,
        "from": first,
        "to": last,
        **vars(result.accuracy),
        "beyond_context": result.unread,
    }


def print_far_recall(rows: list[dict]) -> None:
    """A table on stdout: accuracy by distance."""
    by_distance = zip(*(row["by_distance"] for row in rows), strict=True)
    print_models(
        f"Questions about a fact far back, at the end of {STORIES} held-out built-in stories",
        rows,
        [
            ["training context", *(f"{row['context']:,}" for row in rows)],
            ["guessing", *(f"{row['chance']:.3f}" for row in rows)],
            *([f"about {cells[0]['asked']:,} tokens", *map(_cell, cells)] for cells in by_distance),
        ],
        caption="The answer's first token is the likeliest; distance from where the text said it last. The same "
        "questions at each distance, with paragraphs of other stories between, none of which has this story's things. "
        "Interval: 95 %, Wilson, each answer a case. Guessing: among the answers that the story itself gave to facts "
        "of the kind; the longer the text, the more there are besides.",
    )


def _cell(row: dict) -> str:
    if not row["n"]:
        return share(row)
    part = f", {row['beyond_context']} beyond its context" if row["beyond_context"] else ""
    return f"{share(row)} of {row['n']}{part}"
