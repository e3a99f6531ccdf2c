"""Edits: against a dense computation by hand, causal, the same when decoding, and gone without a trace."""

from contextlib import suppress

import pytest
import torch

from mosaic_cli.core import ops
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model
from mosaic_cli.errors import NonFiniteError, UsageError
from mosaic_cli.probes.edits import Change, Edit, Memories, edited, effect, resolve, stored_pairs
from mosaic_cli.probes.reading import read_text

KINDS = ["mosaic", "transformer"]
N, H, D, V, T, M = 2, 3, 4, 17, 9, 6  # layers, heads, head width, vocabulary, tokens, slots


def _model(kind: str = "mosaic"):
    config = ModelConfig(
        kind=kind, num_layers=N, num_heads=H, d_model=H * D, num_slots=M, context_length=32, vocab_size=V
    )
    return build_model(config).eval()


def _text(length: int = T, seed: int = 1) -> list[int]:
    return torch.randint(0, V, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _edit(name: str, action: str = "delete", **values: object) -> Edit:
    return Edit(action, Memories.parse(name), **values)


@torch.no_grad()
def _logits(model, text, changes=None):
    with edited(model, changes or {}):
        return model(torch.tensor([text]))[0]


def _edited(model, text, *edits):
    return _logits(model, text, resolve(model, text, list(edits)))


def _kinds(kind: str) -> list[str]:
    return ["ctx", "slot"] if kind == "mosaic" else ["ctx"]


def _visible(model, position: int) -> int:
    return stored_pairs(model, position + 1)


@torch.no_grad()
def _reads(model, text, layer, kind, changes=None):
    """What a layer's memories of one kind read (H, T, D), before W_o."""
    block, kept = model.blocks[layer], []
    memory = block.persistent if kind == "slot" else getattr(block, "contextual", None) or block.attention
    hook = memory.output.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    _logits(model, text, changes)
    hook.remove()
    return kept[0][0].unflatten(-1, (H, D)).transpose(0, 1)


# ---- nothing changed, and undone


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_change_changes_nothing(kind):
    model, text = _model(kind), _text()
    changes = {(layer, which): Change() for layer in range(N) for which in _kinds(kind)}
    torch.testing.assert_close(_logits(model, text, changes), _logits(model, text), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_model_is_what_it_was_bit_for_bit(kind, fails):
    model, text = _model(kind), _text()
    before, modules = _logits(model, text), dict(model.named_modules())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    edits = [_edit(f"L*.H*.{which}.1", "scale", factor=-3.0) for which in _kinds(kind)]
    edits += [_edit("L0.H1.ctx", "add", after=2, token=3), _edit("L1.H*.ctx.2", "replace", token=5), _edit("L0.H0.ctx")]
    changes = resolve(model, text, edits)
    with suppress(ZeroDivisionError), edited(model, changes):
        assert not torch.allclose(model(torch.tensor([text]))[0], before, atol=1e-4)
        if fails:
            raise ZeroDivisionError
    assert torch.equal(_logits(model, text), before)
    assert dict(model.named_modules()) == modules
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", KINDS)
def test_an_effect_is_before_and_after_and_says_that_it_is_undone(kind):
    model, text = _model(kind), _text()
    found = effect(model, text, resolve(model, text, [_edit("L1.H*.ctx.3")]))
    assert found.undone
    torch.testing.assert_close(found.before, _logits(model, text)[-1])
    torch.testing.assert_close(found.after, _edited(model, text, _edit("L1.H*.ctx.3"))[-1])
    assert not torch.allclose(found.after, found.before)


def test_an_effect_beyond_all_numbers_is_told():
    model, text = _model(), _text()
    with pytest.raises(NonFiniteError, match="not finite"):
        effect(model, text, resolve(model, text, [_edit("L*.H*.slot", "scale", factor=1e39)]))


def test_contexts_do_not_nest():
    model = _model()
    with edited(model, {(0, "ctx"): Change()}), pytest.raises(UsageError, match="edited already"):
        edited(model, {(0, "ctx"): Change()}).__enter__()
    assert torch.isfinite(_logits(model, _text())).all()


# ---- deleting


def _reads_without(model, text, layer, kind, gone):
    """The reads (H, T, D) by hand: memories `gone` (head, index) left out, the other weights divided by their sum."""
    reading = read_text(model, text).layers[layer]
    retrieval = reading.slots if kind == "slot" else reading.pairs
    reads = torch.zeros(H, len(text), D, dtype=torch.float64)
    for head in range(H):
        for position in range(len(text)):
            count = M if kind == "slot" else _visible(model, position)
            kept = [i for i in range(count) if (head, i) not in gone]
            scores = [torch.dot(retrieval.queries[head, position], retrieval.keys[head, i]) for i in kept]
            total = sum(torch.exp(score) for score in scores)
            for i, score in zip(kept, scores, strict=True):
                reads[head, position] += torch.exp(score) / total * retrieval.values[head, i]
    return reads


@pytest.mark.parametrize(("kind", "which"), [("mosaic", "ctx"), ("mosaic", "slot"), ("transformer", "ctx")])
@pytest.mark.parametrize(
    "names", [["L1.H1.{}.2"], ["L1.H0.{}.0", "L1.H0.{}.3", "L*.H2.{}.3"], ["L1.H*.{}.4", "L1.H1.{}"]]
)
def test_deleting_is_leaving_out(kind, which, names):
    model, text = _model(kind), _text()
    named = [Memories.parse(name.format(which)) for name in names]
    gone = {(h, i) for one in named for h in range(H)[one.heads] for i in range(T)[one.indices]}
    if any(one.layer is None for one in named):
        named = [Memories(1, one.head, one.kind, one.index) for one in named]  # so that layer 1 still reads the same
    changes = resolve(model, text, [Edit("delete", one) for one in named])
    expected = _reads_without(model, text, 1, which, gone)
    torch.testing.assert_close(_reads(model, text, 1, which, changes).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "which"), [("mosaic", "ctx"), ("mosaic", "slot"), ("transformer", "ctx")])
def test_a_memory_with_nothing_left_reads_zero(kind, which):
    model, text = _model(kind), _text()
    changes = resolve(model, text, [_edit(f"L0.H*.{which}")])
    assert not _reads(model, text, 0, which, changes).any()
    assert torch.isfinite(_logits(model, text, changes)).all()


@pytest.mark.parametrize("which", ["ctx", "slot"])
def test_each_text_of_a_batch_may_lose_its_own(which):
    model, texts = _model(), [_text(seed=1), _text(seed=2)]
    dropped = torch.zeros(2, H, 5, dtype=torch.bool)
    dropped[0, 1, 3] = dropped[1, :, 0] = True
    with torch.no_grad(), edited(model, {(1, which): Change(dropped=dropped)}):
        both = model(torch.tensor(texts))
    for row, (text, name) in enumerate(zip(texts, ["L1.H1.{}.3", "L1.H*.{}.0"], strict=True)):
        alone = _edited(model, text, _edit(name.format(which)))
        torch.testing.assert_close(both[row], alone, rtol=1e-4, atol=1e-5)


# ---- scaling


@pytest.mark.parametrize(("kind", "which"), [("mosaic", "ctx"), ("mosaic", "slot"), ("transformer", "ctx")])
def test_scaling_by_one_does_nothing_and_by_zero_empties_the_value(kind, which):
    model, text = _model(kind), _text()
    once = _edited(model, text, _edit(f"L*.H*.{which}", "scale", factor=1.0))
    torch.testing.assert_close(once, _logits(model, text), rtol=0, atol=1e-5)
    reading = read_text(model, text).layers[1]
    retrieval = reading.slots if which == "slot" else reading.pairs
    values = retrieval.values.clone()
    values[1, 2] = 0
    expected = retrieval.all_weights() @ values
    changes = resolve(model, text, [_edit(f"L1.H1.{which}.2", "scale", factor=0.0)])
    torch.testing.assert_close(_reads(model, text, 1, which, changes).double(), expected, rtol=1e-4, atol=1e-5)


def test_scales_multiply_and_act_after_replacing():
    model, text, name = _model(), _text(), "L1.H0.ctx.3"
    half, twice = (_edit(name, "scale", factor=factor) for factor in (0.5, 2.0))
    replaced = _edit(name, "replace", token=4)
    torch.testing.assert_close(_edited(model, text, half, twice), _logits(model, text), rtol=0, atol=1e-5)
    for edits in ([replaced, half], [half, replaced]):
        (change,) = resolve(model, text, edits).values()
        values = change.new_values(torch.ones(1, H, T - 1, D))
        torch.testing.assert_close(values[0, 0, 3], change.values[0, 0, 3] / 2)
        assert (values[0, 1:] == 1).all()


# ---- replacing and adding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", range(N))
def test_replacing_stores_what_the_changed_text_stores(kind, layer):
    model, text, pair, token = _model(kind), _text(), 3, 11
    changed = list(text)
    changed[pair + 1 if kind == "mosaic" else pair] = token
    (change,) = resolve(model, text, [_edit(f"L{layer}.H*.ctx.{pair}", "replace", token=token)]).values()
    stored = read_text(model, changed).layers[layer].pairs.values
    own = read_text(model, text).layers[layer].pairs.values
    new = change.new_values(own[None])[0]
    torch.testing.assert_close(new[:, pair], stored[:, pair], rtol=1e-5, atol=1e-6)
    others = [i for i in range(own.shape[1]) if i != pair]
    assert torch.equal(new[:, others], own[:, others]) and not torch.allclose(new[:, pair], own[:, pair])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_added_is_seen_later_and_by_the_chosen_heads_only(kind):
    model, text, after = _model(kind), _text(), 4
    changes = resolve(model, text, [_edit("L1.H2.ctx", "add", after=after, token=8)])
    before, now = _reads(model, text, 1, "ctx"), _reads(model, text, 1, "ctx", changes)
    first = next(position for position in range(T) if _visible(model, position) > after)  # who sees the pair itself
    same = (before - now).abs().amax(-1) < 1e-6  # (H, T)
    assert same[:2].all() and same[2, :first].all() and not same[2, first:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_adding_is_storing_one_more_pair(kind):
    model, text, after, token = _model(kind), _text(), 4, 8
    pairs = read_text(model, text).layers[0].pairs
    changed = list(text)
    changed[after + 1 if kind == "mosaic" else after] = token
    value = read_text(model, changed).layers[0].pairs.values[:, after]
    scores = pairs.scores(T - 1)  # (H, S)
    weights = torch.cat([scores, scores[:, [after]]], 1).softmax(-1)
    expected = torch.einsum("hs,hsd->hd", weights, torch.cat([pairs.values, value[:, None]], 1))
    changes = resolve(model, text, [_edit("L0.H*.ctx", "add", after=after, token=token)])
    torch.testing.assert_close(_reads(model, text, 0, "ctx", changes)[:, -1].double(), expected, rtol=1e-4, atol=1e-5)


def test_what_is_added_stays_when_all_else_is_deleted():
    model, text = _model(), _text()
    changes = resolve(model, text, [_edit("L0.H*.ctx"), _edit("L0.H*.ctx", "add", after=2, token=8)])
    reads = _reads(model, text, 0, "ctx", changes)
    torch.testing.assert_close(reads[:, -1], changes[0, "ctx"].added_values[0].float())
    assert not reads[:, :3].any()


def test_a_replaced_slot_pushes_the_token_as_loudly_as_before():
    model, text, slot, token = _model(), _text(), 2, 7
    (change,) = resolve(model, text, [_edit(f"L1.H*.slot.{slot}", "replace", token=token)]).values()
    memory = model.blocks[1].persistent
    old = memory.slot_values.detach() * ops.value_scale(memory.read.scale.detach())[:, None, None]
    new = change.new_values(old[None])[0]
    torch.testing.assert_close(new[:, slot].norm(dim=-1), old[:, slot].norm(dim=-1))
    pushed = torch.einsum("hd,chd->hc", new[:, slot], memory.output.weight.detach().unflatten(1, (H, D)))
    pushed = (pushed - pushed.mean(-1, keepdim=True)) * model.norm.weight.detach()
    spared = torch.randn(H, D) * old[:, slot].norm(dim=-1, keepdim=True) / D**0.5
    other = torch.einsum("hd,chd->hc", spared, memory.output.weight.detach().unflatten(1, (H, D)))
    aimed, chance = (x @ model.embedding.weight[token].detach() for x in (pushed, other))
    assert (aimed > 0).all() and (aimed > chance).all()
    assert torch.equal(new[:, :slot], old[:, :slot]) and torch.equal(new[:, slot + 1 :], old[:, slot + 1 :])


# ---- blanking


@pytest.mark.parametrize(("kind", "which"), [("mosaic", "ctx"), ("mosaic", "slot"), ("transformer", "ctx")])
@pytest.mark.parametrize("to_mean", [False, True])
def test_blanked_memories_keep_their_weight(kind, which, to_mean):
    model, text = _model(kind), _text()
    reading = read_text(model, text).layers[0]
    retrieval = reading.slots if which == "slot" else reading.pairs
    weights, values = retrieval.all_weights(), retrieval.values
    blanked = torch.zeros(1, H, values.shape[1], dtype=torch.bool)
    blanked[0, 1, [1, 4]] = True
    expected = torch.zeros(H, T, D, dtype=torch.float64)
    for position in range(T):
        count = M if which == "slot" else _visible(model, position)
        for head in range(H):
            mean = values[head, :count].mean(0) if to_mean and count else torch.zeros(D)
            for i in range(count):
                said = mean if blanked[0, head, i] else values[head, i]
                expected[head, position] += weights[head, position, i] * said
    changes = {(0, which): Change(blanked=blanked, to_mean=to_mean)}
    torch.testing.assert_close(_reads(model, text, 0, which, changes).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["dropped", "blanked"])
def test_distances_are_counted_from_the_newest_pair_that_is_seen(kind, field):
    model, text, (first, last) = _model(kind), _text(), (2, 3)
    everything = torch.ones(1, H, T, dtype=torch.bool)
    reads = _reads(model, text, 0, "ctx", {(0, "ctx"): Change(**{field: everything}, distances=(first, last))})
    pairs = read_text(model, text).layers[0].pairs
    for position in range(T):
        count = _visible(model, position)
        kept = torch.tensor([not first <= count - i <= last for i in range(count)], dtype=torch.bool)
        scores = pairs.queries[:, position, None] @ pairs.keys[:, :count].mT
        if field == "dropped":
            scores = scores.masked_fill(~kept, -torch.inf)
        weights = scores.softmax(-1).nan_to_num(0) * kept
        expected = (weights @ pairs.values[:, :count])[:, 0]
        torch.testing.assert_close(reads[:, position].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_change_lets_a_position_see_a_later_token(kind):
    model, text = _model(kind), _text()
    later = text[:6] + [(token + 1) % V for token in text[6:]]
    blanked = torch.ones(1, H, T, dtype=torch.bool)
    for change in (Change(blanked=blanked, to_mean=True), Change(dropped=blanked, distances=(1, 2))):
        changes = {(layer, "ctx"): change for layer in range(N)}
        assert torch.equal(_logits(model, text, changes)[:6], _logits(model, later, changes)[:6])


# ---- decoding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [[T], [1] * T, [5, 4], [1, 3, 5], [8, 1]])
def test_cached_equals_full_under_edits_for_any_split(kind, split):
    model, text = _model(kind), _text()
    prompt = text[:6]
    edits = [
        _edit("L*.H1.ctx.2"),
        _edit("L0.H0.ctx"),
        _edit("L1.H*.ctx.1", "scale", factor=-2.0),
        _edit("L*.H2.ctx.3", "replace", token=5),
        _edit("L*.H0.ctx", "add", after=0, token=3),
        _edit("L1.H*.ctx", "add", after=4, token=6),
        *([_edit("L0.H*.slot.1"), _edit("L1.H1.slot.3", "replace", token=2)] if kind == "mosaic" else []),
    ]
    changes = resolve(model, prompt, edits)
    blanked = torch.zeros(1, H, T, dtype=torch.bool)
    blanked[:, 2] = True
    changes[1, "ctx"].blanked, changes[1, "ctx"].to_mean, changes[1, "ctx"].distances = blanked, True, (1, 3)
    tokens = torch.tensor([text, _text(seed=4)])
    with torch.no_grad(), edited(model, changes):
        cache = model.make_cache()
        parts = [model(part, cache) for part in tokens.split(split, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-4, atol=1e-5)


def test_all_means_what_the_prompt_stores():
    model, text = _model(), _text()
    changes = resolve(model, text[:5], [_edit("L0.H*.ctx")])
    assert changes[0, "ctx"].dropped.shape == (1, H, 4) and changes[0, "ctx"].dropped.all()
    assert _reads(model, text, 0, "ctx", changes)[:, 5:].any(-1).all()


# ---- names


@pytest.mark.parametrize("name", ["L1.H0.ctx.17", "L1.H0.slot.411", "L*.H*.ctx.17", "L*.H3.slot", "L0.H*.ctx"])
def test_a_name_is_read_as_it_is_written(name):
    assert str(Memories.parse(name)) == name


def test_a_star_and_no_number_are_all():
    assert Memories.parse("L*.H*.ctx.*") == Memories.parse("L*.H*.ctx") == Memories(None, None, "ctx", None)
    model = _model()
    named = Memories.parse("L1.H*.ctx")
    assert list(named.layers(model)) == [1] and range(H)[named.heads] == range(H)
    assert list(Memories.parse("L*.H1.slot.2").layers(model)) == [0, 1]


@pytest.mark.parametrize(
    "name", ["", "L1", "L1.H0", "L1.H0.ctx.", "L1.H0.mlp.3", "l1.h0.ctx.3", "L-1.H0.ctx.3", "L1.H0"]
)
def test_what_is_not_a_name_is_refused(name):
    with pytest.raises(UsageError, match="does not name a memory") as caught:
        Memories.parse(name)
    assert "L1.H0.ctx.17" in caught.value.hint


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_edit("L2.H0.ctx.1"), "layers there are 2"),
        (_edit("L0.H3.ctx.1"), "heads there are 3"),
        (_edit("L0.H0.ctx.8"), "stored pairs there are 8"),
        (_edit("L0.H0.slot.6"), "slots there are 6"),
        (_edit("L0.H0.ctx", "add", after=8, token=1), "there is no memory L0.H0.ctx.8"),
        (_edit("L0.H0.ctx.2", "add", after=2, token=1), "is there already"),
        (_edit("L0.H0.slot", "add", after=2, token=1), "slots cannot be added"),
        (_edit("L0.H0.ctx", "replace", token=1), "more than one memory"),
    ],
)
def test_a_memory_that_is_not_there_is_refused(edit, message):
    with pytest.raises(UsageError, match=message):
        resolve(_model(), _text(), [edit])


def test_a_transformer_has_no_slots_but_one_pair_more():
    model = _model("transformer")
    with pytest.raises(UsageError, match="has no slots"):
        resolve(model, _text(), [_edit("L0.H0.slot.1")])
    resolve(model, _text(), [_edit("L0.H0.ctx.8")])
    with pytest.raises(UsageError, match="stored pairs there are 9"):
        resolve(model, _text(), [_edit("L0.H0.ctx.9")])
