"""Speed and memory of the mosaic beside the transformers people would use instead, side by side in one run.

    python -m benchmarks.run [--only PART ...] [--sizes tiny small 124m] [--rounds N] [--max-seconds S] [--page]

Each round runs every system once, in turn, so that a drifting machine hurts all alike; medians and ratios are over
rounds. Peaks of memory are measured each in a process of its own. A part that is left out keeps the rows that
benchmarks/results.json has of it. `--page` writes table and figure into docs/.

All systems keep freed memory for what comes after, as `mosaic train` does (`device.keep_freed_memory`).

Parts: `train`, `prefill`, `decode` at the sizes' own shapes; `memory`, the peaks of training and decoding there;
`length`, training and prefill with growing windows; `stored`, decoding with growing memory; `batch`, both with
growing batch.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import counts
from benchmarks.measure import (
    DECODED,
    WORKLOADS,
    interleaved,
    machine_limits,
    peak_memory,
    ratio,
)
from benchmarks.report import has_growth, write_figure, write_table
from benchmarks.systems import BUILDERS, PACKAGES, SIZES, build
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import count_parameters
from mosaic_cli.device import choose_placement, keep_freed_memory

RESULTS = Path(__file__).parent / "results.json"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
STORED = (128, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 4, 16)
GROWTH_SIZE = "small"
Row = dict[str, object]


class Bench:
    """One run: the systems that are there, and how long to measure."""

    def __init__(self, names: list[str], sizes: list[str], rounds: int, max_seconds: float, dtype: str):
        self.names, self.sizes, self.rounds, self.max_seconds = names, sizes, rounds, max_seconds
        self.dtype, self.placement = dtype, choose_placement(dtype=dtype)
        decoding = choose_placement(dtype=dtype, decoding=True)  # of prompts too
        self.placements = {"train": self.placement, "prefill": decoding, "decode": decoding}
        self.limits = machine_limits(self.placement)

    def train(self) -> Iterator[Row]:
        """A training step at each size."""
        for size in self.sizes:
            yield from self._at_size("train", size)

    def prefill(self) -> Iterator[Row]:
        """A whole window read as a prompt."""
        for size in self.sizes:
            yield from self._at_size("prefill", size)

    def decode(self) -> Iterator[Row]:
        """Greedy decoding up to the end of the window."""
        for size in self.sizes:
            yield from self._at_size("decode", size)

    def memory(self) -> Iterator[Row]:
        """Peaks of training and decoding at each size."""
        for size in self.sizes:
            for workload in ("train", "decode"):
                yield from self._memory("memory", workload, size, SIZES[size].shape, SIZES[size].batch)

    def length(self) -> Iterator[Row]:
        """Training and reading of one ever longer window, until one takes too long."""
        for workload in ("train", "prefill"):
            for T in LENGTHS:
                shape = SIZES[GROWTH_SIZE].shape | {"context_length": T}
                rows = list(self._time("length", workload, GROWTH_SIZE, shape, 1))
                yield from rows
                yield from self._memory("length", workload, GROWTH_SIZE, shape, 1)
                if max(row["seconds"] for row in rows) > self.max_seconds:
                    _note(f"{workload}: no windows beyond {T}: one took more than {self.max_seconds:g} s")
                    break

    def stored(self) -> Iterator[Row]:
        """Decoding with ever more behind it."""
        for S in STORED:
            shape = SIZES[GROWTH_SIZE].shape | {"context_length": S + DECODED + 1}
            yield from self._time("stored", "decode", GROWTH_SIZE, shape, 1)

    def batch(self) -> Iterator[Row]:
        """Decoding and training of several texts at once."""
        for workload in ("decode", "train"):
            for batch in BATCHES:
                yield from self._time("batch", workload, GROWTH_SIZE, SIZES[GROWTH_SIZE].shape, batch)

    def _at_size(self, workload: str, size: str) -> Iterator[Row]:
        batch = SIZES[size].batch if workload == "train" else 1
        yield from self._time(workload, workload, size, SIZES[size].shape, batch)

    def _time(self, part: str, workload: str, size: str, shape: dict[str, int], batch: int) -> Iterator[Row]:
        systems = {name: build(name, shape, self.placement.device) for name in self.names}
        T = _tokens_read(workload, shape)
        prepared = {
            name: WORKLOADS[workload](system, T, batch, shape["vocab_size"], self.placements[workload])
            for name, system in systems.items()
        }
        seconds = interleaved(prepared, self.rounds)
        tokens = batch * (DECODED if workload == "decode" else T)
        for name, system in systems.items():
            median = statistics.median(seconds[name])
            yield self._said(
                {
                    "part": part,
                    **_row(workload, name, size, T, batch),
                    "parameters": count_parameters(system.model),
                    "seconds": median,
                    "tokens_per_second": tokens / median,
                    "ratio_to": {other: ratio(seconds[other], seconds[name]) for other in self.names if other != name},
                    "share_of_limit": self._least_seconds(workload, system.config, T, batch) / median,
                }
            )

    def _memory(self, part: str, workload: str, size: str, shape: dict[str, int], batch: int) -> Iterator[Row]:
        batch, T = 1 if workload == "decode" else batch, _tokens_read(workload, shape)
        peaks = {name: peak_memory(workload, name, shape, T, batch, self.dtype) for name in self.names}
        for name, peak in peaks.items():
            ratios = {other: peak / peaks[other] for other in self.names if other != name}
            row = _row(workload, name, size, T, batch)
            yield self._said({"part": part, **row, "peak_memory_bytes": peak, "memory_ratio_to": ratios})

    def _least_seconds(self, workload: str, config: ModelConfig, T: int, batch: int) -> float:
        """What the machine's limits allow at best."""
        if workload == "decode":
            return DECODED * counts.decoded_token_bytes(config, T, batch) / self.limits["copy_bytes"]
        rate = self.limits[f"{str(self.placements[workload].dtype).removeprefix('torch.')}_flops"]
        return counts.flops(workload, config, batch) / rate

    def _said(self, row: Row) -> Row:
        figure = (
            f"{row['peak_memory_bytes'] / 1e6:,.0f} MB"
            if "peak_memory_bytes" in row
            else f"{row['tokens_per_second']:,.0f} tokens/s"
        )
        _note(f"{row['part']:8} {row['workload']:8} {row['model']:6} T {row['T']:6} batch {row['batch']:3} "
              f"{row['system']:20} {figure}")  # fmt: skip
        return row


