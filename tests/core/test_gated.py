"""The gated average against the loop: values, every gradient, any decay, long texts, and a token at a time."""

import pytest
import torch

from mosaic_cli.core import gated, ops, reference

H, D = 3, 4


def _terms(B, T, gates=1.0, rates=1.0, dtype=torch.float64):
    """x, log of gates and rates. The heads' rates are near 0, near 1 and large, times `rates`."""
    x = torch.randn(B, T, H, D, dtype=dtype)
    log_gate = gates * torch.randn(B, T, H, dtype=dtype)
    rate = rates * torch.randn(B, T, H, dtype=dtype).abs() * torch.tensor([1e-4, 1.0, 30.0], dtype=dtype)
    return x, log_gate, rate


def _loop(x, log_gate, rate):
    return torch.stack([reference.gated_average(*terms) for terms in zip(x, log_gate, rate, strict=True)]).transpose(
        1, 2
    )


@pytest.mark.parametrize("T", [1, 2, 7, 63, 64, 65, 130])
def test_values_and_gradients_are_the_loop_s(T):
    terms = [term.requires_grad_() for term in _terms(2, T)]
    slow = _loop(*terms)
    fast = gated.true_average(*gated.gated_average(*terms))
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(slow)
    for a, b in zip(*(torch.autograd.grad((out * weights).sum(), terms) for out in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_gradients_of_directions_are_the_loop_s():
    """Normalised, the scale that is taken out does not count, and has no gradient."""
    terms = [term.requires_grad_() for term in _terms(1, 70, gates=3.0)]
    average, scale = gated.gated_average(*terms)
    assert not scale.requires_grad
    slow = ops.normalise(_loop(*terms))
    weights = torch.randn_like(slow)
    for a, b in zip(
        *(torch.autograd.grad((out * weights).sum(), terms) for out in (ops.normalise(average), slow)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_a_long_text_is_the_loop_s():
    terms = _terms(1, 16384)
    slow = _loop(*terms)
    torch.testing.assert_close(gated.true_average(*gated.gated_average(*terms)), slow, rtol=1e-9, atol=1e-12)
    average, _ = gated.gated_average(*(term.float() for term in terms))
    torch.testing.assert_close(ops.normalise(average), ops.normalise(slow).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("gates", [100.0, 3e4])
def test_huge_gates_neither_overflow_nor_vanish(gates):
    x, log_gate, rate = (term.requires_grad_() for term in _terms(1, 300, gates=gates, rates=10.0, dtype=torch.float32))
    average, scale = gated.gated_average(x, log_gate, rate)
    keys = ops.normalise(average)
    assert average.isfinite().all() and scale.isfinite().all()
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(1, H, 300))
    keys.sum().backward()
    assert all(term.grad.isfinite().all() for term in (x, log_gate, rate))
    # the scale is the running maximum of the exponents
    expected, before = [], torch.full((1, H), -torch.inf)
    for t in range(300):
        before = torch.maximum(log_gate[:, t], before - rate[:, t])
        expected.append(before)
    torch.testing.assert_close(scale[..., 0], torch.stack(expected, 2).detach(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("cut", [1, 64, 100, 129])
def test_it_goes_on_from_a_state(cut):
    terms = _terms(2, 130, gates=5.0)
    whole, scales = gated.gated_average(*terms)
    first, first_scales = gated.gated_average(*(term[:, :cut] for term in terms))
    state = first[:, :, -1:], first_scales[:, :, -1:]
    second, second_scales = gated.gated_average(*(term[:, cut:] for term in terms), state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    torch.testing.assert_close(torch.cat([first_scales, second_scales], 2), scales)


def test_a_token_at_a_time_is_the_whole():
    x, log_gate, rate = terms = _terms(2, 90, gates=5.0)
    whole, scales = gated.gated_average(*terms)
    state = whole[:, :, :1], scales[:, :, :1]
    terms = x.transpose(1, 2), log_gate.mT[..., None], rate.mT[..., None]
    for t in range(1, 90):
        state = gated.next_average(*(term[:, :, t : t + 1] for term in terms), state)
        torch.testing.assert_close(state[0], whole[:, :, t : t + 1])
        torch.testing.assert_close(state[1], scales[:, :, t : t + 1])


def test_bfloat16_is_averaged_in_float32():
    terms = _terms(1, 70, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        average, scale = gated.gated_average(*terms)
    assert average.dtype == scale.dtype == torch.float32
    exact, _ = gated.gated_average(*(term.float() for term in terms))
    torch.testing.assert_close(average, exact)
