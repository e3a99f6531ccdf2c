"""`mosaic probe trace`: which memories a prediction comes from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Ckpt, Debug, Device, Json, PromptFile
from mosaic_cli.commands.probes.corpus import Out, make_folder, results_folder, save
from mosaic_cli.commands.prompt import read_prompt
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from mosaic_cli.data.tokenizer import Tokenizer
    from mosaic_cli.probes.reading import Reading
    from mosaic_cli.probes.report import Wording
    from mosaic_cli.probes.trace import Trace
    from mosaic_cli.runs.loading import TrainedModel

EPILOG = 'Example: mosaic probe trace --ckpt quickstart "Mia put the kite under the bridge. Where was the kite? Under"'
SCHEMA = "mosaic.probe.trace/1"
EXPLAINED = 3  # pairs of the terminal's table whose answers are explained


def trace(
    ckpt: Ckpt,
    prompt: Annotated[str | None, typer.Argument(help="Text to look at; default: standard input.")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help="Token whose logit is traced: as written, or after a space where only that is one token. Where both "
            'are, " on" in quotes has the space and on has not; a note says when the other is the likelier. '
            "Default: the likeliest token.",
        ),
    ] = None,
    vs: Annotated[
        str | None,
        typer.Option("--vs", metavar="TOKEN", help="Trace the target's lead over this token, named as for --target."),
    ] = None,
    position: Annotated[
        int, typer.Option(help="Trace what is predicted after this token; negative: from the end.")
    ] = -1,
    top: Annotated[int, typer.Option(min=1, help="Contributions shown in the table.")] = 12,
    share: Annotated[
        float, typer.Option(help="Follow paths through parts of at least this share of the sum of all sizes.")
    ] = 0.02,
    prompt_file: PromptFile = None,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page on every token of the text to this file.")
    ] = None,
    unread: Annotated[
        int,
        typer.Option(
            min=1, help="With --html: tokens, back from the traced one, that get unread too; each is read per pair."
        ),
    ] = 1,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show which memories a prediction comes from: stored pairs and slots whose contributions add up to its logit.

    The model computes in float32 whatever the device: in bfloat16 a sum is good to three digits, too few to show that
    the contributions are complete.
    """
    from mosaic_cli.device import choose_exact_placement
    from mosaic_cli.probes.deletions import unread_effects
    from mosaic_cli.probes.reading import read_text
    from mosaic_cli.probes.report import Wording, plain_logit_error, report
    from mosaic_cli.runs.loading import load_trained

    if html is not None:
        make_folder(html.parent, instead="--html FILE")
        if html.is_dir():
            raise UsageError("a folder, not a file", where=html, hint=f"Name a file in it: --html {html / 'page.html'}")
    elif unread > 1:
        raise UsageError("only a page shows several tokens", where="--unread", hint="Name its file: --html FILE")
    text = read_prompt(prompt, prompt_file, "probe trace")
    if not text:
        raise UsageError("the prompt is empty", hint='Give some text: mosaic probe trace --ckpt RUN "Once upon a time"')
    placement = choose_exact_placement(device)
    trained = load_trained(ckpt, placement)
    display.note(f"{trained.checkpoint}, {placement.reason}")
    tokens = trained.tokenizer.encode_prompt(text)
    reading = read_text(trained.model, tokens)
    found = _trace(reading, trained, target, vs, position)
    wording = Wording(reading, trained.tokenizer)
    newest = reading if found.position == len(tokens) - 1 else read_text(trained.model, tokens[: found.position + 1])
    effects = unread_effects(trained.model, newest, found.target)
    values = {
        "ckpt": ckpt,
        "checkpoint": str(trained.checkpoint),
        "kind": trained.model.config.kind,
        "plain_logit_error": plain_logit_error(trained.model, reading),
        **report(reading, found, wording, share, top, effects),
    }
    save(results_folder(out, trained.run, "trace"), "trace", SCHEMA, values)
    if html is not None:
        page = _page(
            trained, reading, wording, found, share, effects, range(found.position - unread + 1, found.position)
        )
        _write(html, page)
    if json:
        display.print_json(SCHEMA, values)
    else:
        _print(values, top)


def _trace(
    reading: "Reading", trained: "TrainedModel", target: str | None, versus: str | None, position: int
) -> "Trace":
    """The trace asked for; without a target, of the likeliest token."""
    from mosaic_cli.probes.trace import trace as trace_logit

    reading.check_finite(trained.checkpoint)
    goal = 0 if target is None else trained.tokenizer.single(target, "--target")
    other = None if versus is None else trained.tokenizer.single(versus, "--vs")
    found = trace_logit(reading, position, goal, other)
    if target is None:
        found = trace_logit(reading, position, reading.logits[found.position].argmax().item(), other)
    for option, text, token in (("--target", target, found.target), ("--vs", versus, other)):
        if text is not None:
            _note_likelier(option, text, token, trained.tokenizer, reading.logits[found.position])
    if found.target == other:
        raise UsageError(
            "the target is the token that it is compared with", where="--vs", hint="Name another one: --target or --vs."
        )
    return found


def _note_likelier(option: str, text: str, token: int, tokenizer: "Tokenizer", logits: "Tensor") -> None:
    """Say so when a token was taken as written and the same word after a space is likelier in this place."""
    spaced = tokenizer.after_space(text)
    if spaced is not None and logits[spaced] > logits[token]:
        probabilities = logits.softmax(dim=-1)
        display.note(
            f'{option} {text}: "{tokenizer.token_text(token)}" as written (probability {probabilities[token]:.2g}); '
            f'"{tokenizer.token_text(spaced)}" with its space is another token and likelier here '
            f'({probabilities[spaced]:.2g}): {option} " {text}"'
        )


