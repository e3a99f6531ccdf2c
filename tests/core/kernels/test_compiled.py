"""Compiled loops are the same in the process that compiles them and in those that find them compiled."""

import os
import subprocess
import sys

import numpy as np
import pytest
from numba import types

from mosaic_cli.core.kernels import compiled, halves

ATTENTION = """
import hashlib, torch
from mosaic_cli.core.kernels import attention
torch.manual_seed(0)
queries, keys, values = (torch.randn(1, 4, 100, 32) for _ in range(3))
print(hashlib.sha256(attention.attend(queries, keys, values, 1.0).numpy().tobytes()).hexdigest())
"""


def test_a_process_that_compiles_rounds_as_later_ones_do(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", ATTENTION], env=environment, check=True, capture_output=True, text=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout
    stored = list(tmp_path.rglob("attention._forward*.nb?"))
    assert stored, "nothing was stored"
    for file in stored:  # as no disk should leave them
        os.truncate(file, 100)
    third = subprocess.run(
        [sys.executable, "-c", ATTENTION], env=environment, check=True, capture_output=True, text=True
    )
    assert third.stdout == first.stdout


def test_the_process_that_compiles_holds_no_locks(tmp_path):
    with open(tmp_path / "lock", "w") as lock:

        def compile(_):
            with pytest.raises(OSError):
                os.fstat(lock.fileno())
            (tmp_path / "closed").touch()

        compiled._in_another_process(compile, None)
    assert (tmp_path / "closed").exists()


def test_what_is_stored_is_for_all_sources(monkeypatch):
    signature, function = (types.float32,), halves.exp
    function.compile(signature)
    context = function.targetctx
    monkeypatch.setattr(compiled, "_forked", True)  # compile nothing here
    assert function._cache.load_overload(signature, context) is not None
    monkeypatch.setattr(compiled, "_SOURCES", "those of another version")
    assert function._cache.load_overload(signature, context) is None


@compiled.loops
def _read_what_was_kept(sums):
    for n in compiled.prange(len(sums)):
        memory = np.full(64, n, np.int64), np.full(64, 2 * n, np.int64)
        first, second = compiled.uncounted(memory)
        others = np.full(64, -1, np.int64), np.full(64, -1, np.int64)  # which take the places of what is given back
        for part in range(2):
            sums[n] += first[32 * part :].sum() + second[32 * part :].sum() + others[part].sum()
        compiled.keep(memory)


def test_uncounted_arrays_are_there_until_they_are_kept_no_more():
    sums = np.zeros(1000, np.int64)
    _read_what_was_kept(sums)
    assert (sums == 288 * np.arange(1000) - 128).all()
