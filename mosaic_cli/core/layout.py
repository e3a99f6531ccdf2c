"""How matrices lie in a CPU's memory where a single token meets all of them, as in decoding.

Such a product does nothing but read the matrix, so it should read in long runs. Slots (M, D) and pairs (S, D) of a head
lie as rows of D numbers, which training and fused attention want. `turned`, the same matrix lies in D runs of M or S
numbers, and plain products with one row read it at 1.5 to 1.9 times the speed (docs/log.md).
"""

import torch
from torch import Tensor

MANY = 4096  # pairs for which there is room, from which on they lie turned; fewer are read in fewer steps as they come


def turned(x: Tensor) -> Tensor:
    """The same numbers (..., rows, columns), column by column in memory."""
    return x.mT.contiguous().mT


def is_turned(x: Tensor) -> bool:
    """Whether x (..., rows, columns) lies column by column; there may be room for more rows."""
    return x.stride(-2) == 1 and x.stride(-1) >= x.shape[-2] > 1


def room_for_pairs(like: Tensor, capacity: int) -> Tensor:
    """Uninitialised (B, H, capacity, D) for more keys or values like (B, H, ., D): turned where that pays, which is for
    many pairs of one text, on a CPU, and not for halves, whose plain products are slow there."""
    B, H, _, D = like.shape
    if B == 1 and capacity >= MANY and like.device.type == "cpu" and like.dtype.itemsize >= 4:
        return torch.empty(B, H, D, capacity, dtype=like.dtype).mT
    return torch.empty(B, H, capacity, D, dtype=like.dtype, device=like.device)
