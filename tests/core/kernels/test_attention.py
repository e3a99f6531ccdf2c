"""Attention by loops on a CPU: against float64, to the precision of what it computes in."""

import pytest
import torch

from mosaic_cli.core import kernels, ops
from mosaic_cli.core.kernels import attention
from mosaic_cli.core.windows import window_read

PRECISION = {torch.bfloat16: 0.01, torch.float32: 3e-6}
both = pytest.mark.parametrize("dtype", PRECISION)
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


def _inputs(dtype=torch.bfloat16):
    return [torch.randn(B, T, H, D).to(dtype).transpose(1, 2).requires_grad_() for _ in range(3)]


def _slow(inputs, seen):
    queries, keys, values = (tensor.double() for tensor in inputs)
    t, s = torch.meshgrid(torch.arange(queries.shape[2]), torch.arange(keys.shape[2]), indexing="ij")
    return (queries @ keys.mT).masked_fill(~SEEN[seen](t, s), -torch.inf).softmax(-1) @ values


def _graded(reads, inputs):
    direction = torch.linspace(-1, 2, reads.numel()).view_as(reads).to(reads.dtype)
    return reads.detach(), *torch.autograd.grad((reads * direction).sum(), inputs)


def _assert_near(ours, exact, dtype=None):
    assert ours.shape == exact.shape
    assert (ours - exact).norm() <= PRECISION[dtype or ours.dtype] * exact.norm()


@both
@pytest.mark.parametrize("parts", [1, 16])
@pytest.mark.parametrize("seen", SEEN)
def test_reads_and_gradients_are_those_of_attention(seen, parts, dtype, monkeypatch):
    monkeypatch.setattr(attention, "PARTS", parts)
    inputs = _inputs(dtype)
    for ours, exact in zip(_graded(READS[seen](*inputs), inputs), _graded(_slow(inputs, seen), inputs), strict=True):
        _assert_near(ours, exact)


@both
@pytest.mark.parametrize(("queries", "pairs", "width"), [(1, 1, 2), (5, 40, 33), (64, 64, 64), (70, 65, 40)])
def test_of_any_size(queries, pairs, width, dtype):
    inputs = [torch.randn(1, 2, size, width).to(dtype).requires_grad_() for size in (queries, pairs, pairs)]
    ours = _graded(attention.attend(*inputs, 1.0), inputs)
    for given, exact in zip(ours, _graded(_slow(inputs, "all"), inputs), strict=True):
        _assert_near(given, exact)


@both
def test_a_single_pair_is_the_read(dtype):
    inputs = [torch.randn(1, 2, 1, 2).to(dtype).requires_grad_() for _ in range(3)]
    reads, *gradients = _graded(attention.attend(*inputs, 1.0), inputs)
    assert torch.equal(reads, inputs[2]) and not gradients[0].any() and not gradients[1].any()


@both
def test_scales_and_their_gradients(dtype):
    queries, keys, values = inputs = _inputs(dtype)
    scales = torch.linspace(0.2, 2, H * T).view(H, T).requires_grad_()
    exact = _graded(_slow([queries * scales[..., None], keys, values], "causal"), [*inputs, scales])
    reads = attention.attend_window(*inputs, scales, window=T)
    for given, wanted in zip(_graded(reads, [*inputs, scales]), exact, strict=True):
        _assert_near(given, wanted, dtype)


@both
def test_gradients_do_not_depend_on_the_number_of_threads(dtype):
    inputs, before = _inputs(dtype), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(_graded(attention.attend_window(*inputs, 1.0, window=T), inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@both
def test_the_newest_of_many_positions_see_theirs(dtype):
    queries, keys, values = _inputs(dtype)
    inputs = [queries[:, :, -7:], keys, values]
    _assert_near(attention.attend_window(*inputs, 1.0, window=40), _slow([queries, keys, values], "window")[:, :, -7:])


def test_large_scores_are_not_rounded():
    inputs = [5 * tensor.detach() for tensor in _inputs()]  # scores of a hundred, which bfloat16 knows to a half
    _assert_near(attention.attend(*inputs, 1.0), _slow(inputs, "all"))
    rounded = (inputs[0] @ inputs[1].mT).softmax(-1) @ inputs[2]
    assert (rounded - _slow(inputs, "all")).norm() > 0.03 * _slow(inputs, "all").norm()


@both
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(bad, sign, dtype):
    inputs = [tensor.detach() for tensor in _inputs(dtype)]
    inputs[0][0, 0, 0, 0] = torch.copysign(torch.tensor(bad), torch.tensor(float(sign)))
    reads = attention.attend(*inputs, 1.0)
    assert not reads[0, 0, 0].isfinite().any()
    assert reads[0, 0, 1:].isfinite().all() and reads[1].isfinite().all()


@pytest.mark.parametrize("mask", [{}, {"is_causal": True}], ids=["all", "causal"])
def test_it_serves_where_a_cpu_trains_in_bfloat16(mask, monkeypatch):
    monkeypatch.setattr(kernels, "_has_tile", lambda dtype: dtype == torch.bfloat16)
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
        monkeypatch.setattr(kernels, "_has_tile", lambda _: False)
        assert "_Attention" not in str(ops.attend(*inputs, 0.0, **mask).grad_fn)


def test_it_serves_past_reads_of_some_size_where_a_cpu_trains_in_float32(monkeypatch):
    monkeypatch.setattr(kernels, "_has_tile", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(kernels, "_is_wider_than_torch", lambda: False)
    inputs = _inputs(torch.float32)

    def looped(length=T, **mask):
        reads = ops.attend(*(tensor[:, :, :length] for tensor in inputs), 0.0, scale=0.5, **mask)
        return "_Attention" in str(reads.grad_fn)

    assert looped(is_causal=True) and not looped(), "slots are read by torch"
    assert not looped(length=kernels.LEAST_PAST, is_causal=True)
    beta = torch.ones(H)
    assert "_Attention" in str(window_read(*inputs, beta, 40).grad_fn), "windows of any size"
    monkeypatch.setattr(kernels, "MOST_PAST", 39)
    assert not looped(is_causal=True) and "_Attention" not in str(window_read(*inputs, beta, 40).grad_fn)
    monkeypatch.setattr(kernels, "_is_wider_than_torch", lambda: True)
    assert looped() and looped(is_causal=True) and looped(length=kernels.LEAST_PAST, is_causal=True)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(attention, "_attend", None)
        ops.attend(*inputs, 0.0, is_causal=True)  # what is not trained is what it was, to the last bit


def test_windows_are_read_by_it(monkeypatch):
    monkeypatch.setattr(kernels, "_has_tile", lambda dtype: dtype == torch.bfloat16)
    queries, keys, values = inputs = _inputs()
    beta = torch.tensor([0.5, 1.0, 2.0])
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    exact = _graded(window_read(*wide, beta, 40), wide)
    for ours, theirs in zip(_graded(window_read(queries, keys, values, beta, 40), inputs), exact, strict=True):
        _assert_near(ours, theirs)


def test_a_scale_of_nothing_has_a_gradient():
    """exp(20 theta) of a very negative theta is 0: all weights are the same, and training goes on."""
    queries, keys, values = (torch.randn(1, 2, 140, 8, requires_grad=True) for _ in range(3))
    scale = torch.zeros(2, 1, requires_grad=True)
    attention.attend_window(queries, keys, values, scale, 140).sum().backward()
    assert scale.grad.eq(0).all() and queries.grad.eq(0).all() and values.grad.isfinite().all()
