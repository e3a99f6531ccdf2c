"""Deletions: side by side as one at a time; unread as the newest tokens alone reading without, by loops."""

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCABULARY, tiny_model, tiny_tokens

from mosaic_cli.core import ops
from mosaic_cli.probes import deletions
from mosaic_cli.probes.deletions import after_deletions, one_each, single_deletions, unread_by_newest, unread_effects
from mosaic_cli.probes.edits import Change, edited
from mosaic_cli.probes.reading import read_text
from mosaic_cli.probes.trace import trace

KINDS = ["mosaic", "transformer"]
N, H = 3, 2  # of the tiny models


def _read(kind, T, **options):
    model = tiny_model(kind, **options).double()
    return model, read_text(model, tiny_tokens(T))


def _some_dropped(reading, variants, first=0):
    """(variants, N, H, S): about a third of the pairs, none below layer `first`."""
    S = reading.layers[0].pairs.keys.shape[1]
    dropped = torch.rand(variants, N, H, S, generator=torch.Generator().manual_seed(3)) < 0.35
    dropped[:, :first] = False
    return dropped


@torch.no_grad()
def _one_at_a_time(model, tokens, dropped):
    for variant in dropped:
        with edited(model, {(layer, "ctx"): Change(dropped=variant[None, layer]) for layer in range(N)}):
            yield model(torch.tensor([tokens]))[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", range(N))
@pytest.mark.parametrize("batch_tokens", [16384, 20, 1])
def test_side_by_side_is_one_at_a_time(kind, first, batch_tokens, monkeypatch):
    monkeypatch.setattr(deletions, "BATCH_TOKENS", batch_tokens)
    model, reading = _read(kind, T=9)
    dropped = _some_dropped(reading, 5, first)
    batches = list(after_deletions(model, reading, dropped, first))
    assert len(batches) == {16384: 1, 20: 3, 1: 5}[batch_tokens]
    expected = torch.stack(list(_one_at_a_time(model, reading.tokens, dropped)))
    assert expected.std(0).max() > 1e-3  # variants differ
    torch.testing.assert_close(torch.cat(batches), expected, rtol=0, atol=1e-10)


def test_a_large_vocabulary_makes_smaller_batches(monkeypatch):
    monkeypatch.setattr(deletions, "BATCH_LOGITS", 2 * 9 * VOCABULARY)
    model, reading = _read("mosaic", T=9)
    dropped = _some_dropped(reading, 5)
    assert [len(batch) for batch in after_deletions(model, reading, dropped)] == [2, 2, 1]
    assert [len(batch) for batch in unread_by_newest(model, reading, dropped)] == [5]


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_too(kind):
    model = tiny_model(kind)
    reading = read_text(model, tiny_tokens(9))
    dropped = _some_dropped(reading, 3)
    (found,) = after_deletions(model, reading, dropped)
    expected = torch.stack(list(_one_at_a_time(model, reading.tokens, dropped)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def _unread_by_force(model, tokens, dropped, newest):
    """Logits (V,) after the text when the last positions' reads leave the pairs (N, H, S) out: a whole forward with
    reads by loops, every other position reading all that it may see."""
    mosaic = model.config.kind == "mosaic"
    memories = [block.contextual if mosaic else block.attention for block in model.blocks]
    reads = [memory.read for memory in memories]
    for memory, read, gone in zip(memories, reads, dropped, strict=True):
        memory.read = _Loops(read, gone, newest)
    try:
        return model(torch.tensor([tokens]))[0, -1]
    finally:
        for memory, read in zip(memories, reads, strict=True):
            memory.read = read


class _Loops(torch.nn.Module):
    """The read of pairs, one position after the other; the last `newest` do not see `gone` (H, S)."""

    def __init__(self, inner, gone, newest):
        super().__init__()
        self.inner, self.gone, self.newest = [inner], gone, newest

    def scalars(self):
        return ()

    def forward(self, queries, keys, values, *_, attend_one=None):
        (inner,) = self.inner
        beta = ops.inverse_bandwidth(inner.bandwidth) if hasattr(inner, "bandwidth") else None
        reads = torch.zeros_like(queries)
        for head in range(H):
            for t in range(queries.shape[2]):
                is_new = t >= queries.shape[2] - self.newest
                seen = [i for i in range(t + 1) if not (is_new and self.gone[head, i])]
                if not seen:
                    continue
                query = queries[0, head, t] * (beta[head] if beta is not None else queries.shape[-1] ** -0.5)
                weights = torch.softmax(keys[0, head, seen] @ query, 0)
                reads[0, head, t] = weights @ values[0, head, seen]
        return reads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 3, 9])
@pytest.mark.parametrize("newest", [1, 3])
@pytest.mark.parametrize("batch_tokens", [16384, 1])
def test_unread_is_the_newest_tokens_alone_reading_without(kind, T, newest, batch_tokens, monkeypatch):
    monkeypatch.setattr(deletions, "BATCH_TOKENS", batch_tokens)
    model, reading = _read(kind, T)
    dropped = _some_dropped(reading, 4)
    dropped[0], dropped[1] = False, True  # nothing left out, and everything
    found = torch.cat(list(unread_by_newest(model, reading, dropped, newest)))
    assert found.shape == (4, VOCABULARY)
    expected = torch.stack([_unread_by_force(model, reading.tokens, variant, newest) for variant in dropped])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found[0], reading.logits[-1], rtol=0, atol=1e-9)


