"""Loops that Numba compiles, on tensors in the CPU's memory.

Sums may be taken in any order and multiplications fused with additions; infinity and what is not a number stay what
they are. Compiling takes some seconds, once: Numba keeps what it made beside the file with the loops.
"""

import contextlib
import hashlib
import os
import threading
import warnings
from pathlib import Path

import numba
import numpy as np
import torch
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic
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
    compiled = numba.njit(fastmath=FREEDOMS, **options)(function)
    with contextlib.suppress(RuntimeError):  # where no cache can be written, nothing is stored
        compiled._cache = _Cache(compiled)
    return compiled


def _digest_of_sources() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


_SOURCES = _digest_of_sources()


class _Cache(FunctionCache):
    """Numba's cache of what it compiled, with two differences.

    Another process compiles. Numba compiles a function that loops call by itself, then once
    more with the loops, where its sums may be taken in another order; a process that compiles calls the first form and
    stores the second. So its run would not be, to the last bit, one that finds them compiled. Here all call what is
    stored.

    And what is stored is for these sources alone: Numba looks at the file of a function, not at those of what it calls.
    """

    def __init__(self, dispatcher):
        super().__init__(dispatcher.py_func)
        self._dispatcher = dispatcher

    def load_overload(self, sig, target_context):
        """What is stored for these types; None is compiled here."""
        stored = self._load(sig, target_context)
        if stored is None and not _forked:
            _in_another_process(self._dispatcher.compile, sig)
            stored = self._load(sig, target_context)
        return stored

    def _load(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file, of which the pickles in it may raise anything: all is made anew
            self.flush()
            return None

    def _index_key(self, sig, codegen):
        return *super()._index_key(sig, codegen), _SOURCES


_forked = False  # this is a process that only compiles


def _in_another_process(compile, sig) -> None:
    """Have a fork of this process compile, and wait. What goes wrong there will go wrong here again, and be told."""
    global _forked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not go on there, and none is needed
        try:
            child = os.fork()
        except OSError:  # no room for another process: this one compiles
            return
    if child:
        os.waitpid(child, 0)
        return
    _forked, status = True, 1
    try:
        os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 2**16))  # a lock must not outlive the process that holds it
        compile(sig)
        status = 0
    finally:
        os._exit(status)


@intrinsic
def uncounted(typing, arrays):
    """The arrays of a tuple, but that views of them are not counted as uses of their memory, which takes as long as the
    softmax of a hundred numbers. So they must be kept, by `keep`, until they are used no more.

    Only arrays that are made within a parallel loop are counted there.
    """

    def codegen(context, builder, signature, arguments):
        views = []
        for index, kind in enumerate(signature.return_type):
            view = context.make_array(kind)(context, builder, builder.extract_value(arguments[0], index))
            view.meminfo = cgutils.get_null_value(view.meminfo.type)
            views.append(view._getvalue())
        return context.make_tuple(builder, signature.return_type, views)

    return arrays(arrays), codegen


@intrinsic
def keep(typing, arrays):
    """Have the memory of a tuple of arrays be there until here."""
    return types.void(arrays), lambda context, builder, signature, arguments: context.get_dummy_value()


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
