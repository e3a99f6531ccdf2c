"""Compiled training: one graph, compiled once for whatever number of tokens, and the eager model's gradients."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens
from torch._dynamo.testing import CompileCounter

from mosaic_cli.core import leaky
from mosaic_cli.core.loss import CHUNK_TOKENS, ChunkedLoss
from mosaic_cli.core.model import next_token_loss


def _gradients(compute, model, T):
    tokens = torch.tensor([tiny_tokens(T + 1), tiny_tokens(T + 1, seed=2)])
    loss = next_token_loss(compute(tokens[:, :-1]), tokens[:, 1:])
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_one_graph_is_compiled_once_for_every_length(kind):
    model = tiny_model(kind, num_layers=1).double().train()
    backend = CompileCounter()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)  # fullgraph: a break is an error
    _gradients(compiled, model, 70)
    compilations = backend.frame_count
    for T in (70, 64, 3, 80):
        for fast, slow in zip(_gradients(compiled, model, T), _gradients(model, model, T), strict=True):
            torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-11)
    assert backend.frame_count == compilations


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_in_chunks_has_its_gradients_when_compiled(dtype):
    """PyTorch 2.11.0 makes them zero where a function of ours writes in place, and the loss is right all the same."""
    N, C, V = 2 * CHUNK_TOKENS[dtype] + 1, 8, 30
    draws = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, C, generator=draws, requires_grad=True) for n in (N, V))
    targets = torch.randint(0, V, (N,), generator=draws).masked_fill_(torch.arange(N) % 7 == 0, -100)
    ways = []
    for loss in (ChunkedLoss.apply, torch.compile(ChunkedLoss.apply, backend="aot_eager", fullgraph=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = loss(hidden * 1, head, targets)
        ways.append((value, *torch.autograd.grad(value, (hidden, head))))
    for eager, compiled in zip(*ways, strict=True):
        assert eager.norm() > 0
        assert (compiled - eager).norm() <= (1e-6 if dtype == torch.float32 else 1e-2) * eager.norm()


@pytest.mark.parametrize("T", [1, 65])
def test_keys_as_one_step_of_the_compiler_are_the_keys(T):
    x, rate = torch.randn(2, T, 3, 5, dtype=torch.float64), torch.tensor([0.0, 0.01, 4.0], dtype=torch.float64)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")  # that of the graph is above
    torch.library.opcheck(leaky._compiled_leaky_keys, (x.requires_grad_(), rate.requires_grad_()), test_utils=checks)
    weights = torch.randn(2, 3, T, 5, dtype=torch.float64)
    one_step, eager = leaky._compiled_leaky_keys(x, rate)[0].transpose(1, 2), leaky.leaky_keys(x, rate)
    torch.testing.assert_close(one_step, eager)
    for a, b in zip(*(torch.autograd.grad((k * weights).sum(), [x, rate]) for k in (one_step, eager)), strict=True):
        torch.testing.assert_close(a, b)
