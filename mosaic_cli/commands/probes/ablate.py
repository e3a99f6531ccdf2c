"""`mosaic probe ablate`: what the loss becomes without memories."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Ckpt, Debug, Device, Json
from mosaic_cli.commands.probes.corpus import On, Out, Windows, results_folder, save
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.probes.ablate import Ablation

EPILOG = "Example: mosaic probe ablate --ckpt quickstart --method mean"


def ablate(
    ckpt: Ckpt,
    memories: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Memories to take away, each name alone: L1.H0.ctx, L*.H*.ctx.17, L0.H2.slot.411; repeatable. "
            "Default: every head of every kind, then each layer's kind.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="drop: the others take up the weight; zero, mean: the value becomes zero or the mean.")
    ] = "drop",
    distance: Annotated[
        str | None,
        typer.Option(metavar="A[-B]", help="Only pairs so far from their reader; 1 is the newest that it sees."),
    ] = None,
    on: On = "val",
    windows: Windows = 32,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens in a window; default: the training context.")
    ] = None,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the loss of a text without memories: a head, a layer's memories, or pairs at a distance."""
    distances = _distances(distance)

    from mosaic_cli.device import choose_exact_placement
    from mosaic_cli.probes import ablate as library
    from mosaic_cli.probes.edits import Memories
    from mosaic_cli.runs.loading import load_trained, open_text

    chosen = [Memories.parse(name) for name in memories or []]
    placement = choose_exact_placement(device)
    trained = load_trained(ckpt, placement)
    display.note(f"{trained.checkpoint}, {placement.reason}")
    model = trained.model
    chosen = chosen or library.every_memory(model, slots=distances is None)
    tokens, _ = open_text(trained, on)
    texts = library.first_windows(tokens, context or model.config.context_length, windows)
    folder = results_folder(out, trained.run, "ablate")
    found = []
    with display.Bar() as bar:
        for one in library.ablate(model, texts, chosen, placement, method=method, distances=distances):
            found.append(one)
            bar.update("ablating", len(found), len(chosen), str(one.memories))
    values = {
        "ckpt": trained.spec,
        "on": on,
        "method": method,
        "distance": list(distances) if distances else None,
        "context": texts.shape[1] - 1,
        "windows": len(texts),
        "loss": found[0].baseline,
        "results": [_row(one) for one in found],
    }
    save(folder, "ablate", "mosaic.probe.ablate/1", values)
    if json:
        display.print_json("mosaic.probe.ablate/1", values)
    else:
        _print(values)


def _distances(text: str | None) -> tuple[int, int] | None:
    """The first and last distance; a single one is both."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"--distance {text!r} is not A-B", where="--distance", hint="Like 1-16, or 1: the newest pair alone."
        )
    return int(match[1]), int(match[2] or match[1])


def _row(one: "Ablation") -> dict[str, object]:
    return {"memory": str(one.memories), "loss": one.loss, "change": one.change, "interval": one.interval}


def _print(values: dict) -> None:
    at = " at distance {}-{}".format(*values["distance"]) if values["distance"] else ""
    display.print_table(
        f"On {values['on']} without memories ({values['method']}){at}; with all: {values['loss']:.4f} nats per token",
        ["memory", "loss without", "change", "95 % interval"],
        [
            [
                row["memory"],
                f"{row['loss']:.4f}",
                f"{row['change']:+.4f}",
                "{:+.4f} to {:+.4f}".format(*row["interval"]) if row["interval"] else "",
            ]
            for row in values["results"]
        ],
        caption=f"{values['windows']} windows of {values['context']} tokens; the interval is paired by window.",
    )
