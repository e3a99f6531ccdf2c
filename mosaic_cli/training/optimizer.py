"""AdamW with the paper's two groups of parameters, and the update that refuses what is not finite."""

import math

import torch
from torch import Tensor, nn

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
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: TrainSection,
    learning_rate: float,
    loss: Tensor | None = None,
) -> tuple[float, float]:
    """Clip the gradients, take one optimizer step and clear them; returns the loss (), if given, and the norm of the
    gradients before clipping, which are fetched from the device together: a GPU is waited for once.

    Raises:
        NonFiniteError: the loss or the norm is not finite; the weights are left as they were.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    total = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    figures = torch.stack([torch.zeros_like(total) if loss is None else loss.to(total), total])
    if total.is_cuda:
        _step_on_device(optimizer, figures, train.grad_clip)
    loss, norm = figures.tolist()
    check_finite("loss {:g}, gradient norm {:g}", loss, norm)
    if not total.is_cuda:
        if train.grad_clip and norm > train.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, train.grad_clip, total)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def _step_on_device(optimizer: torch.optim.Optimizer, figures: Tensor, grad_clip: float) -> None:
    """Clip and take a step, or none where loss and norm, the figures (2,), are not finite, without waiting for the
    device to say so: it has that work before the host knows the figures. By the two attributes with which torch's
    `GradScaler` has a fused optimizer divide gradients and skip a step."""
    optimizer.grad_scale = ((figures[1] + 1e-6) / grad_clip).clamp(min=1) if grad_clip else None
    optimizer.found_inf = (~figures.isfinite()).any().float()
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


def check_finite(message: str, *figures: float) -> None:
    """Raises NonFiniteError, with the figures put into the message, unless all of them are finite."""
    if not all(map(math.isfinite, figures)):
        raise NonFiniteError(
            message.format(*figures),
            where="training",
            hint="Checkpoints saved before are intact. Begin another run with a lower train.learning_rate, or with "
            "train.dtype=float32: mosaic train RECIPE --run OTHER --set train.learning_rate=VALUE",
        )
