"""A single row in parts and a few rows transposed, against torch's own product."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mosaic_cli.core import kernels
from mosaic_cli.core import linear as module
from mosaic_cli.core.linear import Linear, linear


@pytest.fixture(params=[1, 2, 3])
def _threads(request, monkeypatch):
    monkeypatch.setattr(module, "WORTH_PARTS", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("shape", [(7,), (1, 1, 7), (1, 5, 7), (2, 1, 7), (0, 1, 7), (64, 1, 7), (5, 13, 7)])
@pytest.mark.parametrize("outputs", [1, 2, 6, 11])
@torch.no_grad()
def test_it_is_torch_s_product(shape, outputs):
    x, weight = torch.randn(*shape, dtype=torch.float64), torch.randn(outputs, 7, dtype=torch.float64)
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


@pytest.mark.usefixtures("_threads")
@torch.inference_mode()
def test_it_computes_in_autocast_s_type():
    x, layer = torch.randn(1, 1, 8), Linear(8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == F.linear(x, layer.weight).dtype == torch.bfloat16


def test_gradients_are_recorded():
    layer = Linear(8, 6)
    layer(torch.randn(1, 8)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("shape", [(65, 24), (3, 40, 24), (1, 200, 24)])
def test_onednn_multiplies_and_makes_gradients_where_torch_s_own_library_is_slow(shape, monkeypatch):
    monkeypatch.setattr(kernels, "_is_wider_than_torch", lambda: True)
    monkeypatch.setattr(kernels, "ONEDNN_WEIGHTS", 1)
    monkeypatch.setattr(kernels, "ONEDNN_PRODUCTS", 40 * 24 * 65)
    plain = []
    monkeypatch.setattr(F, "linear", lambda x, weight: plain.append(x) or x @ weight.T)
    x, weight, gradient = torch.randn(shape), torch.randn(40, 24), torch.randn(*shape[:-1], 40)
    x.requires_grad_()
    weight.requires_grad_()
    expected = x.double() @ weight.double().T
    given = torch.autograd.grad(expected, (x, weight), gradient.double())
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-4)
    for rows in (x, x.mT.contiguous().mT):
        with torch.inference_mode():
            close(linear(rows.detach(), weight).double(), expected)
        y = linear(rows, weight)
        close(y.double(), expected)
        for ours, theirs in zip(torch.autograd.grad(y, (x, weight), gradient), given, strict=True):
            close(ours, theirs)
        close(torch.autograd.grad(linear(rows, weight.detach()), x, gradient)[0], given[0])
        close(torch.autograd.grad(linear(rows.detach(), weight), weight, gradient)[0], given[1])
    assert not plain
    with torch.autocast("cpu", torch.bfloat16):
        linear(x, weight)
    linear(x.double(), weight.double())
    linear(x.flatten(0, -2)[:64], weight)  # too few
    assert len(plain) == 3
