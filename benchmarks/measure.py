"""How things are measured: side by side in turn, peaks of memory each in a process of its own, the machine itself."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.systems import System, build
from mosaic_cli.core.linear import linear
from mosaic_cli.core.model import arrange_for_decoding
from mosaic_cli.device import Placement, choose_placement, keep_freed_memory
from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.optimizer import make_optimizer, update

DECODED = 32  # tokens of one timed stretch of decoding
MANY = 10**6  # tokens to be decoded, as far as models are told: all that makes long texts faster is loaded
SQUARE = 2048  # side of the matrices whose product is timed
COPIED = 2**28  # bytes of the block that is copied: far more than any cache holds
LIMIT_REPEATS = 5
TINIEST = {"num_layers": 1, "num_heads": 1, "d_model": 8, "num_slots": 16, "context_length": 48, "vocab_size": 64}
CLEAR_PEAK = Path("/proc/self/clear_refs")  # "5" written there makes the peak what is resident now

Run = Callable[[], object]
Prepare = Callable[[], Run]
"""Makes one timed run; what it does itself is not timed."""


def interleaved(systems: dict[str, Prepare], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each system in each round, all in turn, so that a drifting machine hurts all alike. One round
    more comes first, to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for round_number in range(rounds + 1):
        for name, prepare in systems.items():
            run = prepare()
            wait()
            started = time.perf_counter()
            run()
            wait()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(base: list[float], own: list[float]) -> float:
    """Median over rounds of how many times as fast `own` is as `base`."""
    return statistics.median(b / o for b, o in zip(base, own, strict=True))


def training(system: System, T: int, batch: int, vocab_size: int, placement: Placement) -> Prepare:
    """A step: loss, gradients, clipping, AdamW; the same for all systems."""
    train = TrainSection(batch_size=batch)
    optimizer = make_optimizer(system.model, train)
    windows = torch.from_numpy(np.random.default_rng(0).integers(0, vocab_size, (batch, T + 1))).to(placement.device)

    def step() -> None:
        system.model.train()
        with placement.autocast():
            loss = system.loss(windows[:, :-1], windows[:, 1:])
        loss.backward()
        update(system.model, optimizer, train, 1e-5, loss.detach()).wait()

    return lambda: step


def prefill(system: System, T: int, batch: int, vocab_size: int, placement: Placement) -> Prepare:
    """A prompt read into an empty cache, up to the logits after it. Models are arranged as for `decoding`."""
    arrange_for_decoding(system.model, tokens=MANY)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, vocab_size, (batch, T))).to(placement.device)

    @torch.inference_mode()
    def read() -> None:
        system.model.eval()
        with placement.autocast():
            system.read(tokens, None)

    return lambda: read


def decoding(system: System, stored: int, batch: int, vocab_size: int, placement: Placement) -> Prepare:
    """Greedy decoding of DECODED tokens behind `stored` others; reading those is not timed. Models are arranged as
    `mosaic generate` does for long texts."""
    arrange_for_decoding(system.model, tokens=MANY)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, vocab_size, (batch, stored))).to(placement.device)

    @torch.inference_mode()
    def prepare() -> Run:
        system.model.eval()
        with placement.autocast():
            first = system.read(tokens, None)

        @torch.inference_mode()
        def decode() -> None:
            logits, cache = first
            with placement.autocast():
                for _ in range(DECODED):
                    logits, cache = system.read(logits.argmax(-1)[:, None], cache)

        return decode

    return prepare


WORKLOADS = {"train": training, "prefill": prefill, "decode": decoding}


def peak_memory(workload: str, name: str, shape: dict[str, int], T: int, batch: int, dtype: str = "auto") -> int:
    """Bytes that one system needs at most once it is built, in a process of its own: on a GPU what the allocator held;
    on a CPU, where it takes Linux to know, the largest resident set beyond what the process held before the model."""
    asked = {"workload": workload, "name": name, "shape": shape, "T": T, "batch": batch, "dtype": dtype}
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(asked)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def _peak_memory_here(workload: str, name: str, shape: dict[str, int], T: int, batch: int, dtype: str) -> int:
    placement = choose_placement(dtype=dtype, decoding=workload != "train")
    on_gpu = placement.device.type == "cuda"
    keep_freed_memory()
    tiniest = shape | TINIEST  # loads the code that the workload runs
    _twice(workload, build(name, tiniest, placement.device), tiniest, 8, 1, placement)
    before = 0 if on_gpu else _resident("VmRSS")
    system = build(name, shape, placement.device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        CLEAR_PEAK.write_text("5")  # what drawing the starting values took is over
    _twice(workload, system, shape, T, batch, placement)
    return torch.cuda.max_memory_allocated() if on_gpu else _resident("VmHWM") - before


def _twice(workload: str, system: System, shape: dict[str, int], T: int, batch: int, placement: Placement) -> None:
    """Two runs: only the second has the optimizer's averages from its start."""
    prepare = WORKLOADS[workload](system, T, batch, shape["vocab_size"], placement)
    for _ in range(2):
        prepare()()
    wait()


def _resident(field: str) -> int:
    """Bytes resident now (VmRSS), or at most since the peak was cleared (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def machine_limits(placement: Placement) -> dict[str, float]:
    """Matrix products in FLOP/s (float32, and bfloat16 where it is native) and copies in bytes read and written a
    second: the best of some."""
    limits = {"float32_flops": _matmul_rate(torch.float32, placement)}
    if placement.dtype == torch.bfloat16:
        limits["bfloat16_flops"] = _matmul_rate(torch.bfloat16, placement)
    source = torch.ones(COPIED, dtype=torch.uint8, device=placement.device)
    target = torch.empty_like(source)
    return limits | {"copy_bytes": 2 * COPIED / _best_seconds(lambda: target.copy_(source))}


def _matmul_rate(dtype: torch.dtype, placement: Placement) -> float:
    side = SQUARE if placement.device.type == "cpu" else 4 * SQUARE
    a, b = (torch.ones(side, side, dtype=dtype, device=placement.device) for _ in range(2))
    return 2 * side**3 / _best_seconds(lambda: linear(a, b))  # by the faster of two libraries


def _best_seconds(run: Run) -> float:
    return min(interleaved({"it": lambda: run}, LIMIT_REPEATS)["it"])


def wait() -> None:
    """Until a GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(_peak_memory_here(**json.loads(sys.argv[1])))
