"""`mosaic eval --on recall-after`: facts of a story read after other stories, which may speak of the same things."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.commands.model_table import describe, print_models, share
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.evaluation.recall_after import RecallAfterResult
    from mosaic_cli.runs.loading import TrainedModel

ON = "recall-after"
LENGTHS = (0, 512, 1024, 2048, 4096)
STORIES = 100
FIGURES = (  # what --min and --max may name: nothing before, then two of each length
    "alone",
    "clear_512",
    "clash_512",
    "clear_1024",
    "clash_1024",
    "clear_2048",
    "clash_2048",
    "clear_4096",
    "clash_4096",
)


def recall_after_row(one: "TrainedModel", placement: "Placement") -> dict[str, object]:
    """The object of one model.

    Raises:
        UsageError: a context so short that no fact can be asked for.
    """
    from mosaic_cli.evaluation.recall_after import evaluate_recall_after

    results: list[RecallAfterResult] = []
    with display.Bar() as bar:
        steps = evaluate_recall_after(one.model, one.tokenizer, placement, LENGTHS, STORIES)
        for done, growing in enumerate(steps, start=1):
            results = growing
            bar.update(f"{one.spec}, stories after others", done, STORIES)
    if not results[0].answers:
        raise UsageError(f"no recall lies within the context of {one.spec}", hint="Train with a longer context_length.")
    clear, clash = ([result.accuracy(group) for result in results] for group in (False, True))
    means = [clear[0].mean]  # a story alone: nothing came before, so nothing was spoken of
    for one_clear, one_clash in zip(clear[1:], clash[1:], strict=True):
        means += [one_clear.mean, one_clash.mean]
    return {
        **describe(one),
        "on": ON,
        "context": one.model.config.context_length,
        **dict(zip(FIGURES, means, strict=True)),
        "by_length": [
            {"before": result.before, "clear": vars(a), "clash": vars(b), "beyond_context": result.unread}
            for result, a, b in zip(results, clear, clash, strict=True)
        ],
    }


def print_recall_after(rows: list[dict]) -> None:
    """A table on stdout: accuracy by what came before."""
    by_length = list(zip(*(row["by_length"] for row in rows), strict=True))
    groups = (("clear", "no other spoke of it"), ("clash", "another spoke of it"))
    print_models(
        f"Facts recalled in {STORIES} held-out built-in stories that are read after others",
        rows,
        [
            ["training context", *(f"{row['context']:,}" for row in rows)],
            ["alone", *(share(cell["clear"]) for cell in by_length[0])],
            *(
                [f"after {cells[0]['before']:,} tokens, {words}", *(share(cell[group]) for cell in cells)]
                for cells in by_length[1:]
                for group, words in groups
            ),
        ],
        caption="The answer's first token is the likeliest. Before the story stand as many whole stories as fit into "
        "so many tokens; a fact is about a thing or an animal that one of them spoke of, or none. The same stories at "
        "each length. Interval: 95 %, Wilson, each recall a case.",
    )
