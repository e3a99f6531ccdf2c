"""The loss in chunks of tokens: it is the plain one, gradients included, and holds no more than a chunk's logits."""

import pytest
import torch
import torch.nn.functional as F

from mosaic_cli.core import loss
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model, next_token_loss, token_losses, training_loss

V = 19


@pytest.fixture(autouse=True)
def _short_chunks(monkeypatch):
    monkeypatch.setattr(loss, "CHUNKED_FROM", V)
    monkeypatch.setattr(loss, "CHUNK_TOKENS", dict.fromkeys(loss.CHUNK_TOKENS, 4))


def _given(dtype=torch.float64, N=11, V=V):
    hidden, head = torch.randn(N, 6, dtype=dtype), torch.randn(V, 6, dtype=dtype)
    return hidden.requires_grad_(), head.requires_grad_(), torch.randint(0, V, (N,))


def _chunked(hidden, head, targets):
    return loss.ChunkedLoss.apply(hidden, head, targets)


def _plain(hidden, head, targets):
    return next_token_loss(F.linear(hidden, head)[None], targets[None], "sum")


def _graded(function, hidden, head, targets, scale=3.0):
    value = function(hidden, head, targets)
    return value, *torch.autograd.grad(value * scale, (hidden, head))


@pytest.mark.parametrize("ignored", [[], [0], [2, 7, 8]])
@pytest.mark.parametrize("N", [1, 4, 5, 11, 12])
def test_value_and_gradients_are_the_plain_ones(N, ignored):
    given = _given(N=N)
    given[2][[i for i in ignored if i < N]] = -100
    for ours, theirs in zip(_graded(_chunked, *given), _graded(_plain, *given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("N", [5, 11])  # the last chunk has one row, and three
def test_products_by_onednn_are_the_same(N, monkeypatch):
    hidden, head, targets = _given(torch.float32, N)
    plain = _graded(_chunked, hidden, head, targets)
    asked = []
    monkeypatch.setattr(loss, "onednn_serves", lambda *given: asked.append(given) or True)
    monkeypatch.setattr(F, "linear", None)
    for ours, theirs in zip(_graded(_chunked, hidden, head, targets), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ((rows, dtype, weight),) = asked
    assert (rows, dtype, weight.shape) == (4, torch.float32, (V, 6))


def test_huge_logits_stay_finite():
    hidden, head, targets = _given(torch.float32)
    with torch.no_grad():
        head *= 1e4
    for ours, theirs in zip(
        _graded(_chunked, hidden, head, targets), _graded(_plain, hidden, head, targets), strict=True
    ):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_mixed_precision_is_no_further_from_the_truth_than_the_plain_loss():
    hidden, head, targets = _given(torch.float32, N=64)
    truth = _graded(_plain, hidden.double().detach().requires_grad_(), head.double().detach().requires_grad_(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = _graded(_chunked, hidden, head, targets), _graded(_plain, hidden, head, targets)
    for a, b, exact in zip(ours, theirs, truth, strict=True):
        assert a.dtype == torch.float32
        assert (a - exact).norm() <= 1.2 * (b - exact).norm() + 1e-3 * exact.norm()


def test_no_tensor_of_all_logits_is_made():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            made = [
                tensor.numel() for tensor in torch.utils._pytree.tree_leaves(out) if isinstance(tensor, torch.Tensor)
            ]
            self.numel = max([self.numel, *made])
            return out

    given = _given(N=64)
    for function, largest in ((_plain, 64 * V), (_chunked, 64 * 6)):
        with Largest() as seen:
            _graded(function, *given)
        assert seen.numel == largest


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
@pytest.mark.parametrize("chunked_from", [V, V + 1])
def test_a_model_s_losses_are_those_of_its_logits(kind, chunked_from, monkeypatch):
    monkeypatch.setattr(loss, "CHUNKED_FROM", chunked_from)
    model = build_model(
        ModelConfig(kind=kind, num_layers=1, num_heads=2, d_model=8, num_slots=4, context_length=9, vocab_size=V)
    ).double()
    windows = torch.randint(0, V, (2, 10))
    tokens, targets = windows[:, :-1], windows[:, 1:].clone()
    targets[0, 3] = -100
    plain = next_token_loss(model(tokens), targets, "sum")
    ours = training_loss(model, tokens, targets)
    assert (ours.grad_fn.name() == "ChunkedLossBackward") == (chunked_from == V)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
    each = token_losses(model, tokens, targets)
    torch.testing.assert_close(each, next_token_loss(model(tokens), targets, "none"), rtol=1e-12, atol=0)


def test_chunks_are_cut_only_where_they_pay():
    cpu = torch.device("cpu")
    assert loss.chunks_pay(5, V, cpu) and not loss.chunks_pay(4, V, cpu) and not loss.chunks_pay(5, V - 1, cpu)


def test_it_compiles_without_a_break():
    hidden, head, targets = _given()
    compiled = torch.compile(_chunked, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(
        _graded(compiled, hidden, head, targets), _graded(_plain, hidden, head, targets), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
