"""Slots read by loops for a text and for several, against the plain function in float64."""

import pytest
import torch

from mosaic_cli.core import kernels, layout, ops
from mosaic_cli.core.kernels import slots


def _question(H=3, M=50, D=8, B=1):
    generator = torch.Generator().manual_seed(H * M)
    queries, keys, values = (torch.randn(*shape, generator=generator) for shape in ((B, H, 1, D), *[(H, M, D)] * 2))
    return queries, keys, values, torch.rand(H, generator=generator) * 5, torch.rand(H, generator=generator)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(
    ("H", "M", "D", "B"),
    [(1, 1, 4, 1), (1, 7, 5, 1), (3, 50, 8, 1), (4, 300, 32, 1), (3, 40, 32, 8), (1, 8, 64, 16), (2, 64, 32, 19)],
)
@torch.inference_mode()
def test_reads_are_those_of_float64(H, M, D, B):
    question = _question(H, M, D, B)
    expected = ops.slot_read(*(tensor.double() for tensor in question))
    torch.testing.assert_close(slots.read_slots(*question).double(), expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_they_serve_in_float32_where_they_are_allowed(monkeypatch):
    taken = []
    monkeypatch.setattr(slots, "read_slots", lambda *question: taken.append(1) or ops.slot_read(*question))
    monkeypatch.setattr(kernels, "WEIGHTS", 3 * 50 * 8)
    queries, keys, values, *scalars = _question()
    ops.slot_read(queries, keys, values, *scalars, loops=True)
    assert taken == [1]
    monkeypatch.setattr(kernels, "_has_tile", lambda _: True)
    several = _question(H=1, M=40, D=32, B=8)
    ops.slot_read(*several, loops=True)
    assert taken == [1, 1]
    ops.slot_read(*_question(H=1, M=44, D=32, B=8), loops=True)  # which no tile divides
    monkeypatch.setattr(kernels, "_has_tile", lambda _: False)
    ops.slot_read(*several, loops=True)
    ops.slot_read(queries, keys, values, *scalars)
    ops.slot_read(queries, keys[:, :49].contiguous(), values[:, :49].contiguous(), *scalars, loops=True)
    ops.slot_read(queries, layout.turned(keys), layout.turned(values), *scalars, loops=True)
    ops.slot_read(queries.expand(2, -1, -1, -1), keys, values, *scalars, loops=True)
    ops.slot_read(queries.expand(-1, -1, 2, -1), keys, values, *scalars, loops=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.slot_read(queries, keys, values, *scalars, loops=True).dtype == torch.bfloat16
    assert taken == [1, 1]
