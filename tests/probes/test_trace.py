"""Traces: contributions add up to the logit, leaving one out is what leaving it out does, paths and matches add up."""

import pytest
import torch
from tiny_models import VOCABULARY, tiny_model, tiny_tokens

from mosaic_cli.core.reference import kernel_regression
from mosaic_cli.errors import UsageError
from mosaic_cli.probes.reading import read_text
from mosaic_cli.probes.trace import contributions, decompose, matches, paths, trace

KINDS = ["mosaic", "transformer"]
LENGTHS = [1, 2, 7, 66]


def _reading(kind="mosaic", T=7, double=True, **options):
    model = tiny_model(kind, **options)
    return read_text(model.double() if double else model, tiny_tokens(T))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
def test_contributions_add_up_to_the_logit(kind, sharp, double, T):
    reading = _reading(kind, T, double, sharp=sharp)
    tolerance = 1e-9 if double else 1e-4
    for position in range(T):
        for target, versus in ((3, None), (3, 5)):
            found = trace(reading, position, target, versus)
            logit = reading.logits[position, target] - (reading.logits[position, versus] if versus else 0)
            assert found.logit == pytest.approx(logit.item(), abs=1e-5)
            assert found.completeness_error < tolerance
            listed = sum(part.contribution for part in contributions(found.parts))
            assert listed == pytest.approx(found.logit, abs=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("T", [1, 2, 3, 9])
def test_leave_one_out_is_what_forgetting_a_memory_does(kind, sharp, T):
    reading = _reading(kind, T, sharp=sharp)
    parts = trace(reading, -1, target=4).parts
    for number, layer in enumerate(reading.layers):
        for retrieval, share in ((layer.pairs, parts.pairs[number]), (layer.slots, parts.slots[number])):
            if retrieval is not None:
                expected = _by_force(retrieval, T - 1, parts.functional)
                torch.testing.assert_close(share.leave_one_out, expected, rtol=1e-7, atol=1e-10)


def _by_force(retrieval, position, functional):
    """Change of the number (H, S) when each memory is really taken away and the rest is read again, in loops."""
    H, S = retrieval.keys.shape[0], retrieval.visible(position)
    changes = torch.zeros(H, S, dtype=torch.float64)
    one = torch.tensor(1.0, dtype=torch.float64)  # the queries hold beta already
    for h in range(H):
        query, keys, values = retrieval.queries[h, position], retrieval.keys[h, :S], retrieval.values[h, :S]
        before = kernel_regression(query, keys, values, one)
        for i in range(S):
            kept = [j for j in range(S) if j != i]
            after = kernel_regression(query, keys[kept], values[kept], one)
            changes[h, i] = (after - before) @ retrieval.output[h] @ functional
    return changes


def test_leave_one_out_keeps_its_digits_where_one_memory_has_all_the_weight():
    reading = _reading(T=40, sharp=True)
    share = trace(reading, -1, target=4).parts.pairs[0]
    assert share.weights.max() > 0.999
    assert share.leave_one_out.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_are_left_out_and_the_largest_come_first(kind):
    parts = trace(_reading(kind, T=9), -1, target=2).parts
    every = contributions(parts)
    sizes = [abs(part.contribution) for part in every]
    assert sizes == sorted(sizes, reverse=True) and len({part.id for part in every}) == len(every)
    assert contributions(parts, smallest=sizes[4]) == every[:4]
    assert parts.nth_size(4) == sizes[4] and parts.nth_size(len(sizes)) == 0
    assert parts.size == pytest.approx(sum(sizes))
    kinds = {"embedding", "ctx", "slot"} if kind == "mosaic" else {"embedding", "ctx", "mlp"}
    assert {part.kind for part in every} == kinds
    one = next(part for part in every if part.kind == "ctx")
    assert one.id == f"L{one.layer}.H{one.head}.ctx.{one.index}"
    assert parts.pairs[one.layer].contributions[one.head, one.index] == one.contribution


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1e-12, 0.01, 0.2])
def test_what_a_value_was_made_of_adds_up_to_it(kind, share):
    reading = _reading(kind, T=6)
    parts = trace(reading, -1, target=4).parts
    followed = paths(reading, parts, share)
    assert {path.contribution.id for path in followed} <= {part.id for part in contributions(parts)}
    deepest = max(map(_check_sum, followed))
    if share == 1e-12:
        assert sum(path.amount for path in followed) == pytest.approx(parts.total, abs=1e-9)
        assert deepest == len(reading.layers) + 1  # through every layer down to an embedding


def _check_sum(path):
    """Number of levels of a path, all of whose levels add up."""
    if path.contribution.kind != "ctx":
        assert not path.children and path.rest == 0
        return 1
    below = sum(child.amount for child in path.children)
    assert below + path.rest == pytest.approx(path.amount, abs=1e-9)
    return 1 + max(map(_check_sum, path.children), default=0)


def test_a_part_of_the_stream_adds_up_at_every_depth():
    reading, functional = _reading(T=7), torch.randn(12, dtype=torch.float64)
    for depth, layer in enumerate(reading.layers):
        for position in range(7):
            expected = (layer.norm.stream[position] @ functional).item()
            assert decompose(reading, position, depth, functional).total == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("position", "pair"), [(1, 0), (8, 0), (8, 7), (65, 40)])
def test_matches_add_up_to_the_cosine_of_the_keys(position, pair):
    reading = _reading(T=66)
    for layer in reading.layers:
        for head in range(2):
            found = matches(layer, head, position, pair, count=10_000)
            assert len(found) == (position + 1) * (pair + 1)
            shares = [match.share for match in found]
            assert shares == sorted(shares, reverse=True)
            asked, stored = layer.pairs.keys[head, position if position < 65 else -1], layer.pairs.keys[head, pair]
            if position < 65:  # the newest token's key is asked with, not stored
                assert sum(shares) == pytest.approx((asked @ stored).item(), abs=1e-9)
            else:
                query = layer.pairs.queries[head, position]
                assert sum(shares) == pytest.approx((query / query.norm() @ stored).item(), abs=1e-9)


def test_what_cannot_be_traced_is_refused():
    reading = _reading("transformer", T=5)
    for position in (5, -6):
        with pytest.raises(UsageError, match="outside of a text of 5 tokens"):
            trace(reading, position, target=0)
    with pytest.raises(UsageError, match="no token 17"):
        trace(reading, -1, target=VOCABULARY)
    parts = trace(reading, -1, target=0).parts
    with pytest.raises(UsageError, match="share 0 is not"):
        paths(reading, parts, share=0)
    with pytest.raises(UsageError, match="only a mosaic"):
        matches(reading.layers[0], head=0, position=3, pair=1)


def test_positions_count_from_the_end_too():
    reading = _reading(T=5)
    assert trace(reading, -2, target=1).logit == trace(reading, 3, target=1).logit
