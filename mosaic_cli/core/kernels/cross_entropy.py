"""Cross-entropy on a CPU, as compiled loops: a row of logits is read and written while the processor's cache has it."""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import loops, prange, run
from mosaic_cli.core.kernels.halves import bits, exp, greatest_of, number, stored


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in nats (), float32, of logits (N, V) in bfloat16 or float32, which its gradient by them
    replaces.

    Targets are (N,); one below zero does not count: its loss and its row of the gradient are zero.
    """
    losses = torch.empty(len(logits))
    run(_cross_entropy, bits(logits), targets, losses)
    return losses.sum()


@loops
def _cross_entropy(logits, targets, losses):
    """Logits (N, V) may be the bits of bfloat16."""
    N, V = logits.shape
    zero, one = np.float32(0), np.float32(1)
    for n in prange(N):
        row, target = logits[n], targets[n]
        if target < 0:
            losses[n] = zero
            row[:] = 0
            continue
        greatest = greatest_of(row)
        own, total = number(row[target]) - greatest, zero
        for v in range(V):
            total += exp(number(row[v]) - greatest)
        inverse = one / total
        for v in range(V):
            row[v] = stored(exp(number(row[v]) - greatest) * inverse, row)
        row[target] = stored(exp(own) * inverse - one, row)
        losses[n] = np.log(total) - own
