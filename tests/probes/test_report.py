"""Traces in words: what keys and values are called, how tokens are found, and that the listed and the rest add up."""

import pytest
import torch
from tiny_models import tiny_model

from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import UsageError
from mosaic_cli.probes.reading import read_text
from mosaic_cli.probes.report import (
    Wording,
    plain_logit_error,
    predictions,
    report,
    standing,
    sums,
    visible,
)
from mosaic_cli.probes.trace import contributions, trace

LETTERS = Tokenizer.of_characters("abcdefgh ijk\n\tlmn")


def _traced(kind="mosaic", text="abcab"):
    tokens = [LETTERS.end_of_text, *LETTERS.encode(text)]
    reading = read_text(tiny_model(kind, vocab_size=LETTERS.vocab_size).double(), tokens)
    return reading, trace(reading, -1, LETTERS.encode("c")[0]), Wording(reading, LETTERS)


def _effects(found):
    """Effects (N, H, S) of losing pairs: every other pair of the last layer -1, -2, ..., all others none."""
    effects = torch.zeros(len(found.parts.pairs), *found.parts.pairs[0].weights.shape)
    effects[-1, 0, ::2] = -1.0 - torch.arange(len(effects[-1, 0, ::2]))
    return effects


def test_what_cannot_be_seen_is_spelled_out():
    assert visible("a b é 漢 \\n") == "a b é 漢 \\n"
    assert visible("a\nb\tc") == "a↵b⇥c"
    assert visible("\x00\x1b[1m\u2028\u202e\u200f\xa0\ufeff") == "\\x00\\x1b[1m\\u2028\\u202e\\u200f\\xa0\\ufeff"


def test_a_token_is_found_as_written_or_after_a_space():
    tokenizer = Tokenizer.train(["the kite the kite the kite"] * 9, vocab_size=300)
    (kite,) = tokenizer.encode(" kite")
    assert len(tokenizer.encode("kite")) > 1
    assert tokenizer.single("kite") == tokenizer.single(" kite") == kite
    assert tokenizer.after_space("kite") == kite and tokenizer.after_space(" kite") is None
    assert tokenizer.single("<|endoftext|>") == tokenizer.end_of_text
    with pytest.raises(
        UsageError, match=r"'xy' is not one token: 'x' \+ 'y'; after a space: ' ' \+ 'x' \+ 'y'"
    ) as info:
        tokenizer.single("xy", "--vs")
    assert info.value.where == "--vs"
    for unknown in ("é", ""):
        with pytest.raises(UsageError, match="not one token"):
            Tokenizer.of_characters("ab").single(unknown)
        assert Tokenizer.of_characters("ab").after_space(unknown) is None


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_a_pair_is_called_by_what_was_stored(kind):
    _, found, wording = _traced(kind, "abc\nd")
    parts = {part.id: part for part in contributions(found.parts)}
    rows = {id: wording.record(part, found.position) for id, part in parts.items()}
    assert wording.tokens == ["<|endoftext|>", "a", "b", "c", "↵", "d"]
    stored = {0: "a", 2: "c", 4: "d"} if kind == "mosaic" else {0: "<|endoftext|>", 2: "b", 5: "d"}
    for pair, value in stored.items():
        assert rows[f"L1.H0.ctx.{pair}"]["value_text"] == value
    assert rows["L0.H1.ctx.4"]["key_text"] == "abc↵" and rows["L0.H1.ctx.1"]["key_text"] == "<|endoftext|>a"
    assert rows["L0.H1.ctx.1"]["position"] == 1 and rows["embedding"]["position"] == 5
    assert rows["embedding"]["value_text"] == "d" and rows["embedding"]["weight"] is None
    if kind == "transformer":
        assert rows["L2.mlp"] | {"contribution": 0} == wording.record(parts["L2.mlp"], 5) | {"contribution": 0}
        assert rows["L2.mlp"]["value_text"] is None and wording.matches(parts["L0.H1.ctx.4"], 5) == []
    else:
        match = wording.matches(parts["L0.H1.ctx.4"], 5)[0]
        assert match["asked_text"] == wording.tokens[match["asked"]] and match["stored"] <= 4


