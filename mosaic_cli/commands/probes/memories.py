"""`mosaic probe memories`: what the persistent slots of a mosaic hold, and which texts call them."""

from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Ckpt, Debug, Device, Json
from mosaic_cli.commands.probes.corpus import On, Out, Windows, results_folder, save
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.data.batches import Tokens
    from mosaic_cli.data.tokenizer import Tokenizer
    from mosaic_cli.probes.memories import Slot, SlotUse
    from mosaic_cli.runs.loading import TrainedModel

EPILOG = "Example: mosaic probe memories --ckpt quickstart --top 20"
TOKENS = 5  # tokens shown on each side that a slot pushes
BEFORE = 12  # tokens of text shown before a call


def memories(
    ckpt: Ckpt,
    layer: Annotated[int | None, typer.Option(help="Only this layer, from 0.")] = None,
    head: Annotated[int | None, typer.Option(help="Only this head, from 0.")] = None,
    slot: Annotated[list[int] | None, typer.Option(help="These slots of the layer and head; repeatable.")] = None,
    on: On = "val",
    windows: Windows = 32,
    top: Annotated[int, typer.Option(min=1, help="How many of the most-called slots to show without --slot.")] = 10,
    contexts: Annotated[int, typer.Option(min=1, help="Texts shown that call a slot most.")] = 3,
    out: Out = None,
    device: Device = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """What the persistent slots hold: the tokens they push, the texts that call them, and the slots nothing calls."""
    from mosaic_cli.commands.figures import draw_slot_shares
    from mosaic_cli.device import choose_exact_placement
    from mosaic_cli.runs.loading import load_trained, open_text

    placement = choose_exact_placement(device)
    display.note(f"reading on {placement.reason}")
    trained = load_trained(ckpt, placement)
    _check(trained, layer, head, slot or [])
    folder = results_folder(out, trained.run, "memories")
    tokens, _ = open_text(trained, on)
    use = _read(trained, tokens, windows, contexts)
    chosen = _chosen(use, layer, head, slot, top)
    values = {**_about(trained, use, on), "slots": _slots(trained, tokens, use, chosen)}
    values["heads"] = _heads(use, layer, head)
    save(folder, "memories", "mosaic.probe.memories/1", values, draw_slot_shares)
    if json:
        display.print_json("mosaic.probe.memories/1", values)
    else:
        _print(values)


def _check(one: "TrainedModel", layer: int | None, head: int | None, slots: list[int]) -> None:
    """Raises UsageError for a baseline, for a number out of range, and for slots without their layer and head."""
    config = one.model.config
    if config.kind != "mosaic":
        raise UsageError(
            f"{one.spec} is a {config.kind}: only a mosaic has persistent slots",
            where="--ckpt",
            hint="Name a mosaic's run. For a transformer's attention: mosaic probe patterns --ckpt RUN",
        )
    if config.persistent != "slots":
        raise UsageError(
            f"{one.spec} has no slots: its persistent memory is {config.persistent}",
            where="--ckpt",
            hint="Name the run of a model with persistent: slots. What its layers give: mosaic probe trace",
        )
    counts = {"layer": config.num_layers, "head": config.num_heads, "slot": config.num_slots}
    asked = [("layer", layer), ("head", head), *(("slot", number) for number in slots)]
    for name, number in asked:
        if number is not None and not 0 <= number < counts[name]:
            last = counts[name] - 1
            raise UsageError(
                f"{one.spec} has no {name} {number}",
                where=f"--{name}",
                hint=f"Its {name}s are 0 to {last}." if last else f"Its only {name} is 0.",
            )
    if slots and (layer is None or head is None):
        raise UsageError(
            "every head has slots of its own, so a slot's number needs its layer and head",
            where="--slot",
            hint=f"Add --layer and --head, as in: --layer 0 --head 0 --slot {slots[0]}",
        )


def _read(one: "TrainedModel", tokens: "Tokens", windows: int, contexts: int) -> "SlotUse":
    from mosaic_cli.probes.memories import slot_use

    with display.Bar() as bar:
        for use in slot_use(one.model, tokens, windows=windows, calls=contexts):
            bar.update(one.spec, use.windows, use.total_windows)
    return use


def _chosen(use: "SlotUse", layer: int | None, head: int | None, slots: list[int] | None, top: int) -> list["Slot"]:
    from mosaic_cli.probes.memories import Slot

    if slots:
        return [Slot(layer, head, index) for index in dict.fromkeys(slots)]
    return use.most_called(top, layer, head)


def _about(one: "TrainedModel", use: "SlotUse", on: str) -> dict[str, object]:
    from mosaic_cli.probes.memories import CALLED

    return {
        "ckpt": one.spec,
        "checkpoint": str(one.checkpoint),
        "on": on,
        "data_source": one.run.info()["data_source"] if on == "val" else on,
        "context": use.context,
        "positions": use.positions,
        "called_above": CALLED,
    }


def _heads(use: "SlotUse", layer: int | None, head: int | None) -> list[dict[str, object]]:
    N, H = use.effective_slots.shape
    means, largest = use.mean_weight, use.weights[..., 0]
    return [
        {
            "layer": n,
            "head": h,
            "effective_slots": use.effective_slots[n, h].item(),
            "effective_at_once": use.effective_at_once[n, h].item(),
            "never_called": use.never_called[n, h].nonzero().flatten().tolist(),
            "mean_weight": [float(f"{x:.5g}") for x in means[n, h].tolist()],  # many; more digits would be noise
            "largest_weight": [float(f"{x:.5g}") for x in largest[n, h].tolist()],
        }
        for n in ([layer] if layer is not None else range(N))
        for h in ([head] if head is not None else range(H))
    ]


def _slots(one: "TrainedModel", tokens: "Tokens", use: "SlotUse", chosen: list["Slot"]) -> list[dict[str, object]]:
    from mosaic_cli.probes.memories import pushes

    return [
        {
            "id": slot.id,
            "layer": slot.layer,
            "head": slot.head,
            "slot": slot.index,
            "mean_weight": use.mean_weight[slot].item(),
            "top_share": use.top_share[slot].item(),
            "largest_weight": use.weights[slot][0].item(),
            "up": _pushed(one.tokenizer, push),
            "down": _pushed(one.tokenizer, -push, sign=-1),
            "calls": [
                {
                    "position": call.position,
                    "weight": call.weight,
                    **_surroundings(one.tokenizer, tokens, call.position, call.window),
                }
                for call in use.calls(slot)
            ],
        }
        for slot, push in zip(chosen, pushes(one.model, chosen), strict=True)
    ]


def _pushed(tokenizer: "Tokenizer", push, sign: int = 1) -> list[dict[str, object]]:
    """The tokens of the largest pushes (V,)."""
    largest, ids = push[: tokenizer.vocab_size].topk(min(TOKENS, tokenizer.vocab_size))
    pairs = zip(ids.tolist(), largest.tolist(), strict=True)
    return [{"token": id, "text": tokenizer.token_text(id), "push": sign * value} for id, value in pairs]


def _surroundings(tokenizer: "Tokenizer", tokens: "Tokens", position: int, window: int) -> dict[str, str | None]:
    """The text up to a position, no further back than the model had read, and the token after it."""
    before = tokens.read(max(window, position + 1 - BEFORE), position + 1).tolist()
    after = tokens.read(position + 1, min(position + 2, len(tokens))).tolist()
    return {"before": _text(tokenizer, before), "next": _text(tokenizer, after) if after else None}


def _text(tokenizer: "Tokenizer", ids: list[int]) -> str:
    """The text of tokens, the ends of documents in it."""
    end = tokenizer.end_of_text
    parts = groupby(ids, key=lambda id: id == end)
    return "".join(tokenizer.token_text(end) * len([*part]) if ends else tokenizer.decode(part) for ends, part in parts)


def _print(values: dict) -> None:
    """Three tables. Text of the corpus is shown as Python's repr has it: nothing in it can act on a terminal."""
    where = f"{values['ckpt']} on {values['on']}, {values['positions']:,} positions"
    display.print_table(
        f"Persistent memories of {where}",
        ["head", "slots", "used in all", "used at once", "largest share", "never called"],
        [_head_row(head) for head in values["heads"]],
        caption="Used: exp of the entropy, of a head's mean weights and of its weights at one position. "
        f"Never called: no weight above {values['called_above']:.0%} on this text.",
    )
    display.print_table(
        "Slots: share of their head's weight, and the tokens they push",
        ["slot", "share", "on top at", "largest", "up", "down"],
        [_slot_row(slot) for slot in values["slots"]],
        caption="On top at: positions where it weighs most. Pushes: direct way to the logits only, "
        "largest first; the last norm's division, which depends on the text, is left out.",
    )
    display.print_table(
        "Texts that call them most → the token that came next",
        ["slot", "weight", "position", "text"],
        [_call_row(slot["id"], call) for slot in values["slots"] for call in slot["calls"]],
    )


def _head_row(head: dict) -> list[str]:
    slots = len(head["mean_weight"])
    return [
        f"L{head['layer']}.H{head['head']}",
        f"{slots:,}",
        f"{head['effective_slots']:.1f}",
        f"{head['effective_at_once']:.1f}",
        f"{max(head['mean_weight']):.1%}",
        f"{len(head['never_called']):,} ({len(head['never_called']) / slots:.0%})",
    ]


def _slot_row(slot: dict) -> list[str]:
    pushed = (" ".join(repr(token["text"]) for token in slot[way]) for way in ("up", "down"))
    return [
        slot["id"],
        f"{slot['mean_weight']:.2%}",
        f"{slot['top_share']:.1%}",
        f"{slot['largest_weight']:.3f}",
        *pushed,
    ]


def _call_row(name: str, call: dict) -> list[str]:
    following = "(end of the text)" if call["next"] is None else repr(call["next"])
    return [name, f"{call['weight']:.3f}", f"{call['position']:,}", f"{call['before']!r} → {following}"]
