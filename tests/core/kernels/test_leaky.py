"""The kernels of v1's keys under Triton's interpreter against loops: values and every gradient, at any length."""

import pytest
import torch
from interpreted import MISSING, assert_same, leaf, poison_memory, single, unit

from mosaic_cli.core import leaky as plain
from mosaic_cli.core import reference

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)
from mosaic_cli.core.kernels import leaky

H, D = 2, 5
LENGTHS = [1, 32, 33, 100]  # of one segment, whole and not, and of several


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch):
    monkeypatch.setattr(leaky, "LEAST_SEGMENT", 32)
    monkeypatch.setattr(plain.kernels, "serves", lambda _: True)  # the way that a GPU takes
    poison_memory(monkeypatch)


def _rate():
    return torch.tensor([0.01, 4.0], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("has_state", [False, True], ids=["empty", "state"])
def test_average_is_the_loop(T, has_state):
    x, rate, state = _leaf_inputs(T)
    averages, before = [], state if has_state else torch.zeros_like(state)
    for t in range(T):
        before = x[:, t] + torch.exp(-rate)[:, None] * before
        averages.append(before)
    inputs = [x, rate] + [state] * has_state
    fast = plain.leaky_average(*(narrow := single(inputs)))
    assert_same(fast, narrow, torch.stack(averages, dim=2), inputs)


@pytest.mark.parametrize("T", LENGTHS)
def test_keys_are_the_loop_normalised(T):
    x, rate, _ = _leaf_inputs(T)
    slow = unit(torch.stack([reference.leaky_average(sequence, rate) for sequence in x]).transpose(1, 2))
    assert_same(plain.leaky_keys(*(narrow := single([x, rate]))), narrow, slow, [x, rate])


def _leaf_inputs(T):
    return leaf(2, T, H, D), _rate(), leaf(2, H, D)


def test_bfloat16_is_averaged_in_float32_and_gives_keys_and_gradients_of_its_own_kind():
    x = torch.randn(2, 40, H, D).bfloat16().requires_grad_()
    rate = torch.tensor([0.01, 1.0], requires_grad=True)
    exact = [x.detach().double().requires_grad_(), rate.detach().double().requires_grad_()]
    slow = unit(torch.stack([reference.leaky_average(sequence, exact[1]) for sequence in exact[0]]).transpose(1, 2))
    keys = plain.leaky_keys(x, rate)
    assert keys.dtype == torch.bfloat16
    torch.testing.assert_close(keys.double(), slow, rtol=2**-7, atol=1e-6)  # the interpreter cuts off
    gradient = torch.randn(keys.shape).bfloat16()
    by_x, by_rate = torch.autograd.grad(keys, [x, rate], gradient)
    true_x, true_rate = torch.autograd.grad(slow, exact, gradient.double())
    assert by_x.dtype == torch.bfloat16
    torch.testing.assert_close(by_x.double(), true_x, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(by_rate.double(), true_rate, rtol=1e-2, atol=2e-2)


def test_zero_vectors_stay_zero_and_finite():
    zeros, rate = torch.zeros(1, 3, 1, D, requires_grad=True), torch.ones(1, requires_grad=True)
    keys = plain.leaky_keys(zeros, rate)
    gradients = torch.autograd.grad(keys.sum(), [zeros, rate])
    assert not keys.any() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_inputs_and_gradients_may_be_views():
    x, rate = torch.randn(2, 3 * H, 37, D).transpose(1, 2)[:, :, ::3].requires_grad_(), torch.rand(H)
    compact = x.detach().contiguous().requires_grad_()
    keys, same = plain.leaky_keys(x, rate), plain.leaky_keys(compact, rate)
    torch.testing.assert_close(keys, same)
    wide = torch.randn(2, H, 37, 2 * D)[..., ::2]
    (a,), (b,) = torch.autograd.grad(keys, [x], wide), torch.autograd.grad(same, [compact], wide.contiguous())
    torch.testing.assert_close(a, b)
