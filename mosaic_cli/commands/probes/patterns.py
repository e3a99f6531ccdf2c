"""`mosaic probe patterns`: how far back each head looks, and the scalars it learned."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Debug, Device, Json
from mosaic_cli.commands.probes.corpus import On, Out, Windows, results_folder, save
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.probes.patterns import DistancePattern
    from mosaic_cli.runs.loading import TrainedModel

EPILOG = "Example: mosaic probe patterns --ckpt quickstart"
SCALARS = {  # name -> what the table calls it
    "decay": "λ",
    "half_life": "half life",
    "beta": "β",
    "beta_0": "β₀",
    "beta_1": "β₁",
    "power": "a",
    "gamma": "γ",
    "alpha": "α",
    "slot_decay": "slots: λ",
    "slot_half_life": "half life",
    "slot_beta": "β",
    "slot_alpha": "α",
}


def patterns(
    ckpt: Annotated[
        list[str],
        typer.Option(
            "--ckpt",
            metavar="RUN",
            help="Run name, run folder, checkpoint folder, or RUN@best|latest|STEP; repeatable, side by side.",
        ),
    ],
    on: On = "val",
    windows: Windows = 32,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens in a window; default: the training context.")
    ] = None,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Mean retrieval weight against distance for every head, and the scalars that a mosaic's heads learned."""
    from mosaic_cli.commands.figures import draw_patterns
    from mosaic_cli.device import choose_exact_placement
    from mosaic_cli.runs.loading import load_trained

    placement = choose_exact_placement(device)
    display.note(f"reading on {placement.reason}")
    trained = [load_trained(spec, placement) for spec in ckpt]
    for one in trained:
        _check_context(one, context)
    folder = results_folder(out, trained[0].run, "patterns")
    rows = [_values(one, _measure(one, on, windows, context), on) for one in trained]
    save(folder, "patterns", "mosaic.probe.patterns/1", {"results": rows}, draw_patterns)
    if json:
        display.print_json("mosaic.probe.patterns/1", {"results": rows})
        return
    for row in rows:
        _print_weights(row)
        if row["kind"] == "mosaic":
            _print_scalars(row)


def _check_context(one: "TrainedModel", context: int | None) -> None:
    config = one.model.config
    if context and config.kind == "transformer" and context > config.context_length:
        raise UsageError(
            f"{one.spec} is a transformer trained on {config.context_length} tokens and cannot read {context}",
            where="--context",
            hint=f"Give --context {config.context_length} or less, or look at the mosaic alone.",
        )


def _measure(one: "TrainedModel", on: str, windows: int, context: int | None) -> "DistancePattern":
    from mosaic_cli.probes.patterns import distance_pattern
    from mosaic_cli.runs.loading import open_text

    tokens, _ = open_text(one, on)
    with display.Bar() as bar:
        for pattern in distance_pattern(one.model, tokens, context=context, windows=windows):
            bar.update(one.spec, pattern.windows, pattern.total_windows)
    return pattern


def _values(one: "TrainedModel", pattern: "DistancePattern", on: str) -> dict[str, object]:
    means, H = pattern.mean_weight.tolist(), one.model.config.num_heads
    heads = [
        {"layer": layer, "head": row % H, "memory": pattern.kinds[row // H], "mean_weight": weights}
        for layer, by_head in enumerate(means)
        for row, weights in enumerate(by_head)
    ]
    for values, scalars in zip(heads, _scalars(one), strict=False):  # a transformer has none
        values |= scalars
    return {
        "ckpt": one.spec,
        "checkpoint": str(one.checkpoint),
        "kind": one.model.config.kind,
        "on": on,
        "data_source": one.run.info()["data_source"] if on == "val" else on,
        "context": pattern.context,
        "windows": pattern.windows,
        "distances": list(pattern.distances),
        "even": pattern.even.tolist(),
        "heads": heads,
    }


def _scalars(one: "TrainedModel") -> list[dict[str, float | None]]:
    from mosaic_cli.probes.patterns import learned_scalars

    if one.model.config.kind != "mosaic":
        return []
    found = ({name: getattr(head, name) for name in SCALARS} for head in learned_scalars(one.model))
    return [
        {name: x if math.isfinite(x) else None for name, x in head.items() if x is not None}  # None: endless
        for head in found
    ]


def _print_weights(row: dict) -> None:
    longest, nearest = row["distances"][-1] + 1, row["distances"][0]
    spans = [(0, 1)] * (nearest == 0)
    spans += [(2**i, min(2 ** (i + 1), longest)) for i in range(longest.bit_length()) if 2**i < longest]
    lines = [(_name(head), head["mean_weight"]) for head in row["heads"]]
    display.print_table(
        f"{row['ckpt']} ({row['kind']}): mean retrieval weight by distance in tokens, on {row['on']}, "
        f"{row['windows']} windows of {row['context']}",
        ["head", *(f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in spans)],
        [
            [name, *(f"{_mean(weights[a - nearest : b - nearest]):.3g}" for a, b in spans)]
            for name, weights in [*lines, ("even", row["even"])]
        ],
        caption="Averaged over the positions that have a pair at the distance. "
        "even: what a head shows that weighs all its pairs alike.",
    )


def _mean(weights: list[float]) -> float:
    return sum(weights) / len(weights)


def _name(head: dict) -> str:
    return f"L{head['layer']}.H{head['head']}" + ("" if head["memory"] == "ctx" else f".{head['memory']}")


def _print_scalars(row: dict) -> None:
    learned = [name for name in SCALARS if name in row["heads"][0]]
    display.print_table(
        f"{row['ckpt']}: what its heads learned",
        ["head", *(SCALARS[name] for name in learned)],
        [
            [_name(head), *("∞" if head[name] is None else f"{head[name]:.3g}" for name in learned)]
            for head in row["heads"]
        ],
        caption="λ: kept of a key's average per token; half life in tokens, ln 2 / ρ; β: inverse bandwidth, of n pairs "
        "β₁ n^a + β₀ where it grows; γ: the stored token's own share of its value; α: size of values.",
    )