def _row(workload: str, name: str, size: str, T: int, batch: int) -> Row:
    return {"workload": workload, "system": name, "model": size, "T": T, "batch": batch}


def _tokens_read(workload: str, shape: dict[str, int]) -> int:
    """A whole window; before decoding, as much as leaves room for what is decoded."""
    return shape["context_length"] - (DECODED + 1 if workload == "decode" else 0)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Measure what is asked for, write the JSON file, print the table."""
    parts = ("train", "prefill", "decode", "memory", "length", "stored", "batch")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, metavar="PART")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-seconds", type=float, default=20, help="windows grow until one takes longer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="write table and figure into docs/")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument(
        "--return-memory", action="store_true", help="have freed memory returned while timing, as torch alone does"
    )
    asked = parser.parse_args()
    if asked.out == RESULTS and (asked.dtype != "auto" or asked.return_memory):
        parser.error(f"{RESULTS.name} has what `mosaic` would take; name another file with --out")
    if not asked.return_memory:
        keep_freed_memory()
    missing = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    for name in missing:
        _note(f"MISSING: {name} is not installed and not measured; pip install 'mosaic-cli[bench]'")
    names = [name for name in BUILDERS if name not in missing]
    bench = Bench(names, asked.sizes, asked.rounds, asked.max_seconds, asked.dtype)
    rows = _kept(asked.out, asked.only, asked.sizes)
    results = {"machine": _machine(bench), "missing": missing, "rows": rows}
    for part in asked.only:
        for row in getattr(bench, part)():
            rows.append(row)
            asked.out.write_text(json.dumps(results, indent=2) + "\n")  # what a long run has when it is stopped
    write_table(results, asked.page)
    if asked.page and has_growth(results):
        write_figure(results)
    _note(f"written: {asked.out}")


def _kept(path: Path, parts: list[str], sizes: list[str]) -> list[Row]:
    """Rows of an earlier run that this one does not replace."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if row["part"] not in parts or row["model"] not in sizes]


def _machine(bench: Bench) -> dict[str, object]:
    placement = bench.placement
    return {
        "device": torch.cuda.get_device_name() if placement.device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "dtype": str(placement.dtype).removeprefix("torch."),
        "decoding_dtype": str(bench.placements["decode"].dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "limits": bench.limits,
        "rounds": bench.rounds,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
