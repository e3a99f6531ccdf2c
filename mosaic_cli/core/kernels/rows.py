"""What the kernels for a GPU share: numbers of a head, which lie side by side in memory, as rows of a tile."""

import triton
import triton.language as tl
from torch import Tensor


def in_rows(x: Tensor) -> Tensor:
    """The same numbers (..., D) with those of a row side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def tile_width(D: int) -> int:
    """Columns of a tile that holds rows of D numbers: a power of two, at least what the matrix units take."""
    return max(16, triton.next_power_of_2(D))


@triton.jit
def row(tile, index, TILE: tl.constexpr):
    """Row `index` of a tile (TILE, WIDTH)."""
    return tl.sum(tl.where((tl.arange(0, TILE) == index)[:, None], tile, 0.0), axis=0)
