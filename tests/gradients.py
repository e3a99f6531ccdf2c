"""Two ways to compute the same, compared in float64: values and every gradient."""

import torch


def leaf(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Random numbers that get a gradient."""
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def assert_same(fast: torch.Tensor, slow: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Both depend on all of the inputs."""
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    direction = torch.linspace(-1, 2, slow.numel(), dtype=torch.float64).view_as(slow)
    gradients = (torch.autograd.grad((y * direction).sum(), inputs) for y in (fast, slow))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
