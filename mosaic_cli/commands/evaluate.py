"""`mosaic eval`: what models pay for a text, one column a model."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.crossing import check_crossing, crossing_object, print_crossing
from mosaic_cli.commands.eval_tasks import TASKS
from mosaic_cli.commands.model_table import describe
from mosaic_cli.commands.options import Debug, Device, Dtype, Json
from mosaic_cli.errors import CheckFailed, NonFiniteError, UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.evaluation.language import LanguageResult
    from mosaic_cli.runs.loading import TrainedModel

EPILOG = "Example: mosaic eval --ckpt quickstart --on val --by-position"
BOUNDS = ("loss", "perplexity", "bits_per_byte", "tokens")  # figures that --min and --max may name
BATCH_TOKENS = 8192


def evaluate(
    ckpt: Annotated[
        list[str],
        typer.Option(
            "--ckpt",
            metavar="RUN",
            help="Run name, run folder, checkpoint folder, or RUN@best|latest|STEP; repeatable, one column each.",
        ),
    ],
    on: Annotated[
        str,
        typer.Option(
            help="val: the run's own validation split; recall: facts of held-out built-in stories; recall-far: the "
            "same with other stories between; recall-after: with other stories before; length: the validation split in "
            "windows far longer than in training; regbench, mqar, induction, manyshot: the task's own problems; or a "
            "text, jsonl or parquet file."
        ),
    ] = "val",
    by_position: Annotated[bool, typer.Option("--by-position", help="Loss at each position of the window.")] = False,
    context: Annotated[str | None, typer.Option(help="Window lengths N,N,...; default: the training context.")] = None,
    min_: Annotated[
        list[str] | None, typer.Option("--min", metavar="NAME=V", help="Exit 3 when a figure is below V; repeatable.")
    ] = None,
    max_: Annotated[
        list[str] | None, typer.Option("--max", metavar="NAME=V", help="Exit 3 when a figure is above V; repeatable.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of a record that holds the text, with --on FILE.")] = "text",
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens read at once; does not change the result.")
    ] = BATCH_TOKENS,
    crossing: Annotated[
        bool,
        typer.Option(
            "--crossing", help="Of two models: the position from which on the second's smoothed loss is the lower one."
        ),
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="With --by-position, --crossing or --on length: draw the curves into this .png or .svg; without a "
            "suffix, both."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure models on a text: loss, perplexity, bits per byte, with 95 % confidence intervals."""
    from mosaic_cli.device import choose_placement
    from mosaic_cli.runs.loading import load_trained

    task = TASKS.get(on)
    known = task.figures if task else BOUNDS
    bounds = (
        [_bound(text, "--min", known) for text in min_ or []],
        [_bound(text, "--max", known) for text in max_ or []],
    )
    contexts = _contexts(context)
    if task and (by_position or contexts or crossing):
        raise UsageError(
            f"{on} has problems and positions of its own",
            where=f"--on {on}",
            hint="Leave out --by-position, --context and --crossing.",
        )
    if crossing:
        check_crossing(ckpt, contexts)
        by_position = True
    if figure is not None:
        from mosaic_cli.commands.figures import check_figure, draw_loss_by_position

        check_figure(figure, by_position or (task is not None and task.draw is not None))
    placement = choose_placement(device, dtype)
    display.note(f"evaluating on {placement.reason}")
    trained = [load_trained(spec, placement) for spec in ckpt]
    found = {}
    if task:
        rows = [task.row(one, placement) for one in trained]
    else:
        results = _language_results(trained, placement, on, text_field, contexts, batch_tokens, crossing)
        rows = [_values(one, result, on, by_position) for one, result in results]
        found = {"crossing": crossing_object(results, on)} if crossing else {}
    if figure is not None:
        for path in task.draw(rows, figure) if task else draw_loss_by_position(rows, figure, **found):
            display.note(f"drawn: {path}")
    failed = _failed(rows, *bounds)
    if task:
        rows += task.rows_beside()
    if not json:
        task.show(rows) if task else _print(rows, by_position)
        if crossing:
            print_crossing(found["crossing"])
    elif not failed:  # one object on stdout: the error takes the place of the results
        display.print_json("mosaic.eval/1", {"results": rows, **found})
    if failed:
        raise CheckFailed("; ".join(failed), where="--min/--max")


def evaluate_one(one: "TrainedModel", on: str, placement: "Placement") -> dict[str, object]:
    """One model's object as `--json` prints it, with every option at its default but `--on`."""
    if task := TASKS.get(on):
        return task.row(one, placement)
    ((_, result),) = _language_results([one], placement, on, "text", [], BATCH_TOKENS, False)
    return _values(one, result, on, by_position=False)


