"""Loops that Numba compiles, on tensors in the CPU's memory.

Sums may be taken in any order and multiplications fused with additions; infinity and what is not a number stay what
they are. Compiling takes some seconds, once: Numba keeps what it made beside the file with the loops.
"""

import threading

import numba
import numpy as np
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


class _Calling(threading.local):
    """What Numba keeps for each thread that calls loops: on how many threads they run."""

    threads = 0  # not yet set


_calling = _Calling()


def run(function, *arguments: Tensor | np.ndarray | float) -> None:
    """Call compiled loops, which read and write tensors, on as many threads as torch has."""
    threads = torch.get_num_threads()
    if threads != _calling.threads:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        _calling.threads = threads
    function(*map(_argument, arguments))
    if torch.get_num_threads() != threads:  # Numba's first parallel loop sets OpenMP's number for all
        torch.set_num_threads(threads)


def array(tensor: Tensor) -> np.ndarray:
    """The same numbers, in the same memory."""
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()


def _argument(item):
    return array(item) if isinstance(item, Tensor) else item
