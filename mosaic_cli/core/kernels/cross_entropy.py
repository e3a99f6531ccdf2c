"""Cross-entropy of logits in bfloat16 on a CPU, as compiled loops."""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import loops, prange, run
from mosaic_cli.core.kernels.halves import bits, exp, narrow, widen


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats (), float32, of logits (N, V) in bfloat16, which its gradient by them replaces.

    Targets are (N,); one below zero does not count: its loss and its row of the gradient are zero.
    """
    losses = torch.empty(len(logits))
    run(_cross_entropy, bits(logits), targets, losses)
    return losses.sum()


@loops
def _cross_entropy(logits, targets, losses):
    """Logits (N, V) are the bits of bfloat16. The maximum is taken as in `attention`, of integers."""
    N, V = logits.shape
    turned, zero, one = np.int16(0x7FFF), np.float32(0), np.float32(1)
    for n in prange(N):
        row, target = logits[n], targets[n]
        if target < 0:
            losses[n] = zero
            row[:] = 0
            continue
        ordered = row.view(np.int16)
        highest = np.int16(-0x8000)
        for v in range(V):
            highest = max(highest, np.int16(ordered[v] ^ (np.int16(ordered[v] >> np.int16(15)) & turned)))
        greatest = widen(np.int16(highest ^ (np.int16(highest >> np.int16(15)) & turned)).view(np.uint16))
        own, total = widen(row[target]) - greatest, zero
        for v in range(V):
            total += exp(widen(row[v]) - greatest)
        inverse = one / total
        for v in range(V):
            row[v] = narrow(exp(widen(row[v]) - greatest) * inverse)
        row[target] = narrow(exp(own) * inverse - one)
        losses[n] = np.log(total) - own
