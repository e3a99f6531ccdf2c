"""`mosaic probe toy-3moons`: three heads that learn a moon each, beside one head that cannot."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Debug, Device, Json
from mosaic_cli.errors import CheckFailed

if TYPE_CHECKING:
    from mosaic_cli.probes.moons import Experiment, Measurement, Setting

SCHEMA = "mosaic.probe.toy-3moons/1"
EPILOG = "Example: mosaic probe toy-3moons --check"
NUM_HEADS = (1, 3)
FEWEST_OBSERVATIONS = 36  # two a unit of time: at least one prediction falls into each span that is measured
CLAIM = "three heads need not wait for the joint period, one head must"
ROWS = {
    "error_before_joint": "mean absolute error, longest single to joint period",
    "error_after_joint": "mean absolute error, after the joint period",
    "ratio": "their ratio",
    "ratio_heldout": "their ratio on the held-out triple",
    "disentanglement": "disentanglement (mixing 1/3, a moon for each head 1)",
}


def toy_3moons(
    seeds: Annotated[int, typer.Option(min=1, help="Memories trained from different seeds, for the spread.")] = 5,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's size, learning rate and steps; an hour on two cores.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 3 when the claim does not hold.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for results.json and the figures.")] = Path("probes/toy-3moons"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default 300, with --paper 500.")] = None,
    observations: Annotated[
        int | None,
        typer.Option(
            min=FEWEST_OBSERVATIONS, help="Observations in the 18 units of a sequence; default 400, with --paper 800."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first seed; the others follow it.")] = 0,
    device: Device = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train one head and three heads on three moons, and measure when each can predict."""
    from mosaic_cli.probes.moons import PAPER, Setting

    changes = {"steps": steps, "observations": observations}
    setting = replace(
        PAPER if paper else Setting(),
        seeds=tuple(range(seed, seed + seeds)),
        device=_device(device),
        **{key: value for key, value in changes.items() if value is not None},
    )
    result = _run(setting, out)
    display.note(f"written: {out}/results.json, and figures as .png and .svg (seed {result['seed_drawn']})")
    failed = check and not result["claim_holds"]
    if not json:
        _print(result)
    if failed:  # with --json there is one object on stdout: the error takes the place of the results
        raise CheckFailed(_verdict(result), where="--check", hint=f"Every number is in {out}/results.json.")
    if json:
        display.print_json(SCHEMA, result)
    else:
        display.result(_verdict(result))


def _run(setting: "Setting", out: Path) -> dict[str, object]:
    """Train, measure and draw; write everything into the folder and return what results.json holds."""
    from mosaic_cli.commands.probes import moon_figures
    from mosaic_cli.commands.probes.corpus import make_folder
    from mosaic_cli.files import dump_json
    from mosaic_cli.probes.moons import claim_holds

    make_folder(out)  # a folder that cannot be made is told of before the work
    began = time.monotonic()
    experiments = [_train(num_heads, setting) for num_heads in NUM_HEADS]
    measurements = [experiment.measure() for experiment in experiments]
    shown = measurements[-1].typical_seed()  # neither the luckiest nor the unluckiest of the three-headed ones
    result = {
        "heads": [_row(measurement) for measurement in measurements],
        "claim_holds": claim_holds(measurements),
        "setting": asdict(setting),
        "seed_drawn": setting.seeds[shown],
        "seconds": time.monotonic() - began,
    }
    (out / "results.json").write_text(dump_json({"schema": SCHEMA, **result}), encoding="utf-8")
    moon_figures.draw(measurements, [experiment.demonstrate(shown) for experiment in experiments], shown, out)
    return result


def _device(name: str) -> str:
    from mosaic_cli.device import choose_placement

    placement = choose_placement(name, "float32")
    display.note(f"computing on {placement.device} in float32")
    return str(placement.device)


def _train(num_heads: int, setting: "Setting") -> "Experiment":
    from mosaic_cli.probes.moons import Experiment

    experiment = Experiment(num_heads, setting)
    name = f"{num_heads} head{'s' * (num_heads > 1)}, {len(setting.seeds)} seeds"
    with display.Bar() as bar:
        for step, loss in enumerate(experiment.train(), start=1):
            bar.update(name, step, setting.steps, f"loss {loss:.4f}")
    return experiment


def _row(measurement: "Measurement") -> dict[str, object]:
    """One entry of `heads`: means over the seeds, their intervals, the seeds themselves, and every triple."""
    from mosaic_cli.probes.moons import interval, mean

    by_seed = measurement.by_seed()
    row: dict[str, object] = {"num_heads": measurement.num_heads, "seeds": len(by_seed["ratio"])}
    for key, values in by_seed.items():
        row |= {key: mean(values), f"{key}_interval": interval(values)}
    return row | {"by_seed": by_seed, "triples": list(_triples(measurement))}


def _triples(measurement: "Measurement"):
    from mosaic_cli.probes.moons import HELD_OUT, TRIPLES

    for index, triple in enumerate(TRIPLES):
        before, after = measurement.split(index)
        yield {
            "periods": triple.periods,
            "joint_period": triple.joint,
            "held_out": index == HELD_OUT,
            "before": None if before is None else before.mean().item(),
            "after": after.mean().item(),
        }


def _print(result: dict) -> None:
    heads = ["", *(f"{row['num_heads']} head{'s' * (row['num_heads'] > 1)}" for row in result["heads"])]
    table = [[words, *(_cell(row, key) for row in result["heads"])] for key, words in ROWS.items()]
    seeds = result["heads"][0]["seeds"]
    display.print_table(
        f"Three moons, mean over {seeds} seed{'s' * (seeds > 1)}", heads, table, caption="± is half a 95 % interval."
    )


def _cell(row: dict, key: str) -> str:
    if row[f"{key}_interval"] is None:
        return f"{row[key]:.3f}"
    low, high = row[f"{key}_interval"]
    return f"{row[key]:.3f} ± {(high - low) / 2:.3f}"


def _verdict(result: dict) -> str:
    """The claim, whether it held, and the figures that decide."""
    from mosaic_cli.probes.moons import LEAST_WITH_ONE_HEAD, MOST_WITH_THREE_HEADS

    one, three = result["heads"]
    return (
        f"The claim {'holds' if result['claim_holds'] else 'does not hold'} ({CLAIM}): ratio and held-out ratio are "
        f"{three['ratio']:.2f} and {three['ratio_heldout']:.2f} with three heads (at most {MOST_WITH_THREE_HEADS:g}), "
        f"{one['ratio']:.2f} and {one['ratio_heldout']:.2f} with one (at least {LEAST_WITH_ONE_HEAD:g})"
    )
