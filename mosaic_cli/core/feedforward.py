"""Feed-forward layers: the baseline's MLP, and the SwiGLU that is persistent memory in v2."""

import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_cli.core.linear import Linear, Output


class _Stateless(nn.Module):
    def make_cache(self) -> None:
        """Nothing is carried from token to token."""


class MLP(_Stateless):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.project = Linear(width, hidden)
        self.output = Output(hidden, width, dropout)

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.output(F.gelu(self.project(x)))


class SwiGLU(_Stateless):
    """W_2 (SiLU(W_1 x) * W_3 x): hidden units that a second projection gates (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.project = Linear(width, hidden)  # W_1
        self.gated = Linear(width, hidden)  # W_3
        self.output = Output(hidden, width, dropout)  # W_2

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.output(F.silu(self.project(x)) * self.gated(x))
