"""`mosaic probe edit`: what a prediction becomes when memories hold something else."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Ckpt, Debug, Device, Json, PromptFile
from mosaic_cli.commands.probes.corpus import Out, results_folder
from mosaic_cli.commands.prompt import read_prompt
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from mosaic_cli.data.tokenizer import Tokenizer
    from mosaic_cli.device import Placement
    from mosaic_cli.probes.edits import Changes, Edit, Effect
    from mosaic_cli.runs.loading import TrainedModel

EPILOG = 'Example: mosaic probe edit --ckpt quickstart "The kite is under" --delete "L*.H*.ctx.1"'
FORMS = {"delete": "NAME", "scale": "NAME=FACTOR", "replace": "NAME=TOKEN", "add": "NAME@POSITION=TOKEN"}
EXAMPLES = {
    "delete": "L*.H*.ctx.17",
    "scale": "L1.H0.slot.411=0.5",
    "replace": '"L*.H*.ctx.17= behind"',
    "add": '"L*.H*.ctx@17= behind"',
}


def edit(
    ckpt: Ckpt,
    prompt: Annotated[str | None, typer.Argument(help="Text to read; default: standard input.")] = None,
    delete: Annotated[
        list[str] | None, typer.Option(metavar=FORMS["delete"], help="Forget memories; repeatable.")
    ] = None,
    scale: Annotated[
        list[str] | None, typer.Option(metavar=FORMS["scale"], help="Multiply the values of memories; repeatable.")
    ] = None,
    replace: Annotated[
        list[str] | None, typer.Option(metavar=FORMS["replace"], help="Let memories hold another token; repeatable.")
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar=FORMS["add"], help="One more pair per head, with the key of that position; repeatable."),
    ] = None,
    edit_file: Annotated[
        Path | None, typer.Option("--edit", metavar="FILE", help="Begin with the edits of a file.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all edits into such a file.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Likeliest tokens to show of each prediction.")] = 5,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Continue the text greedily by so many tokens, before and after.")
    ] = 0,
    prompt_file: PromptFile = None,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Delete, scale, replace or add memories of a text, and compare the predictions before and after."""
    entries = _entries({"delete": delete, "scale": scale, "replace": replace, "add": add})
    if not entries and edit_file is None:
        raise UsageError(
            "no edit is given", hint="Name a memory: --delete L1.H0.ctx.17. mosaic probe trace shows the names."
        )
    text = read_prompt(prompt, prompt_file, "probe edit")

    from mosaic_cli.device import choose_exact_placement
    from mosaic_cli.files import dump_json
    from mosaic_cli.probes.edit_files import dump_edits, load_edits, read_edit
    from mosaic_cli.runs.loading import load_trained

    placement = choose_exact_placement(device)
    trained = load_trained(ckpt, placement)
    display.note(f"{trained.checkpoint}, {placement.reason}")
    edits = load_edits(edit_file, trained.tokenizer) if edit_file else []
    edits += [read_edit(entry, trained.tokenizer, f"--{next(iter(entry))}") for entry in entries]
    values, lines, rows = _compare(trained, text, edits, placement, top, max_new_tokens)
    path = results_folder(out, trained.run, "edit") / "edit.json"
    path.write_text(dump_json({"schema": "mosaic.probe.edit/1", **values}), encoding="utf-8")
    if save:
        save.write_text(dump_edits(edits, trained.tokenizer), encoding="utf-8")
    display.note(f"written: {path}" + (f" and {save}" if save else ""))
    if json:
        display.print_json("mosaic.probe.edit/1", values)
    else:
        _print(values, lines, rows)


def _entries(flags: dict[str, list[str] | None]) -> list[dict]:
    """The flags as entries of an edit file."""
    return [_entry(action, text) for action, texts in flags.items() for text in texts or []]


def _entry(action: str, text: str) -> dict:
    from mosaic_cli.recipe import parse_yaml

    name, equals, value = text.partition("=")
    name, at, position = name.partition("@")
    if (bool(equals), bool(at)) != (action != "delete", action == "add"):
        hint = f"For example: --{action} {EXAMPLES[action]}"
        raise UsageError(f"--{action} {text!r} is not {FORMS[action]}", where=f"--{action}", hint=hint)
    entry = {action: name}
    if action == "add":
        entry["after"] = parse_yaml(position, "--add")
    if equals:
        entry |= {"factor": parse_yaml(value, "--scale")} if action == "scale" else {"token": value}
    return entry


