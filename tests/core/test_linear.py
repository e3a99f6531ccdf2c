"""A single row in parts and a few rows transposed, against torch's own product."""

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
def test_many_rows_are_multiplied_by_onednn_where_torch_s_own_library_is_slow(shape, monkeypatch):
    monkeypatch.setattr(kernels, "_is_wider_than_torch", lambda: True)
    monkeypatch.setattr(kernels, "WEIGHTS", 1)
    plain = []
    monkeypatch.setattr(F, "linear", lambda x, weight: plain.append(x) or x @ weight.T)
    x, weight = torch.randn(shape), torch.randn(40, 24, requires_grad=True)
    expected = x.double() @ weight.double().T
    with torch.inference_mode():
        torch.testing.assert_close(linear(x, weight).double(), expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(linear(x.mT.contiguous().mT, weight).double(), expected, rtol=0, atol=2e-5)
        assert not plain
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight)
        linear(x.double(), weight.double())
    linear(x, weight)  # gradients are torch's
    assert len(plain) == 3
