"""How slots lie in a CPU's memory where a single token meets all of them, as in decoding.

Such a product does nothing but read the matrix, so it should read in long runs. Slots (M, D) of a head lie as rows of D
numbers, which training and fused attention want. `turned`, the same matrix lies in D runs of M numbers, and plain
products with one row read it at 1.5 to 1.9 times the speed (docs/log.md).
"""

from torch import Tensor


def turned(x: Tensor) -> Tensor:
    """The same numbers (..., rows, columns), column by column in memory."""
    return x.mT.contiguous().mT


def is_turned(x: Tensor) -> bool:
    """Whether x (..., rows, columns) lies column by column."""
    return x.stride(-2) == 1 and x.stride(-1) >= x.shape[-2] > 1
