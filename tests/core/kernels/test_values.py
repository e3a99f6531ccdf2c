"""The kernels of values under Triton's interpreter against the definition: values and every gradient."""

import pytest
import torch
from interpreted import MISSING, assert_same, leaf, poison_memory, single, unit

from mosaic_cli.core import ops

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)
from mosaic_cli.core.kernels import values

H, D = 2, 5


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    monkeypatch.setitem(values.FORWARD, "TILE", 16)
    monkeypatch.setattr(ops.kernels, "serves", lambda _: True)
    poison_memory(monkeypatch)


def _defined(content, gamma, alpha):
    gamma, alpha = gamma.view(-1, 1, 1), alpha.view(-1, 1, 1)
    return alpha * unit(gamma * content[:, :, :-1] + (1 - gamma) * content[:, :, 1:])


@pytest.mark.parametrize("T", [2, 16, 17, 40])
def test_values_are_their_definition(T):
    inputs = leaf(2, H, T, D), leaf(H), leaf(H)
    assert_same(ops.peeked_values(*(narrow := single(inputs))), narrow, _defined(*inputs), inputs)


def test_a_single_token_has_no_value_yet():
    assert ops.peeked_values(torch.randn(2, H, 1, D), torch.rand(H), torch.rand(H)).shape == (2, H, 0, D)


def test_bfloat16_gives_values_and_gradients_of_its_own_kind():
    content, gamma, alpha = torch.randn(2, H, 20, D).bfloat16().requires_grad_(), torch.rand(H), torch.rand(H)
    found = ops.peeked_values(content, gamma, alpha)
    exact = content.detach().double().requires_grad_()
    slow = _defined(exact, gamma.double(), alpha.double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), slow, rtol=2**-7, atol=1e-6)  # the interpreter cuts off
    gradient = torch.randn(found.shape).bfloat16()
    (a,), (b,) = (torch.autograd.grad(v, [c], gradient.to(v.dtype)) for v, c in ((found, content), (slow, exact)))
    assert a.dtype == torch.bfloat16
    torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-2)
