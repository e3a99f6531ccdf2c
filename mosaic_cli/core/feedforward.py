"""Feed-forward layers: the baseline's MLP, which also stands in for a mosaic's slots."""

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.project = nn.Linear(width, hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.dropout(self.output(F.gelu(self.project(x))))
