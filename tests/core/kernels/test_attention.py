"""Attention for training in bfloat16 on a CPU: against float64, to the precision that bfloat16 has."""

import pytest
import torch

from mosaic_cli.core import kernels, ops
from mosaic_cli.core.kernels import attention, tile
from mosaic_cli.core.windows import window_read

pytestmark = pytest.mark.skipif(not tile.available(), reason="this processor lacks vdpbf16ps")

B, H, T, D = 2, 3, 150, 16
SEEN = {  # what query t sees of pair s
    "all": lambda t, s: s >= 0,
    "causal": lambda t, s: s <= t,
    "window": lambda t, s: (s <= t) & (s > t - 40),
}
READS = {
    "all": lambda *inputs: attention.attend(*inputs, 1.0),
    "causal": lambda *inputs: attention.attend_window(*inputs, 1.0, window=T),
    "window": lambda *inputs: attention.attend_window(*inputs, 1.0, window=40),
}


def _inputs():
    return [torch.randn(B, T, H, D).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]


def _slow(inputs, seen):
    queries, keys, values = (tensor.double() for tensor in inputs)
    t, s = torch.meshgrid(torch.arange(queries.shape[2]), torch.arange(keys.shape[2]), indexing="ij")
    return (queries @ keys.mT).masked_fill(~SEEN[seen](t, s), -torch.inf).softmax(-1) @ values


def _graded(reads, inputs):
    direction = torch.linspace(-1, 2, reads.numel()).view_as(reads).to(reads.dtype)
    return reads.detach(), *torch.autograd.grad((reads * direction).sum(), inputs)


def _assert_near(ours, exact):
    assert ours.shape == exact.shape
    assert (ours - exact).norm() <= 0.01 * exact.norm()


@pytest.mark.parametrize("parts", [1, 16])
@pytest.mark.parametrize("seen", SEEN)
def test_reads_and_gradients_are_those_of_attention(seen, parts, monkeypatch):
    monkeypatch.setattr(attention, "PARTS", parts)
    inputs = _inputs()
    for ours, exact in zip(_graded(READS[seen](*inputs), inputs), _graded(_slow(inputs, seen), inputs), strict=True):
        _assert_near(ours, exact)


@pytest.mark.parametrize(("queries", "pairs", "width"), [(1, 1, 2), (5, 40, 33), (64, 64, 64), (70, 65, 40)])
def test_of_any_size(queries, pairs, width):
    inputs = [torch.randn(1, 2, size, width).bfloat16().requires_grad_() for size in (queries, pairs, pairs)]
    ours = _graded(attention.attend(*inputs, 1.0), inputs)
    for given, exact in zip(ours, _graded(_slow(inputs, "all"), inputs), strict=True):
        _assert_near(given, exact)


def test_scales_and_their_gradients():
    queries, keys, values = inputs = _inputs()
    scales = torch.linspace(0.2, 2, H * T).view(H, T).requires_grad_()
    exact = _graded(_slow([queries * scales[..., None], keys, values], "causal"), [*inputs, scales])
    reads = attention.attend_window(*inputs, scales, window=T)
    for given, wanted in zip(_graded(reads, [*inputs, scales]), exact, strict=True):
        _assert_near(given, wanted)


def test_gradients_do_not_depend_on_the_number_of_threads():
    inputs, before = _inputs(), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(_graded(attention.attend_window(*inputs, 1.0, window=T), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_the_newest_of_many_positions_see_theirs():
    queries, keys, values = _inputs()
    inputs = [queries[:, :, -7:], keys, values]
    _assert_near(attention.attend_window(*inputs, 1.0, window=40), _slow([queries, keys, values], "window")[:, :, -7:])


def test_large_scores_are_not_rounded():
    inputs = [5 * tensor.detach() for tensor in _inputs()]  # scores of a hundred, which bfloat16 knows to a half
    _assert_near(attention.attend(*inputs, 1.0), _slow(inputs, "all"))
    rounded = (inputs[0] @ inputs[1].mT).softmax(-1) @ inputs[2]
    assert (rounded - _slow(inputs, "all")).norm() > 0.03 * _slow(inputs, "all").norm()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bad, sign):
    inputs = [tensor.detach() for tensor in _inputs()]
    inputs[0][0, 0, 0, 0] = torch.copysign(torch.tensor(bad), torch.tensor(float(sign)))
    reads = attention.attend(*inputs, 1.0)
    assert not reads[0, 0, 0].isfinite().any()
    assert reads[0, 0, 1:].isfinite().all() and reads[1].isfinite().all()


@pytest.mark.parametrize("mask", [{}, {"is_causal": True}], ids=["all", "causal"])
def test_it_serves_where_a_cpu_trains_in_bfloat16(mask, monkeypatch):
    inputs = [tensor.detach().float().requires_grad_() for tensor in _inputs()]
    in_float32 = ops.attend(*inputs, 0.0, scale=0.5, **mask)
    assert "_Attention" not in str(in_float32.grad_fn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reads = ops.attend(*inputs, 0.0, scale=0.5, **mask)
        assert reads.dtype == torch.bfloat16 and "_Attention" in str(reads.grad_fn)
        for ours, exact in zip(_graded(reads, inputs), _graded(in_float32, inputs), strict=True):
            assert (ours - exact).norm() <= 0.01 * exact.norm()
        with torch.no_grad(), monkeypatch.context() as patch:
            patch.setattr(attention, "_attend", None)
            ops.attend(*inputs, 0.0, **mask)  # by torch: nothing is trained, and little is read
        monkeypatch.setattr(kernels, "_has_tile", lambda: False)
        assert "_Attention" not in str(ops.attend(*inputs, 0.0, **mask).grad_fn)


def test_windows_are_read_by_it():
    queries, keys, values = inputs = _inputs()
    beta = torch.tensor([0.5, 1.0, 2.0])
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    exact = _graded(window_read(*wide, beta, 40), wide)
    for ours, theirs in zip(_graded(window_read(queries, keys, values, beta, 40), inputs), exact, strict=True):
        _assert_near(ours, theirs)
