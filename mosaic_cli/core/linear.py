"""Linear maps without a bias, fast for the few rows of decoding as well."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_cli.core import kernels

WORTH_PARTS = 2**19  # weights from which on parts pay, being more than a core's own cache holds
FEW_ROWS = 64  # up to which the transposed product is the faster one on a CPU


class Linear(nn.Linear):
    """y = W x without a bias. For `loops` see `linear`."""

    loops = False

    def __init__(self, width: int, outputs: int):
        super().__init__(width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., outputs)."""
        return linear(x, self.weight, self.loops)


class Output(Linear):
    """W_o, with dropout behind it while training: what is written into the residual stream."""

    def __init__(self, width: int, outputs: int, dropout: float):
        super().__init__(width, outputs)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., outputs)."""
        y = linear(x, self.weight, self.loops)
        return F.dropout(y, self.dropout) if self.training and self.dropout else y


def linear(x: Tensor, weight: Tensor, loops: bool = False) -> Tensor:
    """W x (..., outputs) for x (..., width) and W (outputs, width).

    On a CPU a product with one row, as in decoding, is bound by the reading of W, and torch does it on one thread. So
    that all read, it is made as a batch of as many products as there are threads, each with its share of the outputs.
    With a few rows W x^T is faster than x W^T. Compiled loops are faster still, and with many rows oneDNN where torch
    has a library that does not know the processor: see docs/log.md.

    Args:
        loops: whether the compiled loops may serve: to load them takes longer than a short text.
    """
    if torch.compiler.is_compiling():
        return F.linear(x, weight)
    rows = x.numel() // x.shape[-1]
    recorded = torch.is_grad_enabled()
    if (recorded or rows > FEW_ROWS) and kernels.onednn_serves(rows, kernels.product_dtype(x), weight):
        from mosaic_cli.core.kernels import onednn

        return onednn.Linear.apply(x, weight)
    if recorded or not 0 < rows <= FEW_ROWS or x.device.type != "cpu":
        return F.linear(x, weight)
    if loops and kernels.few_rows_serve(rows, kernels.product_dtype(x), weight):
        from mosaic_cli.core.kernels import few_rows

        return few_rows.linear(x, weight)
    if rows > 1:
        return torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous().view(*x.shape[:-1], -1)
    if weight.numel() < WORTH_PARTS:
        return F.linear(x, weight)
    threads = torch.get_num_threads()
    if not 1 < threads <= len(weight):
        return F.linear(x, weight)
    shared = len(weight) - len(weight) % threads
    parts = weight[:shared].view(threads, -1, weight.shape[1])
    y = torch.bmm(x.reshape(1, 1, -1).expand(threads, 1, -1), parts.mT).flatten()
    if shared < len(weight):
        y = torch.cat([y, F.linear(x, weight[shared:]).flatten()])
    return y.view(*x.shape[:-1], -1)
