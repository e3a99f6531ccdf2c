"""`mosaic probe verify`: whether traces tell the truth."""

from typing import Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Ckpt, Debug, Device, Json
from mosaic_cli.commands.probes.corpus import Out, results_folder, save

EPILOG = "Example: mosaic probe verify --ckpt stories-recall --prompts 50"
SCHEMA = "mosaic.probe.verify/1"
MEASURES = {
    "answered": "facts that the model recalls right; all that follows is about these",
    "source_top1": "the source is the first traced memory",
    "source_top3": "the source is among the first 3",
    "source_top10": "the source is among the first 10",
    "costliest_in_top3": "the costliest deletion is among the 3 whose loss is foretold to cost most",
    "deletion_efficacy": "deleting the first 3 changes the answer",
    "deletion_specificity": "and keeps the other predictions of the story",
    "source_deletion_efficacy": "deleting all that is stored at the source changes the answer",
    "source_deletion_specificity": "and keeps the other predictions",
    "edit_efficacy": "replacing the stored value gives the new answer",
    "edit_generalisation": "and when asked in another form",
    "edit_specificity": "and keeps the other predictions",
    "comprehensiveness": "probability lost without the first shares (AOPC, more is better)",
    "sufficiency": "probability lost with the first shares alone (AOPC, less is better)",
    "rank_correlation": "of contribution and measured effect, over all pairs",
    "subset_correlation_contribution": "of summed contributions and effects of random tenths",
    "subset_correlation_unread": "of summed unread effects and effects of random tenths",
}


def verify(
    ckpt: Ckpt,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out stories, one recall of each.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which stories, and the random draws of the controls.")] = 0,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Hold traces against what deleting and replacing memories really does, on built-in stories never trained on.

    Takes some seconds a prompt: every stored pair of every prompt is deleted once.
    """
    from mosaic_cli.device import choose_exact_placement
    from mosaic_cli.probes.verdict import summarise
    from mosaic_cli.probes.verify import verify as examine_all
    from mosaic_cli.runs.loading import load_trained

    placement = choose_exact_placement(device)
    trained = load_trained(ckpt, placement)
    folder = results_folder(out, trained.run, "verify")
    display.note(f"{trained.checkpoint}, {placement.reason}")
    findings = []
    with display.Bar() as bar:
        for finding in examine_all(trained.model, trained.tokenizer, prompts, seed):
            findings.append(finding)
            bar.update("prompts", len(findings), prompts)
    values = {"ckpt": ckpt, "checkpoint": str(trained.checkpoint), "kind": trained.model.config.kind}
    values |= summarise(findings)
    save(folder, "verify", SCHEMA, values)
    if json:
        display.print_json(SCHEMA, values)
    else:
        _print(values)


def _print(values: dict) -> None:
    errors = {name: values[f"{name}_error"]["high"] for name in ("completeness", "plain_logit")}
    display.result(
        f"{values['samples']} held-out prompts, none left out: "
        f"completeness error at most {errors['completeness']:.1e}, "
        f"plain-logit error at most {errors['plain_logit']:.1e}"
    )
    if not values["answered"]["mean"]:
        display.result("The model answered none of them, so there is nothing to judge. Train it longer on the stories.")
        return
    display.print_table(
        "Is the trace true?",
        ["measure", "trace", *values["controls"], "n"],
        [
            [text, _cell(values[name]), *(_cell(of.get(name)) for of in values["controls"].values()), values[name]["n"]]
            for name, text in MEASURES.items()
        ],
        caption="Mean, 95 % interval. The costliest deletion is foretold by `unread`, all else by contribution.",
    )
    display.print_table(
        "By form of recall",
        ["measure", *values["by_form"]],
        [[text, *(_cell(row[name]) for row in values["by_form"].values())] for name, text in MEASURES.items()],
    )
    display.print_table(
        "Of each layer's costliest pair: what its loss was to cost directly, and what it did cost (nats)",
        ["layer", "direct", "total", "gap"],
        [[str(row["layer"]), *(_cell(row[name]) for name in ("direct", "total", "gap"))] for row in values["layers"]],
    )
    mean = values["edit_harmonic_mean"]
    display.result(f"edits: harmonic mean of efficacy, generalisation and specificity {_number(mean)}")


def _cell(estimate: dict | None) -> str:
    if estimate is None or estimate["mean"] is None:
        return ""
    if estimate["low"] is None:
        return _number(estimate["mean"])
    return f"{_number(estimate['mean'])} [{_number(estimate['low'])}, {_number(estimate['high'])}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
