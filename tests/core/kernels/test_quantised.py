"""Pairs read in 16 bits: against float64, as near as the few read whole make it."""

import math

import pytest
import torch
import torch.nn.functional as F

from mosaic_cli.core.kernels.quantised import QuantisedPairs

pytestmark = pytest.mark.usefixtures("_threads")


def _pairs(B, H, S, D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys, values, queries = (torch.randn(B, H, n, D, generator=generator) for n in (S, S, 1))
    return F.normalize(queries, dim=-1), F.normalize(keys, dim=-1), values


def _expected(queries, keys, values, scale):
    queries, keys, values = queries.double() * scale[..., None], keys.double(), values.double()
    return F.scaled_dot_product_attention(queries, keys, values, scale=1.0)


@pytest.mark.parametrize(("B", "H", "D"), [(1, 1, 4), (1, 3, 20), (2, 2, 64)])
@pytest.mark.parametrize("S", [1, 63, 64, 65, 700])
def test_reads_are_those_of_float64(B, H, S, D):
    queries, keys, values = _pairs(B, H, S, D)
    for beta in (1.0, 10.0, 50.0):
        scale = beta * torch.linspace(1, 1.1, H)[:, None]
        reads = QuantisedPairs(keys, values).attend(queries, scale, S)
        torch.testing.assert_close(
            reads.double(), _expected(queries, keys, values, scale), rtol=0, atol=2e-6 * (5 + beta)
        )


def test_a_pair_with_all_the_say_is_read_as_it_is():
    queries, keys, values = _pairs(1, 2, 300, 32)
    keys[:, :, 17:18] = queries
    scale = torch.full((2, 1), 200.0)
    reads = QuantisedPairs(keys, values).attend(queries, scale, 300)
    torch.testing.assert_close(reads, values[:, :, 17:18], rtol=1e-6, atol=1e-6)


def test_sixteen_bits_alone_would_be_further_off():
    """What is read whole is worth its time: rounded pairs by themselves, at a sharp kernel, err three times as much."""
    queries, keys, values = _pairs(4, 4, 500, 32)
    scale = torch.full((4, 1), 60.0)
    expected = _expected(queries, keys, values, scale)
    rounded = [(x / s).round() * s for x in (keys, values) for s in [x.abs().amax(-1, keepdim=True) / 32767]]
    alone = (_expected(queries, *rounded, scale) - expected).square().mean().sqrt()
    reads = QuantisedPairs(keys, values).attend(queries, scale, 500)
    assert (reads - expected).square().mean().sqrt() < alone / 3


def test_pairs_that_come_later_are_read():
    queries, keys, values = _pairs(2, 2, 200, 8)
    stored = QuantisedPairs(keys, values)
    scale = torch.full((2, 1), 5.0)
    for count in (3, 64, 63, 65, 150, 200, 10):  # one that comes, many at once, and fewer than were read before
        expected = _expected(queries, keys[:, :, :count], values[:, :, :count], scale)
        torch.testing.assert_close(stored.attend(queries, scale, count).double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        stored.attend(queries, 5.0, 10).double(), expected, rtol=0, atol=2e-5
    )  # one scale for all


def test_nothing_counts_for_nothing_and_no_number_for_none():
    queries, keys, values = _pairs(1, 2, 70, 8)
    keys[:, :, 5], values[:, :, 6] = 0, 0
    scale = torch.full((2, 1), 3.0)
    reads = QuantisedPairs(keys, values).attend(queries, scale, 70)
    torch.testing.assert_close(reads.double(), _expected(queries, keys, values, scale), rtol=0, atol=2e-5)
    values[0, 1, 30, 2] = math.nan
    reads = QuantisedPairs(keys, values).attend(queries, scale, 70)
    assert reads[0, 0].isfinite().all() and reads[0, 1].isnan().all()
    keys[0, 0, 66, 1] = math.inf
    assert QuantisedPairs(keys, values).attend(queries, scale, 70).isnan().all()


@pytest.mark.parametrize("beta", [400.0, 3e3, 2e4, 1e6, 1e8])
def test_equal_keys_and_large_bandwidths(beta):
    """Equal keys have equal errors, which do not cancel; and at 10^6 and more those of the scores are larger than 1."""
    queries, keys, values = _pairs(1, 2, 2000, 32)
    near = F.normalize(queries + 0.05 * keys[:, :, :12], dim=-1)  # so that none has all the say
    keys, values = (pairs[:, :, torch.arange(2000) % 12].contiguous() for pairs in (near, values))
    scale = torch.full((2, 1), beta)
    reads = QuantisedPairs(keys, values).attend(queries, scale, 2000)
    expected = _expected(queries, keys, values, scale)
    plain = F.scaled_dot_product_attention(queries * beta, keys, values, scale=1.0)
    allowed = 1e-5 + 3 * (plain - expected).abs().max()
    assert (reads - expected).abs().max() < allowed
