"""Loops that Numba compiles, on tensors in the CPU's memory.

Sums may be taken in any order and multiplications fused with additions; infinity and what is not a number stay what
they are. Compiling takes some seconds, once: Numba keeps what it made beside the file with the loops.
"""

import numba
import torch
from torch import Tensor

prange = numba.prange
FREEDOMS = {"reassoc", "contract", "nsz"}  # LLVM's words for what the first line says


def loops(function):
    """A function of arrays whose `prange` runs in parallel."""
    return _compiled(function, parallel=True)


def inner(function):
    """A function of numbers that `loops` call."""
    return _compiled(function)


def _compiled(function, **options):
    try:
        return numba.njit(cache=True, fastmath=FREEDOMS, **options)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written: compile in every process
        return numba.njit(fastmath=FREEDOMS, **options)(function)


def run(function, *arguments: Tensor | float) -> None:
    """Call compiled loops, which read and write tensors, on as many threads as torch has."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    function(*(item.detach().numpy() if isinstance(item, Tensor) else item for item in arguments))
    if torch.get_num_threads() != threads:  # Numba's first parallel loop sets OpenMP's number for all
        torch.set_num_threads(threads)
