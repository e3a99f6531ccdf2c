"""Attention that drops weights: against the fused kernel where none is dropped, and by what it kept where some are."""

import pytest
import torch
from gradients import assert_same, leaf

from mosaic_cli.core import ops
from mosaic_cli.core.kernels import dropped
from mosaic_cli.core.kernels.compiled import run

H, D = 3, 5


MASKS = [{}, {"is_causal": True}, {"attn_mask": torch.ones(130, 130, dtype=torch.bool).tril().triu(-9)}]


def _dropping(inputs, dropout, seed=0, **mask):
    torch.manual_seed(seed)
    return ops.attend(*inputs, dropout, **mask)


@pytest.mark.parametrize("mask", MASKS, ids=["all", "causal", "masked"])
def test_attention_that_drops_nothing_is_the_fused_one(mask):
    inputs = [leaf(2, H, 130, D) for _ in range(3)]
    assert_same(_dropping(inputs, 1e-12, **mask), ops.attend(*inputs, 0.0, **mask), inputs)


@pytest.mark.parametrize("mask", MASKS, ids=["all", "causal", "masked"])
def test_attention_has_the_gradients_of_the_weights_it_kept(mask):
    queries, keys, values = inputs = [leaf(2, H, 130, D) for _ in range(3)]
    ones = torch.eye(130, dtype=torch.float64).expand(2, H, 130, 130)
    kept = _dropping([queries, keys, ones], 0.2, **mask).detach()  # reading the unit vectors shows the weights
    everything = torch.ones(130, 130, dtype=torch.bool)
    allowed = mask.get("attn_mask", everything.tril() if mask else everything)
    weights = (queries @ keys.mT).masked_fill(~allowed, -torch.inf).softmax(-1)
    slow = weights * (kept > 0) / 0.8 @ values
    assert_same(_dropping(inputs, 0.2, **mask), slow, inputs)


@pytest.mark.parametrize("dropout", [0.05, 0.5])
def test_dropped_weights_are_as_many_as_asked_for_and_independent(dropout):
    weights = torch.ones(999, 1001)
    kept = torch.empty_like(weights)
    run(dropped._drop, weights, kept, 7, round(dropout * 2**32), 1 / (1 - dropout))
    gone = kept == 0
    assert torch.equal(gone, weights < 0) and torch.equal(weights.abs(), torch.ones(999, 1001))
    torch.testing.assert_close(kept[~gone], torch.full_like(kept[~gone], 1 / (1 - dropout)))
    assert gone.double().mean().item() == pytest.approx(dropout, abs=0.002)
    for one, other in ((gone[:, 1:], gone[:, :-1]), (gone[1:], gone[:-1]), (gone[7:], gone[:-7])):
        assert (one & other).double().mean().item() == pytest.approx(dropout**2, abs=0.002)
    spread = dropout * (1 - dropout)
    for dim in (0, 1):
        expected = (spread / gone.shape[dim]) ** 0.5
        assert gone.double().mean(dim).std().item() == pytest.approx(expected, rel=0.1)


def test_torch_s_generator_decides_what_is_dropped():
    inputs = [torch.randn(1, H, 70, D) for _ in range(3)]
    assert torch.equal(_dropping(inputs, 0.3), _dropping(inputs, 0.3))
    assert not torch.equal(_dropping(inputs, 0.3), _dropping(inputs, 0.3, seed=1))


def test_reads_have_the_values_type():
    inputs = [torch.randn(1, H, 70, D, dtype=torch.bfloat16) for _ in range(3)]
    exact = _dropping([tensor.float() for tensor in inputs], 0.3)
    reads = _dropping(inputs, 0.3)
    assert reads.dtype == torch.bfloat16
    torch.testing.assert_close(reads.float(), exact, rtol=1e-2, atol=1e-2)