def test_a_slot_pushes_what_its_value_makes_likeliest():
    reading, found, wording = _traced()
    slots = [part for part in contributions(found.parts) if part.kind == "slot"]
    wording.learn(slots[:5])
    for slot in (slots[2], slots[-1]):  # one learnt beforehand, one not
        layer = reading.layers[slot.layer].slots
        added = layer.values[slot.head, slot.index] @ layer.output[slot.head] * 1e-6
        stream = reading.final.stream[-1]
        before, after = (torch.nn.functional.layer_norm(x, x.shape) for x in (stream * 0, added))
        likeliest = (reading.head @ ((after - before) * reading.final.weight)).topk(3).indices.tolist()
        assert wording.record(slot, 5)["pushes"] == [wording.token(id) for id in likeliest]


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_the_report_adds_up(kind):
    reading, found, wording = _traced(kind)
    values = report(reading, found, wording, share=0.05, explained=2, unread=_effects(found))
    listed = sum(row["contribution"] for row in values["contributions"])
    assert listed + values["rest"] == pytest.approx(values["logit"], abs=1e-12)
    assert sum(part["contribution"] for part in values["sums"]) == pytest.approx(values["logit"], abs=1e-9)
    smallest = min(abs(row["contribution"]) for row in values["contributions"])
    assert smallest > 1e-3 * found.parts.size and len(values["contributions"]) <= 1000
    assert sum(bool(row["matches"]) for row in values["contributions"]) == (2 if kind == "mosaic" else 0)


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_the_report_says_what_losing_a_pair_would_change(kind):
    reading, found, wording = _traced(kind)
    effects = _effects(found)
    values = report(reading, found, wording, share=0.05, explained=2, unread=effects)
    top, count = len(reading.layers) - 1, len(effects[-1, 0, ::2])
    rows = values["costliest"]
    assert [row["id"] for row in rows] == [f"L{top}.H0.ctx.{2 * i}" for i in reversed(range(count))]
    assert [row["unread"] for row in rows] == [-float(i) for i in range(count, 0, -1)]
    listed = {row["id"]: row for row in values["contributions"]}
    for row in rows:  # some contribute too little to be listed
        twin = listed.get(row["id"])
        assert twin is None or twin == row | {"matches": twin["matches"]}
    for row in listed.values():
        assert (row["unread"] is None) == (row["kind"] != "ctx")
        assert row["layer"] == top or not row["unread"]
    effects[0] = torch.rand(effects[0].shape) + 5
    assert len(report(reading, found, wording, 0.05, 2, effects)["costliest"]) == 5


def test_a_text_without_pairs_has_none_that_cost():
    reading, found, wording = _traced(text="")
    assert report(reading, found, wording, 0.05, 2, torch.zeros(3, 2, 0))["costliest"] == []


def test_standing_and_predictions_are_the_model_s():
    reading, found, wording = _traced()
    probabilities = reading.logits[-1].softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    place = standing(reading, 5, order[3])
    assert place["rank"] == 4 and place["probability"] == pytest.approx(probabilities[order[3]].item())
    assert place["loss"] == pytest.approx(-probabilities[order[3]].log().item())
    rows = predictions(reading, 5, wording.token, count=4)
    assert [row["token"] for row in rows] == order[:4] and rows[0]["text"] == wording.token(order[0])
    assert len(sums(found.parts)) == 7


def test_the_plain_model_is_compared_with():
    reading, model = _traced()[0], tiny_model(vocab_size=LETTERS.vocab_size).double()
    assert plain_logit_error(model, reading) == 0
    with torch.no_grad():
        model.norm.weight *= 1.01
    assert plain_logit_error(model, reading) > 1e-4
