"""Attention and cross-entropy in bfloat16: against float64, to the precision that bfloat16 has."""

import pytest
import torch
import torch.nn.functional as F

from mosaic_cli.core import ops
from mosaic_cli.core.kernels import bfloat16
from mosaic_cli.core.windows import window_read

B, H, T, D = 2, 3, 150, 16
SEEN = {  # what query t sees of pair s
    "all": lambda t, s: s >= 0,
    "causal": lambda t, s: s <= t,
    "window": lambda t, s: (s <= t) & (s > t - 40),
}
READS = {
    "all": bfloat16.attend,
    "causal": lambda *inputs: bfloat16.attend_window(*inputs, window=T),
    "window": lambda *inputs: bfloat16.attend_window(*inputs, window=40),
}


def _inputs(scale=1.0, T=T):
    return [(scale * torch.randn(B, T, H, D)).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]


def _slow(inputs, seen):
    queries, keys, values = (tensor.double() for tensor in inputs)
    t, s = torch.meshgrid(torch.arange(queries.shape[2]), torch.arange(keys.shape[2]), indexing="ij")
    return (queries @ keys.mT).masked_fill(~SEEN[seen](t, s), -torch.inf).softmax(-1) @ values


def _graded(reads, inputs):
    direction = torch.linspace(-1, 2, reads.numel()).view_as(reads).to(reads.dtype)
    return reads.detach(), *torch.autograd.grad((reads * direction).sum(), inputs)


def _assert_near(ours, exact, tolerance=0.01):
    assert ours.shape == exact.shape and ours.dtype == torch.bfloat16
    assert (ours - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("kept", [2**25, 0], ids=["weights kept", "made again"])
@pytest.mark.parametrize("scores", [2**23, 2 * T * T, 1000], ids=["one block", "some heads", "some queries"])
@pytest.mark.parametrize("seen", SEEN)
def test_reads_and_gradients_are_those_of_attention(seen, scores, kept, monkeypatch):
    monkeypatch.setattr(bfloat16, "SCORES", scores)
    monkeypatch.setattr(bfloat16, "KEPT", kept)
    inputs = _inputs()
    for ours, exact in zip(_graded(READS[seen](*inputs), inputs), _graded(_slow(inputs, seen), inputs), strict=True):
        _assert_near(ours, exact)


def test_weights_made_again_are_the_kept_ones(monkeypatch):
    inputs = _inputs()
    first = _graded(bfloat16.attend(*inputs), inputs)
    monkeypatch.setattr(bfloat16, "KEPT", 0)
    for one, other in zip(first, _graded(bfloat16.attend(*inputs), inputs), strict=True):
        assert torch.equal(one, other)


def test_the_newest_of_many_positions_see_theirs():
    queries, keys, values = _inputs()
    inputs = [queries[:, :, -7:], keys, values]
    _assert_near(bfloat16.attend_window(*inputs, window=40), _slow([queries, keys, values], "window")[:, :, -7:])


def test_large_scores_are_not_rounded():
    inputs = [5 * tensor.detach() for tensor in _inputs()]  # scores of a hundred, which bfloat16 knows to a half
    _assert_near(bfloat16.attend(*inputs), _slow(inputs, "all"))
    rounded = (inputs[0] @ inputs[1].mT).softmax(-1) @ inputs[2]
    assert (rounded - _slow(inputs, "all")).norm() > 0.03 * _slow(inputs, "all").norm()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bad, sign):
    inputs = [tensor.detach() for tensor in _inputs()]
    inputs[0][0, 0, 0, 0] = torch.copysign(torch.tensor(bad), torch.tensor(float(sign)))
    reads = bfloat16.attend(*inputs)
    assert not reads[0, 0, 0].isfinite().any()
    assert reads[0, 0, 1:].isfinite().all() and reads[1].isfinite().all()


@pytest.mark.parametrize("mask", [{}, {"is_causal": True}], ids=["all", "causal"])
def test_it_serves_where_bfloat16_is_trained(mask, monkeypatch):
    inputs = [tensor.detach().float().requires_grad_() for tensor in _inputs()]
    fused = _graded(ops.attend(*inputs, 0.0, scale=0.5, **mask), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reads = ops.attend(*inputs, 0.0, scale=0.5, **mask)
    assert reads.dtype == torch.bfloat16
    for ours, exact in zip(_graded(reads, inputs), fused, strict=True):
        assert (ours - exact).norm() <= 0.01 * exact.norm()
    monkeypatch.setattr(bfloat16, "_attend", None)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ops.attend(*inputs, 0.0, scale=0.5, **mask)  # by torch: nothing is trained


def test_windows_are_read_by_it():
    queries, keys, values = inputs = _inputs()
    beta = torch.tensor([0.5, 1.0, 2.0])
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    exact = _graded(window_read(*wide, beta, 40), wide)
    for ours, theirs in zip(_graded(window_read(queries, keys, values, beta, 40), inputs), exact, strict=True):
        _assert_near(ours, theirs)


@pytest.mark.parametrize("V", [3, 66, 1000])
def test_cross_entropy_becomes_its_gradient(V):
    logits, targets = (4 * torch.randn(37, V)).bfloat16(), torch.randint(0, V, (37,))
    targets[[0, 9]] = -100
    wide = logits.double().requires_grad_()
    exact = F.cross_entropy(wide, targets, reduction="sum")
    by_logits = torch.autograd.grad(exact, wide)[0]
    loss = bfloat16.cross_entropy_(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.double(), by_logits, rtol=2**-8, atol=1e-7)
    assert not logits[[0, 9]].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_told(bad):
    logits = torch.zeros(5, 66, dtype=torch.bfloat16)
    logits[2, 3] = bad
    assert not bfloat16.cross_entropy_(logits, torch.zeros(5, dtype=torch.long)).isfinite()