def test_in_a_transformer_s_top_layer_unread_and_deleted_are_the_same():
    """No one reads there what other positions got from the pair. (A mosaic's slots are asked with averages of them.)"""
    model, reading = _read("transformer", T=9)
    dropped = _some_dropped(reading, 4, first=N - 1)
    (deleted,) = after_deletions(model, reading, dropped)
    (unread,) = unread_by_newest(model, reading, dropped)
    torch.testing.assert_close(deleted[:, -1], unread, rtol=0, atol=1e-9)


def test_no_variant_takes_no_run():
    model, reading = _read("mosaic", T=4)
    none = _some_dropped(reading, 0)
    assert not list(after_deletions(model, reading, none)) and not list(unread_by_newest(model, reading, none))


def test_one_each_drops_each_chosen_pair_alone():
    chosen = torch.zeros(2, 3, 4, dtype=torch.bool)
    chosen[0, 2, 1] = chosen[1, 0, 3] = chosen[1, 0, 0] = True
    variants = one_each(chosen)
    assert variants.shape == (3, 2, 3, 4) and (variants.flatten(1).sum(1) == 1).all()
    assert torch.equal(variants.any(0), chosen)
    numbers = torch.arange(24.0).view(2, 3, 4)
    found = torch.stack([numbers[variant].sum() for variant in variants])
    assert torch.equal(found, numbers[chosen])  # so what is measured goes back where it belongs
    assert one_each(torch.zeros(2, 3, 4, dtype=torch.bool)).shape == (0, 2, 3, 4)


def _log_probability(logits, target):
    return F.log_softmax(logits.double(), -1)[target].item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 7])
def test_effects_are_changes_of_the_log_probability(kind, T, monkeypatch):
    monkeypatch.setattr(deletions, "ASKING", 2)
    model, reading = _read(kind, T)
    target = 5
    before = _log_probability(reading.logits[-1], target)
    deleted, unread = (f(model, reading, target, smallest=0.0) for f in (single_deletions, unread_effects))
    S = reading.layers[0].pairs.keys.shape[1]
    assert deleted.shape == unread.shape == (N, H, S)
    for layer, head, pair in torch.ones(N, H, S).nonzero().tolist():
        alone = torch.zeros(1, N, H, S, dtype=torch.bool)
        alone[0, layer, head, pair] = True
        (after,) = _one_at_a_time(model, reading.tokens, alone)
        expected = _log_probability(after[-1], target) - before
        assert deleted[layer, head, pair].item() == pytest.approx(expected, abs=1e-9)
        after = _unread_by_force(model, reading.tokens, alone[0], newest=2)
        assert unread[layer, head, pair].item() == pytest.approx(_log_probability(after, target) - before, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_with_little_weight_are_not_tried(kind, monkeypatch):
    monkeypatch.setattr(deletions, "ASKING", 2)
    model, reading = _read(kind, T=9, sharp=True)
    most = torch.stack([layer.pairs.all_weights().amax(1) for layer in reading.layers])
    newest = torch.stack([layer.pairs.all_weights()[:, -2:].amax(1) for layer in reading.layers])
    for function, weights in ((single_deletions, most), (unread_effects, newest)):
        everything, few, none = (function(model, reading, 5, smallest=s) for s in (0.0, 0.3, 1.0))
        assert ((weights > 0.3).any() and not (weights > 0.3).all()) and not none.any()
        tried = (weights > 0.3) & (everything.abs() > 1e-12)  # what lies below is rounding
        assert torch.equal(few.abs() > 1e-12, tried)
        torch.testing.assert_close(few[few != 0], everything[few != 0], rtol=0, atol=1e-10)


def test_losing_what_says_the_answer_costs():
    """A model of one layer, whose newest token reads directly: the sign is that of what is lost."""
    model, reading = _read("mosaic", T=9, num_layers=1)
    share = trace(reading, -1, target := int(reading.logits[-1].argmax())).parts.pairs[0]
    place = share.leave_one_out.argmin()
    assert share.leave_one_out.flatten()[place] < 0
    for function in (single_deletions, unread_effects):
        assert function(model, reading, target).flatten()[place] < 0