def _compare(
    trained: "TrainedModel", text: str, edits: "list[Edit]", placement: "Placement", top: int, max_new_tokens: int
) -> tuple[dict, list[str], list[list[str]]]:
    """What `--json` prints; the edits in words; and the rows of the table."""
    from mosaic_cli.probes.edit_files import edit_entry
    from mosaic_cli.probes.edits import effect, resolve

    tokenizer = trained.tokenizer
    tokens = tokenizer.encode_prompt(text)
    changes = resolve(trained.model, tokens, edits)
    found = effect(trained.model, tokens, changes)
    values = {
        "ckpt": trained.spec,
        "prompt": text,
        "edits": [edit_entry(one, tokenizer) for one in edits],
        "before": _likeliest(found.before, top, tokenizer),
        "after": _likeliest(found.after, top, tokenizer),
        "undone_bitwise": found.undone,
        "continuation": _continuations(trained, text, changes, placement, max_new_tokens) if max_new_tokens else None,
    }
    shown = {row["id"] for row in values["before"] + values["after"]}
    shown |= {one.token for one in edits if one.token is not None}
    return values, [_described(one, tokens, trained) for one in edits], _rows(found, shown, tokenizer)


def _likeliest(logits: "Tensor", top: int, tokenizer: "Tokenizer") -> list[dict]:
    best = logits.topk(min(top, len(logits)))
    probabilities = logits.softmax(-1)[best.indices].tolist()
    rows = zip(best.indices.tolist(), probabilities, best.values.tolist(), strict=True)
    return [{"token": tokenizer.token_text(id), "id": id, "probability": p, "logit": logit} for id, p, logit in rows]


def _rows(found: "Effect", shown: set[int], tokenizer: "Tokenizer") -> list[list[str]]:
    """Probability and logit of tokens before and after, with the change; the likeliest first."""
    was, now = found.before.softmax(-1).tolist(), found.after.softmax(-1).tolist()
    logit_was, logit_now = found.before.tolist(), found.after.tolist()
    return [
        [
            repr(tokenizer.token_text(id)),
            *(f"{was[id]:.4f}", f"{now[id]:.4f}", f"{now[id] - was[id]:+.4f}"),
            *(f"{logit_was[id]:.3f}", f"{logit_now[id]:.3f}", f"{logit_now[id] - logit_was[id]:+.3f}"),
        ]
        for id in sorted(shown, key=lambda id: -max(was[id], now[id]))
    ]


def _continuations(
    trained: "TrainedModel", text: str, changes: "Changes", placement: "Placement", max_new_tokens: int
) -> dict[str, str]:
    """What greedy writing makes of the prompt, before and after."""
    from mosaic_cli.generation import Sampling, Writer
    from mosaic_cli.probes.edits import edited

    texts = {}
    for name, change in (("before", {}), ("after", changes)):
        writer = Writer(
            trained.model,
            trained.tokenizer,
            text,
            placement,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature=0),
        )
        with edited(trained.model, change):
            list(writer)
        texts[name] = writer.samples()[0].text
    return texts


def _described(edit: "Edit", tokens: list[int], trained: "TrainedModel") -> str:
    """An edit in words, with the tokens of the pair that it is about."""
    from mosaic_cli.probes.edit_files import edit_entry
    from mosaic_cli.probes.reading import peek

    entry = edit_entry(edit, trained.tokenizer)
    words = " ".join([f"{edit.action} {edit.memories}", *(f"{key} {value!r}" for key, value in [*entry.items()][1:])])
    pair = edit.after if edit.action == "add" else edit.memories.index
    if edit.memories.kind == "slot" or pair is None:
        return words
    shown = tokens[pair : pair + 1 + peek(trained.model)]
    return f"{words}   pair {pair}: {' → '.join(repr(trained.tokenizer.token_text(token)) for token in shown)}"


def _print(values: dict, lines: list[str], rows: list[list[str]]) -> None:
    for line in lines:
        display.result(line)
    display.print_table(
        "What follows, before and after",
        ["token", "before", "after", "change", "logit before", "after", "change"],
        rows,
        caption="Probabilities, then logits; the likeliest before or after, and the tokens of the edits.",
    )
    for name, text in (values["continuation"] or {}).items():
        display.result(f"{name + ':':8}{text!r}")
    if values["undone_bitwise"]:
        display.result("Undone: asked again without the edits, the model gives the same logits bit for bit.")
    else:
        display.warn("asked again without the edits, the model does not give the same logits bit for bit")
