"""Triton's kernels under its interpreter, against loops: leaves in float64, and what must agree."""

from importlib.util import find_spec

import torch

MISSING = None
"""Why kernels cannot be interpreted here, if they cannot."""
if find_spec("triton") is None:
    MISSING = "Triton is not installed"
elif torch.__version__ < (2, 13):
    MISSING = "PyTorch launches interpreted kernels from 2.13 on"


def leaf(*shape, scale=1.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def single(leaves):
    return [None if leaf is None else leaf.detach().float().requires_grad_() for leaf in leaves]


def double(leaves):
    return [leaf.detach().double().requires_grad_() for leaf in leaves]


def unit(averages):
    return averages / averages.norm(dim=-1, keepdim=True)


def gradients(output, inputs):
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * weights.to(output.dtype)).sum(), inputs)


def assert_same(fast, fast_inputs, slow, slow_inputs, tolerance=1e-5):
    """The same values, and the same gradients by every input."""
    torch.testing.assert_close(fast.float(), slow.float(), rtol=tolerance, atol=tolerance)
    for a, b in zip(gradients(fast, fast_inputs), gradients(slow, slow_inputs), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().clamp(min=0.1).item())


def poison_memory(monkeypatch):
    """Memory that a kernel should have written and did not shows as NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(torch.nan))
