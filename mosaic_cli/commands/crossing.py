"""`mosaic eval --crossing`: from which position in the window on one model is better than another."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.evaluation.language import LanguageResult
    from mosaic_cli.runs.loading import TrainedModel

WHERE = "--crossing"


def check_crossing(ckpt: list[str], contexts: list[int]) -> None:
    """Raises UsageError unless there are two models and at most one window length."""
    if len(ckpt) != 2:
        raise UsageError(
            f"a crossing is between two models, not {len(ckpt)}",
            where=WHERE,
            hint="--ckpt A --ckpt B: from where on is B better than A?",
        )
    if len(contexts) > 1:
        raise UsageError("a crossing is in windows of one length", where=WHERE, hint="Give --context one number.")


def crossing_object(results: "list[tuple[TrainedModel, LanguageResult]]", on: str) -> dict[str, object]:
    """Where the second model's smoothed loss comes to lie below the first's for good.

    Raises:
        UsageError: they did not read the same tokens in the same windows, or read no whole window.
    """
    from mosaic_cli.evaluation.crossing import find_crossing

    (first, above), (second, below) = results
    _check_same_text(first, second, on)
    if above.windows is None:
        raise UsageError(f"{on} has problems of any length, not windows", where=WHERE, hint="--on FILE")
    if above.context_length != below.context_length:
        raise UsageError(
            f"windows of {above.context_length} and {below.context_length} tokens cannot be compared by position",
            where=WHERE,
            hint=f"--context {min(above.context_length, below.context_length)}",
        )
    if not len(above.losses_of_windows()):
        raise UsageError("the text is shorter than one window", where=on, hint="Choose a shorter one: --context N")
    found = find_crossing(below.losses_of_windows(), above.losses_of_windows())
    return {
        "of": second.spec,
        "over": first.spec,
        "position": found.position,
        "interval": [found.low, found.high],
        "share": found.share,
        "windows": found.windows,
    }


def print_crossing(found: dict) -> None:
    """A table on stdout."""
    low, high = found["interval"]
    if found["position"] is None:
        position, interval = "nowhere: it is not below at the end of the window", ""
    else:
        position = "the first: it is below everywhere" if found["position"] == 0 else str(found["position"])
        interval = f"{low} to {'beyond the window' if high is None else high}"
    display.print_table(
        f"From which position on {found['of']} is below {found['over']}",
        ["", found["of"]],
        [
            ["position", position],
            ["95 % interval", interval],
            ["resamples with a crossing", f"{100 * found['share']:.1f} %"],
            ["windows", f"{found['windows']:,}"],
        ],
        caption="The smoothed loss is below from there to the end of the window; positions count from 0. Interval: "
        "bootstrap over windows, both models' in pairs.",
    )


def _check_same_text(first: "TrainedModel", second: "TrainedModel", on: str) -> None:
    if first.tokenizer.fingerprint != second.tokenizer.fingerprint:
        raise UsageError(
            f"{first.spec} and {second.spec} have different tokenizers, so a position is not the same place for both",
            where=WHERE,
            hint="Compare models that were trained on the same data.",
        )
    data = [one.run.info()["data_fingerprint"] for one in (first, second)]
    if on == "val" and data[0] != data[1]:
        raise UsageError(
            f"{first.spec} and {second.spec} have different validation splits",
            where="--on val",
            hint="Evaluate on a text: --on FILE",
        )
