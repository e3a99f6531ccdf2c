"""AdamW with the paper's two groups of parameters, and the update that refuses what is not finite."""

import math

import torch
from torch import nn

from mosaic_cli.errors import NonFiniteError
from mosaic_cli.recipe import TrainSection


def make_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.AdamW:
    """AdamW, fused; weight decay on every parameter of two or more dimensions (slots and embedding included) and on
    nothing else (MATH of v1: per-head scalars and LayerNorm weights do not decay)."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=train.betas, fused=True)


def update(
    model: nn.Module, optimizer: torch.optim.Optimizer, train: TrainSection, learning_rate: float, loss: float = 0.0
) -> float:
    """Clip the gradients, take one optimizer step and clear them; returns their norm before clipping.

    Raises:
        NonFiniteError: the loss or the norm is not finite; the weights are left as they were.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip or math.inf).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise NonFiniteError(
            f"loss {loss:g}, gradient norm {norm:g}", where="training",
            hint="The last checkpoint is intact. Lower train.learning_rate, or try train.dtype=float32.",
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
