"""Extractors: from the residual stream to the keys and values that memories store (v1, key and value extractors)."""

import torch
from torch import Tensor, nn

from mosaic_cli.core import ops
from mosaic_cli.core.config import ModelConfig


class KeyExtractor(nn.Module):
    """k_T = normalised leaky average of W_phi x. Keys asked with and keys stored are the same thing."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.project = nn.Linear(config.d_model, config.d_model, bias=False)  # W_phi
        self.leak = nn.Parameter(torch.empty(config.num_heads))  # rho = |10 leak|

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Keys (B, H, T, D) of unit length, and the running average (B, H, D) to go on with; x is (B, T, C)."""
        projected = self.project(x).unflatten(-1, (len(self.leak), -1))  # (B, T, H, D)
        averages = ops.leaky_average(projected, ops.leak_rate(self.leak), state)
        return ops.normalise(averages), averages[:, :, -1]


class ValueExtractor(nn.Module):
    """v_t peeks one step ahead: it mixes W_psi x_t and W_psi x_{t+1}. So T tokens make T - 1 values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.project = nn.Linear(config.d_model, config.d_model, bias=False)  # W_psi
        self.peek = nn.Parameter(torch.empty(config.num_heads))  # gamma
        self.scale = nn.Parameter(torch.empty(config.num_heads))  # alpha = exp(10 scale)

    def forward(self, x: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Values and the newest token's content, which waits for its successor.

        Args:
            x: (B, T, C).
            previous: content (B, H, 1, D) of the token before, whose value can now be completed.

        Returns:
            values (B, H, T, D) with `previous`, else (B, H, T - 1, D), in the dtype of the projection; and the
            content (B, H, 1, D) of the last token.
        """
        content = self.project(x).unflatten(-1, (len(self.peek), -1)).transpose(1, 2)  # (B, H, T, D)
        newest = content[:, :, -1:]
        if previous is not None:
            content = torch.cat([previous, content], dim=2)
        values = ops.peeked_values(content, self.peek, ops.value_scale(self.scale))
        return values.to(content.dtype), newest
