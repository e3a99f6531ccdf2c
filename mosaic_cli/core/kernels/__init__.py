"""The functions of `ops` as fused GPU kernels: optional, never required. `implementation` says what will be used."""

from functools import cache
from importlib.util import find_spec

import torch


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def serves(x: torch.Tensor) -> bool:
    """Whether the kernels compute functions of x: on a CUDA device with Triton installed, in at most float32."""
    return x.is_cuda and x.dtype.itemsize <= 4 and _has_triton()


def implementation(device: torch.device) -> str | None:
    """What averages keys on a GPU, in words for people to read; None on other devices, where there is no choice."""
    if device.type != "cuda":
        return None
    if _has_triton():
        return "leaky average by Triton"
    return "leaky average by PyTorch, slower (Triton is not installed: pip install triton)"
