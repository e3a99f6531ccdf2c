"""The kernels under Triton's interpreter against loops: values and every gradient, odd lengths, states carried over."""

from importlib.util import find_spec

import pytest
import torch

from mosaic_cli.core import leaky as plain
from mosaic_cli.core import reference

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
from mosaic_cli.core.kernels import leaky

H, D = 2, 5
TILE = leaky.TILE
LENGTHS = [1, TILE, 2 * TILE + 1]


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """Memory that a kernel should have written and did not shows as NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(torch.nan))


def _leaf(*shape, scale=1.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def _rate():
    return torch.tensor([0.01, 4.0], dtype=torch.float64, requires_grad=True)


def _gates(B, T, scale):
    return _leaf(B, T, H, scale=scale), (-scale * torch.rand(B, T, H, dtype=torch.float64)).requires_grad_()


def _single(leaves):
    return [leaf.detach().float().requires_grad_() for leaf in leaves]


def _double(leaves):
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


def _gradients(output, inputs):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * weights.to(output.dtype)).sum(), inputs)


def _assert_same(fast, fast_inputs, slow, slow_inputs, tolerance=1e-5):
    torch.testing.assert_close(fast, slow.float(), rtol=tolerance, atol=tolerance)
    for a, b in zip(_gradients(fast, fast_inputs), _gradients(slow, slow_inputs), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().clamp(min=0.1).item())


def gated_average(x, log_gate, log_decay, average):
    """k_bar_T = g_T x_T + lambda_T k_bar_{T-1}, as v2 has it; x (B, T, H, D), gates (B, T, H) -> (B, H, T, D)."""
    averages = []
    for t in range(x.shape[1]):
        average = log_gate[:, t, :, None].exp() * x[:, t] + log_decay[:, t, :, None].exp() * average
        averages.append(average)
    return torch.stack(averages, dim=2)


def _unit(averages):
    return averages / averages.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("T", LENGTHS)
def test_average_goes_on_from_a_state_as_the_loop_does(T, monkeypatch):
    monkeypatch.setattr(plain.kernels, "serves", lambda _: True)  # the way that a GPU takes
    inputs = x, rate, state = _leaf(2, T, H, D), _rate(), _leaf(2, H, D)
    gates = torch.zeros(2, T, H), (-rate).expand(2, T, H)
    _assert_same(plain.leaky_average(*(single := _single(inputs))), single, gated_average(x, *gates, state), inputs)


@pytest.mark.parametrize("T", LENGTHS)
def test_keys_are_the_loop_normalised(T, monkeypatch):
    monkeypatch.setattr(plain.kernels, "serves", lambda _: True)
    inputs = x, rate = _leaf(2, T, H, D), _rate()
    slow = _unit(torch.stack([reference.leaky_average(sequence, rate) for sequence in x]).transpose(1, 2))
    _assert_same(plain.leaky_keys(*(single := _single(inputs))), single, slow, inputs)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["moderate", "beyond float32"])
def test_gated_keys_are_the_loop_normalised_whatever_the_gates(T, scale):
    single = _single([_leaf(2, T, H, D), *_gates(2, T, scale)])
    inputs = _double(single)
    slow = _unit(gated_average(*inputs, torch.zeros(2, H, D)))
    _assert_same(leaky.gated_keys(*single)[0], single, slow, inputs, tolerance=2e-5 * scale)


@pytest.mark.parametrize("cut", [1, TILE, TILE + 1])
def test_gated_keys_go_on_from_a_state(cut):
    T = 2 * TILE + 1
    x, log_gate, log_decay = _single([_leaf(2, T, H, D), *_gates(2, T, 40.0)])
    whole, end = leaky.gated_keys(x, log_gate, log_decay)
    first, state = leaky.gated_keys(x[:, :cut], log_gate[:, :cut], log_decay[:, :cut])
    later = [tensor[:, cut:].detach().requires_grad_() for tensor in (x, log_gate, log_decay)]
    second, end_too = leaky.gated_keys(*later, state)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, rtol=1e-4, atol=1e-4)
    for a, b in zip(end_too, end, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    slow_later = _double(later)
    average = state[0].double() * state[1].double().exp()[..., None]
    _assert_same(second, later, _unit(gated_average(*slow_later, average)), slow_later, tolerance=1e-3)


def test_bfloat16_is_averaged_in_float32_and_gets_gradients_of_its_own_kind():
    x = torch.randn(2, 40, H, D).bfloat16().requires_grad_()
    rate = torch.tensor([0.01, 1.0], requires_grad=True)
    keys, log_length = leaky.leaky_keys_forward(x, rate)
    slow = plain.leaky_keys(x.detach().float(), rate)
    torch.testing.assert_close(keys, slow)
    gradient = torch.randn_like(keys)
    by_x, by_rate = leaky.leaky_keys_backward(gradient, keys, log_length, rate, x.dtype)
    assert by_x.dtype == torch.bfloat16
    single = x.detach().float().requires_grad_()
    expected = torch.autograd.grad((plain.leaky_keys(single, rate) * gradient).sum(), [single, rate])
    torch.testing.assert_close(by_x.float(), expected[0], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(by_rate, expected[1], rtol=1e-4, atol=1e-4)


def test_zero_vectors_stay_zero_and_finite():
    zeros, rate = torch.zeros(1, 3, 1, D), torch.ones(1)
    keys, log_length = leaky.leaky_keys_forward(zeros, rate)
    gradients = leaky.leaky_keys_backward(torch.ones_like(keys), keys, log_length, rate, zeros.dtype)
    assert not keys.any() and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_inputs_may_be_views():
    x, rate = torch.randn(2, 3 * H, 37, D).transpose(1, 2)[:, :, ::3], torch.rand(H)
    torch.testing.assert_close(leaky.leaky_keys_forward(x, rate)[0], plain.leaky_keys(x, rate))
    wide = torch.randn(2, H, 37, 2 * D)[..., ::2]
    keys, log_length = leaky.leaky_keys_forward(x, rate)
    for a, b in zip(
        leaky.leaky_keys_backward(wide, keys, log_length, rate, x.dtype),
        leaky.leaky_keys_backward(wide.contiguous(), keys, log_length, rate, x.dtype),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
