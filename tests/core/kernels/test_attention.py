"""Attention for training in bfloat16 on a CPU: against float64, to the precision that bfloat16 has."""

import pytest
import torch

from mosaic_cli.core import ops
from mosaic_cli.core.kernels import attention
from mosaic_cli.core.windows import window_read

B, H, T, D = 2, 3, 150, 16
SEEN = {  # what query t sees of pair s
    "all": lambda t, s: s >= 0,
    "causal": lambda t, s: s <= t,
    "window": lambda t, s: (s <= t) & (s > t - 40),
}
READS = {
    "all": attention.attend,
    "causal": lambda *inputs: attention.attend_window(*inputs, window=T),
    "window": lambda *inputs: attention.attend_window(*inputs, window=40),
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


@pytest.mark.parametrize("scores", [2**23, 2 * T * T, 1000], ids=["one block", "some heads", "some queries"])
@pytest.mark.parametrize("seen", SEEN)
def test_reads_and_gradients_are_those_of_attention(seen, scores, monkeypatch):
    monkeypatch.setattr(attention, "SCORES", scores)
    inputs = _inputs()
    for ours, exact in zip(_graded(READS[seen](*inputs), inputs), _graded(_slow(inputs, seen), inputs), strict=True):
        _assert_near(ours, exact)


def test_the_newest_of_many_positions_see_theirs():
    queries, keys, values = _inputs()
    inputs = [queries[:, :, -7:], keys, values]
    _assert_near(attention.attend_window(*inputs, window=40), _slow([queries, keys, values], "window")[:, :, -7:])


def test_large_scores_are_not_rounded():
    inputs = [5 * tensor.detach() for tensor in _inputs()]  # scores of a hundred, which bfloat16 knows to a half
    _assert_near(attention.attend(*inputs), _slow(inputs, "all"))
    rounded = (inputs[0] @ inputs[1].mT).softmax(-1) @ inputs[2]
    assert (rounded - _slow(inputs, "all")).norm() > 0.03 * _slow(inputs, "all").norm()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bad, sign):
    inputs = [tensor.detach() for tensor in _inputs()]
    inputs[0][0, 0, 0, 0] = torch.copysign(torch.tensor(bad), torch.tensor(float(sign)))
    reads = attention.attend(*inputs)
    assert not reads[0, 0, 0].isfinite().any()
    assert reads[0, 0, 1:].isfinite().all() and reads[1].isfinite().all()


@pytest.mark.parametrize("mask", [{}, {"is_causal": True}], ids=["all", "causal"])
def test_it_serves_where_a_cpu_trains_in_bfloat16(mask, monkeypatch):
    inputs = [tensor.detach().float().requires_grad_() for tensor in _inputs()]
    in_float32 = ops.attend(*inputs, 0.0, scale=0.5, **mask)
    assert "_Attention" not in str(in_float32.grad_fn.next_functions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reads = ops.attend(*inputs, 0.0, scale=0.5, **mask)
        assert reads.dtype == torch.bfloat16 and "_Attention" in str(reads.grad_fn.next_functions)
        for ours, exact in zip(_graded(reads, inputs), _graded(in_float32, inputs), strict=True):
            assert (ours - exact).norm() <= 0.01 * exact.norm()
        monkeypatch.setattr(attention, "KEPT", 0)
        assert "_Attention" not in str(ops.attend(*inputs, 0.0, **mask).grad_fn.next_functions)  # too many weights
        monkeypatch.setattr(attention, "_attend", None)
        with torch.no_grad():
            ops.attend(*inputs, 0.0, **mask)  # by torch: nothing is trained


def test_windows_are_read_by_it():
    queries, keys, values = inputs = _inputs()
    beta = torch.tensor([0.5, 1.0, 2.0])
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    exact = _graded(window_read(*wide, beta, 40), wide)
    for ours, theirs in zip(_graded(window_read(queries, keys, values, beta, 40), inputs), exact, strict=True):
        _assert_near(ours, theirs)
