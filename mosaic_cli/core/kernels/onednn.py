"""Products of float32 by oneDNN on a CPU, for processors that torch's own library for them does not know.

PyTorch holds oneDNN, but calls it for narrower numbers only. This is the operation that its compiler calls.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Linear(torch.autograd.Function):
    """`apply(x (..., width), weight (outputs, width)) -> (..., outputs)`: W x, with its gradients, in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        by_x, by_weight = ctx.needs_input_grad
        rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, len(weight))
        return (
            product(gradient, weight.t()) if by_x else None,
            outer_products(gradients, rows) if by_weight else None,
        )


def product(x: Tensor, weight: Tensor) -> Tensor:
    """W x (..., outputs) for x (..., width) and W (outputs, width)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def outer_products(left: Tensor, right: Tensor) -> Tensor:
    """Summed outer products (L, R) of rows left (N, L) with rows right (N, R), as gradients by weights are.

    oneDNN wants the left ones turned in memory, which costs less for the narrower ones.
    """
    if left.shape[1] <= right.shape[1]:
        return product(left.t(), right.t())
    return product(right.t(), left.t()).t()