def _language_results(
    trained: "list[TrainedModel]",
    placement: "Placement",
    on: str,
    text_field: str,
    contexts: list[int],
    batch_tokens: int,
    keep_windows: bool,
) -> "list[tuple[TrainedModel, LanguageResult]]":
    """One result a model and context length."""
    from mosaic_cli.runs.loading import open_text

    results = []
    for one in trained:
        tokens, num_bytes = open_text(one, on, text_field, rows_too=True)
        if num_bytes is None and contexts:
            raise UsageError(
                f"the data of {one.spec} consists of rows of their own length",
                where="--context",
                hint="Leave it out.",
            )
        if contexts and max(contexts) >= len(tokens):
            raise UsageError(
                f"a window of {max(contexts):,} tokens is longer than {one.spec}'s text, which has {len(tokens):,}",
                where="--context",
                hint=f"At most {len(tokens) - 1}, for a window's last token is only predicted.",
            )
        options = {"num_bytes": num_bytes, "batch_tokens": batch_tokens, "keep_windows": keep_windows}
        for length in contexts or [one.model.config.context_length]:
            results.append((one, _measure(one, tokens, length, placement, options)))
    return results


def _measure(one: "TrainedModel", tokens, length: int, placement, options: dict) -> "LanguageResult":
    from mosaic_cli.evaluation.language import evaluate_language

    with display.Bar() as bar:
        for result in evaluate_language(one.model, tokens, placement, context_length=length, **options):
            bar.update(f"{one.spec}, context {length}", result.tokens, result.total_tokens)
    if not math.isfinite(result.perplexity):
        raise NonFiniteError(
            f"{one.spec} is not usable: its loss is {result.loss:g}",
            where=one.checkpoint,
            hint="Use an earlier checkpoint: --ckpt RUN@STEP.",
        )
    return result


def _values(one: "TrainedModel", result: "LanguageResult", on: str, by_position: bool) -> dict[str, object]:
    finite = all(map(math.isfinite, result.interval))
    info = one.run.info()
    values = {
        **describe(one),
        "on": on,
        "data_source": info["data_source"] if on == "val" else on,
        "context": result.context_length,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "interval": list(result.interval) if finite else None,
    }
    if by_position:
        values |= {"positions": result.positions, "loss_by_position": result.loss_by_position}
    return values


def _print(rows: list[dict], by_position: bool) -> None:
    heads = ["", *(f"{row['ckpt']} @ {row['context']}" for row in rows)]
    half = [(row["interval"][1] - row["interval"][0]) / 2 if row["interval"] else None for row in rows]
    table = [
        ["kind", *(row["kind"] for row in rows)],
        ["parameters", *(f"{row['parameters']:,}" for row in rows)],
        [
            "loss (nats per token)",
            *(
                f"{r['loss']:.4f} ± {h:.4f}" if h is not None else f"{r['loss']:.4f}"
                for r, h in zip(rows, half, strict=True)
            ),
        ],
        ["perplexity", *(f"{row['perplexity']:.3f}" for row in rows)],
        ["bits per byte", *("" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.4f}" for row in rows)],
        ["tokens", *(f"{row['tokens']:,}" for row in rows)],
    ]
    sources = ", ".join(dict.fromkeys(str(row["data_source"]) for row in rows))
    display.print_table(
        f"On {rows[0]['on']} ({sources})",
        heads,
        table,
        caption="± is half a 95 % confidence interval; the window is the unit.",
    )
    if by_position:
        longest = 1 + max(max(row["positions"]) for row in rows)
        spans = [(0, 1)] + [(2**i, min(2 ** (i + 1), longest)) for i in range(longest.bit_length()) if 2**i < longest]
        display.print_table(
            "Loss by position in the window (mean over the span)",
            heads,
            [[f"{a}" if b == a + 1 else f"{a}-{b - 1}", *(_mean(row, a, b) for row in rows)] for a, b in spans],
        )


def _mean(row: dict, start: int, stop: int) -> str:
    by_position = zip(row["positions"], row["loss_by_position"], strict=True)
    losses = [loss for position, loss in by_position if start <= position < stop]
    return f"{sum(losses) / len(losses):.4f}" if losses else ""


def _contexts(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--context {text!r} is not a list of lengths", where="--context", hint="Like 256,512,1024.")
    return [int(part) for part in parts]


def _bound(text: str, flag: str, known: tuple[str, ...]) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        bound = float(value)
    except ValueError:
        bound = math.nan
    if name not in known or math.isnan(bound):
        raise UsageError(f"{flag} {text!r} is not NAME=VALUE", where=flag, hint=f"Names: {', '.join(known)}.")
    return name, bound


def _failed(rows: list[dict], minima: list[tuple[str, float]], maxima: list[tuple[str, float]]) -> list[str]:
    """What lies outside of its bounds, in words; what a model has no figure of does not hold either."""
    sides = [(name, bound, "below", -1) for name, bound in minima] + [(n, b, "above", 1) for n, b in maxima]
    return [
        f"{row['ckpt']} has no {name}"
        if row[name] is None
        else f"{row['ckpt']}: {name} {row[name]:.6g} is {side} {bound:g}"
        for name, bound, side, sign in sides
        for row in rows
        if row[name] is None or sign * (row[name] - bound) > 0
    ]
