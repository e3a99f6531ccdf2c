"""Speed of the mosaic beside the transformer of equal size, interleaved, on random tokens.

    python -m benchmarks.run [--rounds N] [--out benchmarks/results.json]

Each round runs every system once, in turn, so that a drifting machine hurts all alike; medians and ratios are over
rounds. Sizes: `small` is 4 layers of width 256 with 8,192 tokens of vocabulary; `tiny` is shakespeare-char's.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import LanguageModel, build_model, count_parameters
from mosaic_cli.data.batches import Batch
from mosaic_cli.device import Placement, choose_placement
from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.loop import backward
from mosaic_cli.training.optimizer import make_optimizer, update

SIZES = {
    "small": {
        "num_layers": 4,
        "num_heads": 4,
        "d_model": 256,
        "num_slots": 896,
        "context_length": 512,
        "vocab_size": 8192,
    },
    "tiny": {"num_layers": 4, "num_heads": 4, "d_model": 128, "num_slots": 448, "context_length": 64, "vocab_size": 66},
}
BATCH = {"small": 8, "tiny": 12}
KINDS = ("transformer", "mosaic")
DECODED = 32  # tokens of one timed stretch of decoding
POSITIONS = (100, 4000)  # where a decoded token's time is compared


def main() -> None:
    """Measure, write the JSON file, print one line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.json")
    arguments = parser.parse_args()
    placement = choose_placement()
    rows = [row for size in SIZES for row in measure_size(size, placement, arguments.rounds)]
    rows += measure_positions(placement, arguments.rounds)
    arguments.out.write_text(json.dumps({"machine": _machine(placement), "rows": rows}, indent=2) + "\n")
    for row in rows:
        ratio = "  ".join(f"{value:.2f} x {name}" for name, value in row["ratio_to"].items())
        print(
            f"{row['workload']:10} {row['model']:6} {row['system']:12} T {row['T']:5} batch {row['batch']:3} "
            f"{row['tokens_per_second']:10,.0f} tokens/s  {ratio}"
        )
    print(f"written: {arguments.out}")


def measure_size(size: str, placement: Placement, rounds: int) -> Iterator[dict]:
    """Training, prefill and decoding of both kinds at one size."""
    models = {kind: _model(kind, size, placement) for kind in KINDS}
    T, batch = SIZES[size]["context_length"], BATCH[size]
    workloads: dict[str, tuple[int, int, dict[str, Callable[[], object]]]] = {
        "train": (batch, batch * T, {kind: _training_step(model, batch, placement) for kind, model in models.items()}),
        "prefill": (1, T, {kind: _prefill(model, placement) for kind, model in models.items()}),
        "decode": (1, DECODED, {kind: _decode(model, placement, T - DECODED - 1) for kind, model in models.items()}),
    }
    for workload, (rows_at_once, tokens, systems) in workloads.items():
        seconds = _interleaved(systems, rounds)
        for kind in KINDS:
            yield {
                "workload": workload,
                "system": kind,
                "model": size,
                "parameters": count_parameters(models[kind]),
                "T": T,
                "batch": rows_at_once,
                "tokens_per_second": tokens / statistics.median(seconds[kind]),
                "peak_memory_bytes": _peak_memory(placement),
                "ratio_to": {"transformer": _ratio(seconds["transformer"], seconds[kind])},
            }


def measure_positions(placement: Placement, rounds: int) -> list[dict]:
    """Decoding of the tiny mosaic with few and with many stored pairs: how much the past costs."""
    model = _model("mosaic", "tiny", placement)
    seconds = _interleaved({str(p): _decode(model, placement, p - 1) for p in POSITIONS}, rounds)
    first = str(POSITIONS[0])
    return [
        {
            "workload": "decode",
            "system": "mosaic",
            "model": "tiny",
            "parameters": count_parameters(model),
            "T": position,
            "batch": 1,
            "tokens_per_second": DECODED / statistics.median(seconds[str(position)]),
            "peak_memory_bytes": _peak_memory(placement),
            "ratio_to": {f"position {first}": _ratio(seconds[first], seconds[str(position)])},
        }
        for position in POSITIONS
    ]


def _model(kind: str, size: str, placement: Placement) -> LanguageModel:
    torch.manual_seed(0)
    return build_model(ModelConfig(kind=kind, init="gpt2", **SIZES[size])).to(placement.device)


def _training_step(model: LanguageModel, batch: int, placement: Placement) -> Callable[[], object]:
    train = TrainSection(batch_size=batch)
    optimizer = make_optimizer(model, train)
    shape = (batch, model.config.context_length + 1)
    batch = Batch.of_windows(np.random.default_rng(0).integers(0, model.config.vocab_size, shape))

    def step() -> None:
        model.train()
        loss = backward(model, batch, train, placement)
        update(model, optimizer, train, 1e-5, loss)

    return step


def _prefill(model: LanguageModel, placement: Placement) -> Callable[[], object]:
    tokens = torch.zeros(1, model.config.context_length, dtype=torch.long, device=placement.device)

    @torch.inference_mode()
    def read() -> None:
        model.eval()
        with placement.autocast():
            model.head(model.hidden(tokens, model.make_cache())[:, -1])

    return read


def _decode(model: LanguageModel, placement: Placement, start: int) -> Callable[[], object]:
    """A call decodes DECODED tokens behind a prompt of `start`; reading the prompt is not timed."""

    @torch.inference_mode()
    def prepare() -> Callable[[], None]:
        model.eval()
        cache = model.make_cache()
        token = torch.zeros(1, 1, dtype=torch.long, device=placement.device)
        with placement.autocast():
            model.hidden(token.expand(1, start), cache)

        @torch.inference_mode()
        def decode() -> None:
            drawn = token
            with placement.autocast():
                for _ in range(DECODED):
                    drawn = model.head(model.hidden(drawn, cache)[:, -1]).argmax(-1)[:, None]

        return decode

    prepare.prepares = True
    return prepare


def _interleaved(systems: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each system in each round; one round more warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for round_number in range(rounds + 1):
        for name, work in systems.items():
            run = work() if getattr(work, "prepares", False) else work
            _wait()
            started = time.perf_counter()
            run()
            _wait()
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _ratio(base: list[float], own: list[float]) -> float:
    """Median over rounds of how many times as fast `own` is as `base`."""
    return statistics.median(b / o for b, o in zip(base, own, strict=True))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_memory(placement: Placement) -> int:
    """On a GPU what its allocator held at most so far; on a CPU the process's largest resident set so far."""
    if placement.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _machine(placement: Placement) -> dict[str, object]:
    name = torch.cuda.get_device_name() if placement.device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "dtype": str(placement.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
