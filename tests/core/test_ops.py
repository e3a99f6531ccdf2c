"""The fast functions against the loops: values and every gradient, odd lengths, states carried over."""

import pytest
import torch
from gradients import assert_same, leaf

from mosaic_cli.core import kernels, leaky, ops, reference

H, D = 3, 5


@pytest.fixture(params=["compiled loops", "tensors"])
def _both_forms(request, monkeypatch):
    """As on a CPU, and as on other devices."""
    if request.param == "tensors":
        monkeypatch.setattr(kernels, "loops_serve", lambda _: False)


@pytest.mark.parametrize("T", [1, 2, 7, 63, 64, 65, 130])
def test_leaky_average_is_the_recurrence(T):
    x, rate = leaf(2, T, H, D), torch.tensor([0.0, 0.01, 4.0], dtype=torch.float64, requires_grad=True)
    slow = torch.stack([reference.leaky_average(sequence, rate) for sequence in x]).transpose(1, 2)
    assert_same(leaky.leaky_average(x, rate), slow, [x, rate])


@pytest.mark.parametrize("T", [1, 2, 7, 64, 65, 130])
@pytest.mark.usefixtures("_both_forms")
def test_leaky_keys_are_the_loops_normalised(T):
    x, rate = leaf(2, T, H, D), torch.tensor([0.0, 0.01, 4.0], dtype=torch.float64, requires_grad=True)
    slow = torch.stack([reference.leaky_average(sequence, rate) for sequence in x]).transpose(1, 2)
    slow = slow / slow.norm(dim=-1, keepdim=True)
    assert_same(leaky.leaky_keys(x, rate), slow, [x, rate])
    with torch.no_grad():
        torch.testing.assert_close(leaky.leaky_keys(x, rate), slow)


@pytest.mark.parametrize("T", [1, 7, 64, 130])
def test_leaky_average_runs_backwards_too(T):
    x, rate = torch.randn(2, T, H, D, dtype=torch.float64), torch.tensor([0.0, 0.01, 4.0], dtype=torch.float64)
    flipped = leaky.leaky_average(x.flip(1), rate).flip(2)
    torch.testing.assert_close(leaky.leaky_average(x, rate, reverse=True), flipped)


@pytest.mark.parametrize("cut", [1, 64, 100, 129])
def test_leaky_average_goes_on_from_a_state(cut):
    x, rate = torch.randn(2, 130, H, D, dtype=torch.float64), torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    whole = leaky.leaky_average(x, rate)
    first = leaky.leaky_average(x[:, :cut], rate)
    second = leaky.leaky_average(x[:, cut:], rate, first[:, :, -1])
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole)


def test_leaky_average_of_a_very_long_sequence_levels_out():
    chunks = leaky.LEAKY_CHUNK**2 + 1  # three levels of the recursion
    x, rate = torch.ones(1, chunks, 1, 1), torch.tensor([0.05])
    limit = 1 / (1 - torch.exp(-rate))
    assert leaky.leaky_average(x, rate)[0, 0, -1] == pytest.approx(limit.item(), rel=1e-5)


@pytest.mark.parametrize("T", [2, 9, 33])
def test_strict_past_read_is_kernel_regression(T):
    keys = ops.normalise(leaf(2, H, T, D))
    values, beta = leaf(2, H, T - 1, D), torch.tensor([0.5, 7.0, 40.0], dtype=torch.float64, requires_grad=True)
    keys = keys.detach().requires_grad_()
    slow = torch.stack(
        [
            reference.strict_past_read(k.transpose(0, 1), v.transpose(0, 1), lambda _: beta).transpose(0, 1)
            for k, v in zip(keys, values, strict=True)
        ]
    )
    assert not slow[:, :, 0].any(), "an empty memory answers zero"
    assert_same(ops.strict_past_read(*ops.neighbours(keys), values, beta), slow[:, :, 1:], [keys, values, beta])


