"""Products with one row and with a few by loops, against torch's in float64."""

import pytest
import torch

from mosaic_cli.core import kernels, linear
from mosaic_cli.core.kernels import few_rows

pytestmark = pytest.mark.usefixtures("_threads")


@pytest.mark.parametrize("shape", [(1, 7), (1, 1, 64), (8, 1, 33), (16, 64), (17, 1, 64), (64, 5), (3, 4, 9)])
@pytest.mark.parametrize("outputs", [1, 7, 8, 40, 129])
def test_it_is_the_product(shape, outputs):
    x, weight = torch.randn(shape), torch.randn(outputs, shape[-1])
    y = few_rows.linear(x, weight)
    assert y.shape == (*shape[:-1], outputs)
    torch.testing.assert_close(y.double(), x.double() @ weight.double().t(), rtol=0, atol=1e-5 * shape[-1] ** 0.5)


@torch.inference_mode()
def test_linear_maps_take_the_loops_where_they_are_allowed(monkeypatch):
    taken = []
    monkeypatch.setattr(few_rows, "linear", lambda x, weight: taken.append(len(x)) or x @ weight.t())
    monkeypatch.setattr(kernels, "_has_tile", lambda _: True)
    weight = torch.randn(512, 256)
    for rows in (1, 2, 8, 64, 65):
        for loops in (False, True):
            x = torch.randn(rows, 256)
            torch.testing.assert_close(linear.linear(x, weight, loops), x @ weight.t(), rtol=1e-4, atol=1e-4)
    assert taken == [1, 8, 64]
    linear.linear(torch.randn(1, 256), weight[:255], loops=True)  # one row, and little to read
    linear.linear(torch.randn(8, 256).double(), weight.double(), loops=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear.linear(torch.randn(8, 256), weight, loops=True).dtype == torch.bfloat16
    monkeypatch.setattr(kernels, "_has_tile", lambda _: False)
    linear.linear(torch.randn(8, 256), weight, loops=True)
    assert taken == [1, 8, 64]
    linear.linear(torch.randn(1, 256), weight, loops=True)  # which needs no tile
    assert taken == [1, 8, 64, 1]
