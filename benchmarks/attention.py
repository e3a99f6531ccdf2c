"""Attention for training on a CPU beside torch's fused one, forward and backward, in turn: `python -m
benchmarks.attention [--rounds N] [--dtype float32]`.

One line a case: milliseconds of both, and how many times as fast ours is. The cases are the slots and the strict past
of the bench's sizes, a long text, and v2's windows, which torch reads in blocks with masks. The processor must be one
that `core.kernels.tile` names for the dtype.
"""

import argparse
import statistics
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import interleaved, ratio
from mosaic_cli.core import kernels
from mosaic_cli.core.kernels import attention, tile
from mosaic_cli.core.windows import window_read
from mosaic_cli.device import keep_freed_memory

HALVES = tile.available(halves=True)


class Case(NamedTuple):
    """Queries (B, H, T, D), which read S pairs each or those of their past, of a window the newest."""

    name: str
    B: int
    H: int
    T: int
    D: int
    S: int
    causal: bool
    window: int | None = None


CASES = (
    Case("tiny, slots", 1, 4, 768, 32, 448, False),
    Case("tiny, past", 12, 4, 63, 32, 63, True),
    Case("small, slots", 1, 4, 4096, 64, 896, False),
    Case("small, past", 8, 4, 511, 64, 511, True),
    Case("124m, slots", 1, 12, 512, 64, 2688, False),
    Case("124m, past", 1, 12, 511, 64, 511, True),
    Case("long, past", 1, 4, 4095, 64, 4095, True),
    Case("small, window", 8, 4, 511, 64, 511, True, 256),
    Case("long, window", 2, 4, 2047, 64, 2047, True, 256),
    Case("narrow, window", 16, 4, 255, 32, 255, True, 96),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if HALVES else "float32")
    asked = parser.parse_args()
    if not tile.available(asked.dtype == "bfloat16"):
        parser.error(
            f"ours does not serve {asked.dtype} on this processor, so nothing is measured: it takes vdpbf16ps for "
            "bfloat16, and AVX2 for float32 (--dtype names the other one)"
        )
    keep_freed_memory()
    for case in CASES:
        _measure(case, asked.rounds, getattr(torch, asked.dtype))


def _measure(case: Case, rounds: int, dtype: torch.dtype) -> None:
    inputs = [
        torch.randn(case.B, length, case.H, case.D).to(dtype).transpose(1, 2).requires_grad_()
        for length in (case.T, case.S, case.S)
    ]
    gradient = torch.randn(case.B, case.H, case.T, case.D).to(dtype)

    def ours() -> Tensor:
        if case.causal:
            return attention.attend_window(*inputs, 1.0, window=case.window or case.S)
        return attention.attend(*inputs, 1.0)

    def fused() -> Tensor:
        if case.window:
            with patch.object(kernels, "attention_serves", lambda *_, **__: False):
                return window_read(*inputs, torch.ones(case.H), case.window)
        return F.scaled_dot_product_attention(*inputs, is_causal=case.causal, scale=1.0)

    def backward(reads: Tensor) -> object:
        return torch.autograd.grad(reads, inputs, gradient)

    seconds = interleaved(
        {
            "fused, forward": lambda: fused,
            "ours, forward": lambda: ours,
            "fused, backward": lambda: partial(backward, fused()),
            "ours, backward": lambda: partial(backward, ours()),
        },
        rounds,
    )
    both = {way: [sum(pair) for pair in _pairs(seconds, way)] for way in ("fused", "ours")}
    ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print(
        f"{case.name:14}  fused {ms['fused, forward']:6.2f} + {ms['fused, backward']:6.2f} ms  "
        f"ours {ms['ours, forward']:6.2f} + {ms['ours, backward']:6.2f} ms  "
        f"{ratio(both['fused'], both['ours']):.2f} times as fast",
        flush=True,
    )


def _pairs(seconds: dict[str, list[float]], way: str) -> zip:
    return zip(seconds[f"{way}, forward"], seconds[f"{way}, backward"], strict=True)


if __name__ == "__main__":
    main()