@pytest.mark.parametrize("newest", [1, 4, 12])
def test_newest_queries_read_what_the_whole_would(newest):
    keys, values = torch.randn(2, H, 13, D), torch.randn(2, H, 12, D)
    beta = torch.ones(H)
    whole = ops.strict_past_read(keys[:, :, 1:], keys[:, :, :-1], values, beta)
    part = ops.strict_past_read(keys[:, :, -newest:], keys[:, :, :-1], values, beta)
    torch.testing.assert_close(part, whole[:, :, -newest:])


def test_order_of_stored_pairs_is_irrelevant():
    query, keys, values = torch.randn(1, H, 1, D), torch.randn(1, H, 20, D), torch.randn(1, H, 20, D)
    order, beta = torch.randperm(20), torch.full((H,), 3.0)
    shuffled = ops.strict_past_read(query, keys[:, :, order], values[:, :, order], beta)
    torch.testing.assert_close(shuffled, ops.strict_past_read(query, keys, values, beta))


def test_retrieval_weights_sum_to_one():
    ones = torch.ones(2, H, 8, D)
    reads = ops.strict_past_read(torch.randn(2, H, 8, D), torch.randn(2, H, 8, D), ones, torch.rand(H) * 9)
    torch.testing.assert_close(reads, ones)


@pytest.mark.parametrize("T", [1, 5, 6, 9])
def test_slot_read_is_kernel_regression_over_slots(T):
    queries, keys, values = leaf(2, H, T, D), leaf(H, 11, D), leaf(H, 11, D)
    beta = torch.tensor([0.5, 7.0, 40.0], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    slow = alpha[:, None, None] * torch.stack(
        [reference.slot_read(q.transpose(0, 1), keys, values, beta).transpose(0, 1) for q in queries]
    )
    assert_same(ops.slot_read(queries, keys, values, beta, alpha), slow, [queries, keys, values, beta, alpha])
    with torch.no_grad():
        torch.testing.assert_close(ops.slot_read(queries, keys, values, beta, alpha), slow)


def test_parameters_start_where_the_paper_says():
    assert ops.inverse_bandwidth(torch.tensor(0.1)).item() == pytest.approx(torch.e**2)
    assert ops.inverse_bandwidth(torch.tensor(9.0)).item() == pytest.approx(torch.e**10)
    assert ops.value_scale(torch.tensor(-0.05)).item() == pytest.approx(torch.e**-0.5)
    assert ops.leak_rate(torch.tensor(-0.05)).item() == pytest.approx(0.5)


@pytest.mark.usefixtures("_both_forms")
def test_zero_vectors_stay_zero_and_finite():
    zeros = torch.zeros(1, 2, 1, 3, requires_grad=True)
    for out in (ops.normalise(zeros), leaky.leaky_keys(zeros, torch.ones(1))):
        (gradient,) = torch.autograd.grad(out.sum(), zeros)
        assert not out.any() and torch.isfinite(gradient).all()


def test_bfloat16_is_averaged_and_normalised_in_float32():
    x = torch.randn(1, 70, H, D, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        averages = leaky.leaky_average(x, torch.full((H,), 0.01))
        assert averages.dtype == ops.normalise(averages).dtype == torch.float32
    torch.testing.assert_close(averages, leaky.leaky_average(x.float(), torch.full((H,), 0.01)))


@pytest.mark.parametrize("T", [1, 2, 9])
@pytest.mark.usefixtures("_both_forms")
def test_values_peek_one_step_ahead(T):
    content = leaf(2, H, T, D)
    gamma, alpha = (torch.rand(H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    slow = torch.stack([reference.peeked_values(c.transpose(0, 1), gamma, alpha).transpose(0, 1) for c in content])
    fast = ops.peeked_values(content, gamma, alpha)
    assert fast.shape == (2, H, T - 1, D)
    if T > 1:
        assert_same(fast, slow, [content, gamma, alpha])
