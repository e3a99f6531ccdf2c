"""AdamW with the paper's two groups of parameters, and the update that refuses what is not finite."""

import math

import torch
from torch import Tensor, nn

from mosaic_cli.errors import MosaicError, NonFiniteError
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


class Figures:
    """Loss and gradient norm (2,) of a step, which a GPU may still be computing: the host need not wait to go on."""

    def __init__(self, figures: Tensor):
        self._figures, self._there = figures.to("cpu", non_blocking=figures.is_cuda), None
        if figures.is_cuda:
            self._there = torch.cuda.Event()
            self._there.record()

    def wait(self) -> tuple[float, float]:
        """The loss, and the norm before clipping.

        Raises:
            NonFiniteError: one of them is not finite; the weights are as they were before that step.
            MosaicError: the norm is zero.
        """
        if self._there is not None:
            self._there.synchronize()
        loss, norm = self._figures.tolist()
        check_finite("loss {:g}, gradient norm {:g}", loss, norm)
        if norm == 0:  # as PyTorch 2.11.0 once compiled a loss of ours, which was right otherwise
            raise MosaicError(
                "all gradients are zero, so nothing is learned",
                where="training",
                hint="Try without train.compile, or with another release of PyTorch.",
            )
        return loss, norm


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: TrainSection,
    learning_rate: float,
    loss: Tensor | None = None,
) -> Figures:
    """Clip the gradients, take one optimizer step and clear them; returns the loss (), 0 if there is none, and the norm
    of the gradients before clipping. Where either is not finite, no step is taken, and the figures will say so."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    total = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    figures = torch.stack([torch.zeros_like(total) if loss is None else loss.to(total), total])
    if total.is_cuda:
        _step_on_device(optimizer, figures, train.grad_clip)
    elif figures.isfinite().all():
        if train.grad_clip and total > train.grad_clip:
            nn.utils.clip_grads_with_norm_(parameters, train.grad_clip, total)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Figures(figures)


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
