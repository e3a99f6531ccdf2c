"""Probes on models that depart from v1: complete traces, windows named as what they are, edits of each kind of pair."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens

from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import UsageError
from mosaic_cli.probes.ablate import every_memory
from mosaic_cli.probes.deletions import after_deletions, unread_by_newest, unread_effects
from mosaic_cli.probes.edits import Change, Edit, Memories, edited, resolve
from mosaic_cli.probes.page import page_items
from mosaic_cli.probes.patterns import learned_scalars
from mosaic_cli.probes.reading import pair_kinds, read_text
from mosaic_cli.probes.report import Wording, report
from mosaic_cli.probes.trace import contributions, matches, paths, trace

W = {"short_window": 5, "long_delay": 3, "max_long_delay": 7}
V2 = {"preset": "v2", **W}
MODELS = {
    "v2": V2,
    "v2, slots, no peek": V2 | {"persistent": "slots", "peek": False},
    "short alone, unnormalised": {"windows": "short", "short_window": 4, "normalised_keys": False, "persistent": "mlp"},
    "long alone, linear": {"windows": "long", "long_delay": 4, "max_long_delay": 4, "key_extractor": "linear"},
    "gated and adaptive, unnormalised": {"key_extractor": "gated", "bandwidth": "adaptive", "normalised_keys": False},
    "no peek": {"peek": False, "learn_bandwidth": False},
}
each_model = pytest.mark.parametrize("keys", MODELS.values(), ids=MODELS)


def _model(keys):
    return tiny_model(num_layers=2, d_model=8, num_slots=5, **keys)


@each_model
@torch.no_grad()
def test_traces_are_complete_and_keys_are_what_they_are_made_of(keys):
    model, tokens = _model(keys), tiny_tokens(14)
    reading = read_text(model, tokens)
    assert torch.equal(reading.logits, model(torch.tensor([tokens]))[0])
    for position in (0, 1, 3, 13):
        found = trace(reading, position, target=3)
        assert found.completeness_error < 1e-5
        followed = paths(reading, found.parts, share=0.01)
        assert all(
            path.amount == pytest.approx(sum(child.amount for child in path.children) + path.rest, abs=1e-5)
            for path in followed
            if path.children
        )
    for layer in reading.layers:
        weights = layer.pairs.all_weights()
        torch.testing.assert_close(weights[:, 9, :9], layer.pairs.weights(9))
        assert not weights[:, 9, 9:].any()
        for row in range(len(weights)):
            made = layer.keys.share(row, 9).sum(0)
            torch.testing.assert_close(made, layer.pairs.keys[row, 9], rtol=1e-4, atol=1e-5)
            shares = matches(layer, row, 13, 9, count=14 * 10)
            cosine = layer.pairs.queries[row, 13] @ layer.pairs.keys[row, 9]
            beta = layer.pairs.queries[row, 13].norm() / layer.keys.share(row, 13).sum(0).norm()
            assert sum(match.share for match in shares) * beta == pytest.approx(cosine.item(), rel=1e-3, abs=1e-4)


def test_windows_are_named_and_hold_what_they_hold():
    reading = read_text(_model(V2), tiny_tokens(14))
    parts = contributions(trace(reading, -1, 3).parts)
    assert {part.kind for part in parts} == {"embedding", "short", "long", "mlp"}
    seen = {kind: {part.index for part in parts if part.kind == kind} for kind in ("short", "long")}
    assert seen == {"short": {8, 9, 10, 11, 12}, "long": set(range(11))}
    assert {part.id for part in parts if part.layer == 1 and part.index == 9} == {
        f"L1.H{head}.{kind}.9" for head in (0, 1) for kind in ("short", "long")
    }
    assert sum(part.kind == "mlp" for part in parts) == 2, "one contribution a layer"


@each_model
@torch.no_grad()
def test_edits_that_change_nothing_leave_the_logits(keys):
    """So the dense reads of edits see the same window, delay and bandwidth as the fast ones."""
    model, tokens = _model(keys), tiny_tokens(14)
    plain = model(torch.tensor([tokens]))[0]
    with edited(model, {(layer, kind): Change() for layer in (0, 1) for kind in pair_kinds(model)}):
        torch.testing.assert_close(model(torch.tensor([tokens]))[0], plain, rtol=0, atol=1e-5)
        cache = model.make_cache()
        parts = [model(part, cache)[0] for part in torch.tensor([tokens]).split([6, 1, 1, 5, 1], dim=1)]
        torch.testing.assert_close(torch.cat(parts), plain, rtol=0, atol=1e-5)
    stored = 6 + model.config.peek
    same = [Edit("replace", Memories(None, None, kind, 6), token=tokens[stored]) for kind in pair_kinds(model)]
    with edited(model, resolve(model, tokens, same)):
        torch.testing.assert_close(model(torch.tensor([tokens]))[0], plain, rtol=0, atol=1e-5)


@each_model
@torch.no_grad()
def test_deletions_and_the_newest_token_s_reads(keys):
    model, tokens = _model(keys), tiny_tokens(14)
    reading = read_text(model, tokens)
    rows = len(reading.layers[0].pairs.keys)
    nothing = torch.zeros(1, 2, rows, 13, dtype=torch.bool)
    for logits in (
        *(out[0, -1] for out in after_deletions(model, reading, nothing)),
        *unread_by_newest(model, reading, nothing),
    ):
        torch.testing.assert_close(logits.flatten(), reading.logits[-1], rtol=0, atol=1e-5)
    top = nothing.clone()
    top[0, 1, 0, reading.layers[1].pairs.weights(13)[0].nonzero().max()] = True  # which no earlier token could read
    (deleted,), (unread,) = (
        after_deletions(model, reading, top, newest_only=True),
        unread_by_newest(model, reading, top),
    )
    torch.testing.assert_close(deleted.flatten(), unread.flatten(), rtol=0, atol=1e-5)
    effects = unread_effects(model, reading, 3)
    unseen = torch.stack([layer.pairs.weights(13) == 0 for layer in reading.layers])
    assert effects.shape == (2, rows, 13) and effects.any()
    if model.config.windows == "short":
        assert unseen[:, :, :9].all()


def test_ablations_name_every_kind_of_memory():
    assert {one.kind for one in every_memory(_model(V2))} == {"short", "long"}
    assert {one.kind for one in every_memory(_model(V2 | {"persistent": "slots"}))} == {"short", "long", "slot"}


@pytest.mark.parametrize(
    ("keys", "name", "message"),
    [
        (V2, "L0.H0.slot.1", "persistent memory is swiglu has no slots"),
        (V2, "L0.H0.ctx.1", "pairs are named short and long"),
        ({}, "L0.H0.short.1", "pairs are named ctx"),
    ],
)
def test_memories_that_a_model_has_not_are_refused(keys, name, message):
    with pytest.raises(UsageError, match=message):
        Memories.parse(name).check(_model(keys))


def test_scalars_of_every_head():
    heads = learned_scalars(_model(V2))
    assert [(head.layer, head.head) for head in heads] == [(n, h) for n in (0, 1) for _ in "sl" for h in (0, 1)]
    assert all(head.beta is None and head.decay is None and head.slot_beta is None for head in heads)
    assert all(head.beta_1 > 1 and 0 < head.power <= 1 and head.alpha >= 1 for head in heads)


def test_reports_and_pages_tell_short_from_long():
    """Unread effects are told apart by the row of the head among those of both memories."""
    reading = read_text(_model(V2), tiny_tokens(14))
    wording, found = Wording(reading, Tokenizer.of_characters("abcdefghijklmnop")), trace(reading, -1, 3)
    unread = torch.arange(2.0 * 4 * 13).view(2, 4, 13)
    values = report(reading, found, wording, 0.05, 3, unread)
    *_, item = page_items(reading, wording, found, unread_of=lambda one: unread if one is found else None)
    for row in (*values["contributions"], *item["rows"]):
        if row["kind"] in ("short", "long"):
            layer, head = (int(part[1:]) for part in row["id"].split(".")[:2])
            first = 2 * (row["kind"] == "long")
            assert row["unread"] == unread[layer, first + head, row["position"]].item()
    assert {kind for kind, *_ in item["sums"]} == {"embedding", "short", "long", "mlp"}
    assert {row["kind"] for row in item["rows"]} >= {"short", "long"}
