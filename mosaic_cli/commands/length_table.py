"""`mosaic eval --on length`: loss beyond the training length, against the same tokens inside it."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.commands.model_table import describe, print_models
from mosaic_cli.errors import NonFiniteError, UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.runs.loading import TrainedModel

RATIOS = {"ratio_2": 2, "ratio_4": 4, "ratio_8": 8, "ratio_16": 16}  # up to so many training lengths
FIGURES = ("loss", *RATIOS)  # what --min and --max may name


def length_row(one: "TrainedModel", placement: "Placement") -> dict[str, object]:
    """The object of one model.

    Raises:
        UsageError: a run without a text to validate on, or with too short a one.
        NonFiniteError: a loss that is not finite.
    """
    from mosaic_cli.evaluation.length import FEWEST_WINDOWS, evaluate_length, longest_window
    from mosaic_cli.runs.loading import open_text

    tokens, _ = open_text(one, "val")
    window = longest_window(one.model, len(tokens))
    if not window:
        raise UsageError(
            f"the validation split of {one.spec} has {len(tokens):,} tokens, too few for {FEWEST_WINDOWS} windows",
            where="--on length",
            hint="Prepare more: a larger data.val_fraction or data.num_documents.",
        )
    with display.Bar() as bar:
        for result in evaluate_length(one.model, tokens, window, placement):
            if isinstance(result, float):
                bar.update(f"{one.spec}, percent of the reading", round(100 * result), 100)
    if not math.isfinite(result.loss + sum(band.loss for band in result.bands)):
        raise NonFiniteError(f"{one.spec} is not usable: a loss is not finite", where=one.checkpoint)
    return {
        **describe(one),
        "on": "length",
        "data_source": one.run.info()["data_source"],
        "context": result.context_length,
        "window": result.window,
        "windows": result.windows,
        "loss": result.loss,
        **{name: result.ratio(times) for name, times in RATIOS.items()},
        "by_band": [
            {
                "from": band.start,
                "to": band.stop - 1,
                "loss": band.loss,
                "ratio": band.ratio.mean,
                "low": band.ratio.low,
                "high": band.ratio.high,
            }
            for band in result.bands
        ],
    }


def print_length(rows: list[dict]) -> None:
    """A table on stdout: the loss of each band against the reference."""
    spans = sorted({(band["from"], band["to"]) for row in rows for band in row["by_band"]})
    by_span = [{(band["from"], band["to"]): band for band in row["by_band"]} for row in rows]
    print_models(
        f"Loss by position against that of the same tokens inside the training length ({rows[0]['data_source']})",
        rows,
        [
            ["training context", *(f"{row['context']:,}" for row in rows)],
            ["windows", *(f"{row['windows']:,} of {row['window']:,}" for row in rows)],
            ["reference (nats per token)", *(f"{row['loss']:.4f}" for row in rows)],
            *([f"positions {a:,} to {b:,}", *(_cell(bands.get((a, b))) for bands in by_span)] for a, b in spans),
        ],
        caption="In percent of the reference: the loss of the same tokens at the positions of the second half of "
        "windows of the training length. Interval: 95 %, the window is the unit. A transformer reads its own context "
        "and no further.",
    )


def _cell(band: dict | None) -> str:
    if band is None:
        return "not read"
    ratio, low, high = (100 * (band[key] - 1) for key in ("ratio", "low", "high"))
    return f"{ratio:+.2f} [{low:+.2f}, {high:+.2f}]"


def draw_length(rows: list[dict], path: Path) -> list[Path]:
    """Draw the bands of several runs; returns the files."""
    from mosaic_cli.commands.figures import draw_loss_by_length

    return draw_loss_by_length(rows, path)
