"""Numbers of bfloat16 in loops are those that torch rounds to."""

import numpy as np
import torch

from mosaic_cli.core.kernels.compiled import loops, run
from mosaic_cli.core.kernels.halves import bits, narrow


@loops
def _narrow(numbers, rounded):
    for i in range(len(numbers)):
        rounded[i] = narrow(numbers[i])


def _rounded(numbers):
    rounded = torch.empty(len(numbers), dtype=torch.bfloat16)
    run(_narrow, numbers, bits(rounded))
    return rounded


def test_rounding_is_torch_s():
    patterns = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    ties = np.arange(0x3F808000, 0x3F888000, 0x10000, dtype=np.uint32)  # half way between two neighbours
    numbers = torch.from_numpy(np.concatenate([patterns, ties]).view(np.float32))
    assert torch.equal(_rounded(numbers).nan_to_num(nan=-1.0), numbers.bfloat16().nan_to_num(nan=-1.0))


def test_what_is_not_a_number_stays_so():
    patterns = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000, 0x7F800001, 0x7FC00000, 0xFFC00000], np.uint32)
    assert _rounded(torch.from_numpy(patterns.view(np.float32))).isnan().all()
    assert _rounded(torch.tensor([torch.inf, -torch.inf])).tolist() == [torch.inf, -torch.inf]
