"""A matrix times one vector or a few, in float32 on a CPU, as in decoding.

Each weight is read for a few multiplications, so that such a product takes as long as its matrix takes to come from
memory. Torch's products get half of what memory gives for one vector, and a third for sixteen.
"""

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import array, loops, prange, run
from mosaic_cli.core.kernels.halves import dot
from mosaic_cli.core.kernels.prefetch import request
from mosaic_cli.core.kernels.tile import FEW_COLUMNS, FEW_ROWS, multiply_few

RUN = 16  # outputs of a row that are written at once: a line of the cache, of which a tile would write a part


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """W x (..., outputs) for x (..., width), of one row or a few, and W (outputs, width) in float32."""
    outputs, width = weight.shape
    y = torch.empty(*x.shape[:-1], outputs)
    rows, results = array(x).reshape(-1, width), array(y).reshape(-1, outputs)
    if len(rows) == 1:
        run(_one_row, rows[0], weight, results[0])
    else:
        run(_few_rows, rows, weight, results, torch.get_num_threads())
    return y


@loops
def _one_row(x, weight, y):
    for n in prange(len(weight)):
        y[n] = dot(weight[n], x)


@loops
def _few_rows(x, weight, y, threads):
    """Fill y; tiles cover FEW_ROWS outputs and FEW_COLUMNS rows of x, which are turned and filled up with zeros."""
    (R, width), outputs = x.shape, len(weight)
    columns = np.zeros((-(-R // FEW_COLUMNS), width, FEW_COLUMNS), np.float32)
    for r in range(R):
        for i in range(width):
            columns[r // FEW_COLUMNS, i, r % FEW_COLUMNS] = x[r, i]
    runs = outputs // RUN
    for thread in prange(threads):
        product = np.empty((RUN, FEW_COLUMNS), np.float32)
        for first in range(thread * runs // threads * RUN, (thread + 1) * runs // threads * RUN, RUN):
            rows = weight[first : first + RUN]
            request(rows, rows.nbytes, rows.nbytes)  # the next ones
            for group in range(len(columns)):
                for n in range(0, RUN, FEW_ROWS):
                    multiply_few(rows[n : n + FEW_ROWS], columns[group], product[n : n + FEW_ROWS])
                here = y[group * FEW_COLUMNS : (group + 1) * FEW_COLUMNS, first : first + RUN]
                for r in range(len(here)):
                    for n in range(RUN):
                        here[r, n] = product[n, r]
    for n in range(runs * RUN, outputs):
        for r in range(R):
            y[r, n] = dot(weight[n], x[r])
