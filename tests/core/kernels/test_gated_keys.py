"""The kernels of v2's gated keys under Triton's interpreter against loops: values, gradients, states carried over."""

import pytest
import torch
from interpreted import MISSING, assert_same, double, leaf, poison_memory, single, unit

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)
from mosaic_cli.core.kernels import gated

H, D = 2, 5
TILE = gated.TILE
LENGTHS = [1, TILE, 2 * TILE + 1]


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    poison_memory(monkeypatch)


def _gates(B, T, scale):
    return leaf(B, T, H, scale=scale), (-scale * torch.rand(B, T, H, dtype=torch.float64)).requires_grad_()


def gated_average(x, log_gate, log_decay, average):
    """k_bar_T = g_T x_T + lambda_T k_bar_{T-1}, as v2 has it; x (B, T, H, D), gates (B, T, H) -> (B, H, T, D)."""
    averages = []
    for t in range(x.shape[1]):
        average = log_gate[:, t, :, None].exp() * x[:, t] + log_decay[:, t, :, None].exp() * average
        averages.append(average)
    return torch.stack(averages, dim=2)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("scale", [1.0, 60.0], ids=["moderate", "beyond float32"])
def test_gated_keys_are_the_loop_normalised_whatever_the_gates(T, scale):
    narrow = single([leaf(2, T, H, D), *_gates(2, T, scale)])
    inputs = double(narrow)
    slow = unit(gated_average(*inputs, torch.zeros(2, H, D)))
    assert_same(gated.gated_keys(*narrow)[0], narrow, slow, inputs, tolerance=2e-5 * scale)


@pytest.mark.parametrize("cut", [1, TILE, TILE + 1])
def test_gated_keys_go_on_from_a_state(cut):
    T = 2 * TILE + 1
    x, log_gate, log_decay = single([leaf(2, T, H, D), *_gates(2, T, 40.0)])
    whole, end = gated.gated_keys(x, log_gate, log_decay)
    first, state = gated.gated_keys(x[:, :cut], log_gate[:, :cut], log_decay[:, :cut])
    later = [tensor[:, cut:].detach().requires_grad_() for tensor in (x, log_gate, log_decay)]
    second, end_too = gated.gated_keys(*later, state)
    torch.testing.assert_close(torch.cat([first, second], dim=2), whole, rtol=1e-4, atol=1e-4)
    for a, b in zip(end_too, end, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    slow_later = double(later)
    average = state[0].double() * state[1].double().exp()[..., None]
    assert_same(second, later, unit(gated_average(*slow_later, average)), slow_later, tolerance=1e-3)