def _page(
    trained: "TrainedModel",
    reading: "Reading",
    wording: "Wording",
    found: "Trace",
    share: float,
    effects: "Tensor",
    earlier: range,
) -> str:
    """The page; `effects` is what `unread_effects` gives for `found`, and is made for the `earlier` positions too."""
    from mosaic_cli.probes.deletions import unread_effects
    from mosaic_cli.probes.page import page_data, page_items, render_page
    from mosaic_cli.probes.reading import read_text

    def unread_of(one: "Trace") -> "Tensor | None":
        if one is found:
            return effects
        if one.position not in earlier:
            return None
        before = read_text(trained.model, reading.tokens[: one.position + 1])
        return unread_effects(trained.model, before, one.target)

    items = []
    with display.Bar() as bar:
        for item in page_items(reading, wording, found, share, unread_of):
            items.append(item)
            bar.update("tracing every token", len(items), len(reading.tokens))
    name = f"{trained.spec} ({trained.model.config.kind}, {trained.checkpoint.name})"
    return render_page(page_data(reading, wording, found, items, name))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    display.note(f"written: {path}")


def _print(values: dict[str, Any], top: int) -> None:
    position, target, versus = values["position"], values["target"], values["versus"]
    before = "".join(values["tokens"][max(0, position - 11) : position + 1])
    display.print_table(
        f'Predicted after token {position} of 0 to {len(values["tokens"]) - 1}: "{before}"',
        ["next token", "probability", "logit"],
        [[f'"{p["text"]}"', f"{p['probability']:.4f}", f"{p['logit']:.4f}"] for p in values["predictions"]],
    )
    lead = "" if versus is None else f' minus that of "{versus}"'
    display.result(
        f'\nTraced: the logit of "{target}"{lead} = {values["logit"]:.6f}'
        f" (probability {values['probability']:.4f}, rank {values['rank']})\n"
        f"completeness error {values['completeness_error']:.1e}: |sum of all contributions - logit|\n"
        f"plain-logit error {values['plain_logit_error']:.1e}: |logits of this run - logits of the model left alone|\n"
    )
    _print_contributions(values, top)
    _print_matches(values["contributions"])
    display.print_tree(
        f'Paths of the logit of "{target}"{lead} = {values["logit"]:+.3f}, down to the tokens they began from',
        _branches(values["paths"], values["logit"] - sum(path["amount"] for path in values["paths"])),
    )


def _print_contributions(values: dict[str, Any], top: int) -> None:
    from mosaic_cli.probes.deletions import ASKING

    shown = values["contributions"][:top]
    rest = values["logit"] - sum(row["contribution"] for row in shown)
    columns = ["id", "what is stored", "weight", "contribution", "leave-one-out", "unread"]
    display.print_table(
        "Where it came from: the largest contributions",
        columns,
        [*map(_cells, shown), ["all others", "", "", f"{rest:+.4f}", "", ""]],
        caption="contribution: what the memory said, a part of the logit; leave-one-out: the logit's direct change "
        "were it dropped and its weight taken up by the others; unread: the log-probability's change when this token "
        f"and the {ASKING - 1} before it, which make the key that asks, really read without the pair.",
        texts=2,
    )
    display.print_table(
        "What its loss would change most: the largest by unread",
        columns,
        map(_cells, values["costliest"]),
        caption="above 0, the token would be likelier without the pair. Among them are pairs that did not say the "
        "answer, but made the key that asked for it.",
        texts=2,
    )
    display.print_table(
        "What each layer gave in all",
        ["part", "contribution"],
        [[_name(part), f"{part['contribution']:+.4f}"] for part in values["sums"]],
    )


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["id"],
        _what(row),
        _number(row["weight"], ".3f"),
        f"{row['contribution']:+.4f}",
        _number(row["leave_one_out"], "+.4f"),
        _number(row["unread"], "+.4f"),
    ]


def _print_matches(rows: list[dict]) -> None:
    explained = []
    for row in [row for row in rows if row["matches"]][:EXPLAINED]:
        about = [row["id"], _what(row), f"{row['contribution']:+.4f}"]
        for match in row["matches"]:
            asked = f'"{match["asked_text"]}" ~ "{match["stored_text"]}"'
            explained.append([*about, asked, f"{match['asked']} ~ {match['stored']}", f"{match['share']:+.3f}"])
            about = [""] * len(about)
    if explained:
        display.print_table(
            "Why the strongest pairs answered: the tokens that made their keys alike",
            ["id", "what is stored", "contribution", "asked ~ stored", "positions", "share of the cosine"],
            explained,
            caption="the shares of all pairs of tokens add up to the cosine of the two keys.",
            texts=2,
        )


def _branches(paths: list[dict], rest: float) -> list[display.Branch]:
    """Paths as labels with what hangs below each; the last says what was too small to follow."""
    found = [
        (
            f"{path['amount']:+.3f}  {path['id']}  at {path['position']}  {_what(path)}",
            _branches(path["children"], path["rest"]),
        )
        for path in paths
    ]
    return [*found, (f"{rest:+.3f}  smaller parts", [])] if found else []


def _what(row: dict[str, Any]) -> str:
    if row["key_text"] is not None:
        return f'"{row["key_text"]}" → "{row["value_text"]}"'
    if row["kind"] == "slot":
        return "pushes " + ", ".join(f'"{text}"' for text in row["pushes"])
    return "" if row["value_text"] is None else f'the token itself, "{row["value_text"]}"'


def _name(part: dict[str, Any]) -> str:
    names = {"embedding": "embedding", "ctx": "contextual", "short": "short-term", "long": "long-term"}
    names |= {"slot": "persistent", "mlp": "MLP"}
    return names[part["kind"]] + ("" if part["layer"] is None else f", layer {part['layer']}")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
