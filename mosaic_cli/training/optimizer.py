"""AdamW with the paper's two groups of parameters."""

import torch
from torch import nn

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
