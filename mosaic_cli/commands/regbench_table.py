"""`mosaic eval --on regbench`: how well models learn a language in context, beside counting."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.commands.model_table import describe, print_models, with_interval

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.evaluation.regbench import RegBenchResult
    from mosaic_cli.runs.loading import TrainedModel

ON = "regbench"
ORDERS = (2, 3)  # of the n-gram models that stand beside
FIGURES = ("accuracy", "tvd")  # what --min and --max may name


def regbench_row(one: "TrainedModel", placement: "Placement") -> dict[str, object]:
    """The object of one model.

    Raises:
        UsageError: the model was not trained on RegBench.
    """
    from mosaic_cli.data.tasks.regbench import testing_problems
    from mosaic_cli.data.tasks.registry import check_trained_on
    from mosaic_cli.evaluation.regbench import evaluate_regbench

    check_trained_on(ON, one.tokenizer, one.spec)
    problems = testing_problems()
    with display.Bar() as bar:
        for result in evaluate_regbench(one.model, one.tokenizer, placement, problems):
            bar.update(f"{one.spec}, languages", len(result.positions), len(problems))
    return describe(one) | _figures(result)


def ngram_rows() -> list[dict[str, object]]:
    """The objects of the n-gram models."""
    from mosaic_cli.data.tasks.regbench import testing_problems
    from mosaic_cli.evaluation.regbench import evaluate_ngram

    problems, rows = testing_problems(), []
    for order in ORDERS:
        name = f"{order}-gram"
        with display.Bar() as bar:
            for result in evaluate_ngram(order, problems):
                bar.update(f"{name}, languages", len(result.positions), len(problems))
        rows.append({"ckpt": name, "checkpoint": None, "kind": "n-gram", "parameters": 0} | _figures(result))
    return rows


def _figures(result: "RegBenchResult") -> dict[str, object]:
    accuracy, tvd = result.accuracy, result.tvd
    return {
        "on": ON,
        "accuracy": accuracy.mean,
        "interval": [accuracy.low, accuracy.high],
        "tvd": tvd.mean,
        "tvd_interval": [tvd.low, tvd.high],
        "languages": accuracy.n,
        "positions": sum(result.positions),
    }


def print_regbench(rows: list[dict]) -> None:
    """A table on stdout."""
    print_models(
        f"RegBench, {rows[0]['languages']} test languages, {rows[0]['positions']:,} positions",
        rows,
        [
            ["accuracy", *(with_interval(row["accuracy"], *row["interval"]) for row in rows)],
            ["TVD", *(with_interval(row["tvd"], *row["tvd_interval"]) for row in rows)],
        ],
        caption="Accuracy: share of positions whose likeliest token the automaton allows. TVD: mean total variation "
        "distance from its distribution. Interval: 95 %, the language being the unit. n-gram: counting in context, "
        "without any training.",
    )
