"""AdamW with the paper's two groups of parameters, and the update that refuses what is not finite."""

import math

import torch
from torch import nn

from mosaic_cli.errors import NonFiniteError
from mosaic_cli.recipe import TrainSection


def make_optimizer(model: nn.Module, train: TrainSection) -> torch.optim.AdamW:
    """AdamW, fused; weight decay on every parameter of two or more dimensions (slots and embedding included) and on
    nothing else (as the authors do: per-head scalars and LayerNorm weights do not decay)."""
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
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    total = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    norm = total.item()
    check_finite("loss {:g}, gradient norm {:g}", loss, norm)
    if train.grad_clip and norm > train.grad_clip:
        nn.utils.clip_grads_with_norm_(parameters, train.grad_clip, total)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def check_finite(message: str, *figures: float) -> None:
    """Raises NonFiniteError, with the figures put into the message, unless all of them are finite."""
    if not all(map(math.isfinite, figures)):
        raise NonFiniteError(
            message.format(*figures),
            where="training",
            hint="Checkpoints saved before are intact. Begin another run with a lower train.learning_rate, or with "
            "train.dtype=float32: mosaic train RECIPE --run OTHER --set train.learning_rate=VALUE",
        )
