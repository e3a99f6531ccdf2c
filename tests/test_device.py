"""What `auto` chooses, and that a device or arithmetic which is not there is refused."""

import ctypes
import subprocess
import sys

import pytest
import torch

from mosaic_cli import device
from mosaic_cli.device import choose_placement
from mosaic_cli.errors import UsageError


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=1, flags={...}): pretend to have these devices and processor flags."""

    def pretend(cuda=0, mps=False, flags=()):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(device, "_cpu_flags", lambda: set(flags))

    return pretend


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ({"cuda": 1, "mps": True}, "cuda"),
        ({"mps": True}, "mps"),
        ({}, "cpu"),
    ],
)
def test_auto_takes_cuda_then_mps_then_cpu(machine, devices, expected):
    machine(**devices)
    assert choose_placement().device.type == expected


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ((), torch.float32),
        (("avx2", "avx512f"), torch.float32),
        (("avx512_bf16",), torch.bfloat16),
        (("amx_bf16",), torch.bfloat16),
        (("bf16",), torch.bfloat16),
    ],
)
def test_a_processor_s_arithmetic(machine, flags, dtype):
    machine(flags=flags)
    placement = choose_placement()
    assert placement.dtype == dtype and str(dtype).removeprefix("torch.") in placement.reason
    assert ("lacks" in placement.reason) == (dtype == torch.float32)


def test_a_cpu_decodes_in_float32(machine):
    machine(flags=("avx512_bf16",))
    assert choose_placement(decoding=True).dtype == torch.float32
    assert choose_placement(dtype="bfloat16", decoding=True).dtype == torch.bfloat16
    machine(cuda=1)
    assert "decode" not in choose_placement(decoding=True).reason


def test_what_is_named_is_taken(machine):
    machine(cuda=2, flags=("amx_bf16",))
    assert choose_placement("cuda:1", "float32").device == torch.device("cuda:1")
    placement = choose_placement("cpu", "float32")
    assert placement.dtype == torch.float32 and placement.reason == "cpu in float32 (as asked)"


@pytest.mark.parametrize("name", ["cuda:2", "cuda:99", "mps", "cpu:1", "meta", "xpu", "toaster", "", "cuda:-1"])
def test_what_is_not_there_is_refused(machine, name):
    machine(cuda=2)
    with pytest.raises(UsageError) as caught:
        choose_placement(name)
    assert repr(name) in caught.value.message or name in caught.value.message
    assert caught.value.where == "--device" and caught.value.hint


def test_an_arithmetic_that_does_not_exist():
    with pytest.raises(UsageError, match="float16"):
        choose_placement("cpu", "float16")


def test_autocast_runs_matrix_work_in_the_chosen_type():
    a = torch.ones(2, 2)
    with choose_placement("cpu", "bfloat16").autocast():
        assert (a @ a).dtype == torch.bfloat16
    with choose_placement("cpu", "float32").autocast():
        assert (a @ a).dtype == torch.float32


STEPS = """
import resource, sys, torch
from mosaic_cli.device import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("refused")
for step in range(9):
    if step == 6:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**23) for _ in range(4)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_of_a_step_is_there_for_the_next():
    faults = [
        int(subprocess.run([sys.executable, "-c", STEPS, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "as it is")
    ]
    assert faults[0] < 100 < 10_000 < faults[1]  # pages cleared anew in three steps of 128 MB each


def test_elsewhere_memory_goes_its_own_way(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not device.keep_freed_memory()
