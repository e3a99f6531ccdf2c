"""What `auto` means: which device computes, in which arithmetic, and why."""

import ctypes
import os
import platform
from dataclasses import dataclass, replace

import numpy as np
import torch

from mosaic_cli.errors import UsageError


@dataclass(frozen=True)
class Placement:
    """Where and in what arithmetic to compute, with the reasons for people to read."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> torch.autocast:
        """Context in which matrix work runs in `dtype`; nothing changes for float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def move(self, array: np.ndarray) -> torch.Tensor:
        """The same numbers on the device. A GPU fetches them itself, from memory that stays where it is, when it has
        done what it was given before: the host does not wait."""
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def choose_placement(device: str = "auto", dtype: str = "auto", decoding: bool = False) -> Placement:
    """Resolve `auto`, and check that what was named is there.

    Args:
        decoding: for one token after another, where a CPU is faster in float32: all weights would be turned to
            bfloat16 for each token (docs/performance.md).

    Raises:
        UsageError: a device that this machine does not have, or an unknown name.
    """
    chosen = torch.device(_best_device()) if device == "auto" else _named_device(device)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"dtype {dtype!r} is not one of auto, float32, bfloat16", where="--dtype")
    if dtype == "auto" and decoding and chosen.type == "cpu":
        return Placement(chosen, torch.float32, f"{chosen} in float32 (the faster one to decode in)")
    native = _has_native_bfloat16(chosen)
    dtype_name = ("bfloat16" if native else "float32") if dtype == "auto" else dtype
    why = "as asked" if dtype != "auto" else f"this {chosen.type} {'computes' if native else 'lacks'} bfloat16 natively"
    return Placement(chosen, getattr(torch, dtype_name), f"{chosen} in {dtype_name} ({why})")


def choose_exact_placement(device: str = "auto") -> Placement:
    """Where to compute sums that are checked to the last digits: on that device, in float32."""
    placement = choose_placement(device, "float32")
    return replace(placement, reason=f"{placement.device} in float32 (always, so that sums can be checked)")


def keep_freed_memory() -> bool:
    """Have this process keep the memory that large tensors leave, for those that follow; whether that can be had.

    The C library gives it back to the system, which then clears each page of the next step's tensors anew: on two
    cores a quarter of a training step, and more where all logits are held at once (docs/performance.md). Only glibc,
    as on most of Linux, can be told otherwise.
    """
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    # its words M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD: from what size on memory is asked for singly, how much
    # may lie unused before some is given back, and how much is asked for beyond the need; all in bytes
    return all([tell(-3, 2**30), tell(-1, 2**31 - 1), tell(-2, 2**26)])


def memory_bytes(device: torch.device) -> int:
    """Memory of the device, in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_words(device: torch.device) -> str:
    """What computes, in words: the accelerator, or the processor and the cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_info('model name') or platform.processor() or platform.machine()}, {cores} cores"


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device {name!r} is not a device", where="--device", hint="Use auto, cpu, cuda, cuda:N or mps."
        ) from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type not in count or (device.index or 0) >= count[device.type]:
        raise UsageError(
            f"this machine has no {name}; it has {_best_device()}",
            where="--device",
            hint="Leave the choice to the machine: --device auto",
        )
    return device


def _has_native_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # oneDNN emulates bfloat16 on older processors, slower than float32
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())
    return False


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _cpu_info(key: str) -> str:
    """The first processor's value in Linux's /proc/cpuinfo; empty where it is not known."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.partition(":")[0].strip() == key), "")
    except FileNotFoundError:  # not Linux: no cheap way to know; without flags, arithmetic is float32
        return ""
    return line.partition(":")[2].strip()
