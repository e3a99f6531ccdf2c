"""Kernels checked and measured on a GPU, and the mosaic's speed there beside the transformer's of equal size.

    python -m benchmarks.gpu [--out benchmarks/gpu.json]

Checks the leaky kernels against PyTorch on the device, then measures: their share of copy bandwidth for several launch
shapes, training of both kinds at 124 M parameters, compiled and eager, as tokens per second and as a share of the
matrix rate measured in the same run, and decoding of a batch. Meant to take less than eight minutes on one H200, most
of it compilation. `--tiny --device cpu` walks through everything but kernels and compiling in small, to see that the
script runs.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from mosaic_cli.core import kernels
from mosaic_cli.core import leaky as plain
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import LanguageModel, build_model, count_parameters, flops_per_token
from mosaic_cli.device import Placement, choose_placement
from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.loop import backward
from mosaic_cli.training.optimizer import make_optimizer, update

KINDS = ("transformer", "mosaic")
FULL = {"num_layers": 12, "num_heads": 12, "d_model": 768, "vocab_size": 50304}
TINY = {"num_layers": 1, "num_heads": 2, "d_model": 16, "vocab_size": 64}
WINDOWS = {512: 32, 2048: 8}  # tokens of a window, and windows of a step
DECODED_BATCH = 64
ROUNDS = 5
LAUNCHES = [(tile, *rest) for tile in (16, 32, 64) for rest in ((2, 2), (4, 1), (4, 2), (4, 3))]  # tile, warps, stages


def main() -> None:
    """Check, measure, print a line a row, write the JSON file; exits with 1 when a kernel is wrong."""
    os.environ[kernels.ASKED] = "1"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "gpu.json")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("the sizes are a GPU's: with --device cpu give --tiny")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that PyTorch can use; to try the script: --device cpu --tiny")
    placement = choose_placement(arguments.device, "bfloat16")
    started, rows = time.perf_counter(), []
    for part in (check_kernels, measure_kernels, measure_training, measure_decoding):
        for row in part(placement, arguments.tiny):
            rows.append(row)
            print("  ".join(f"{name} {_shown(value)}" for name, value in row.items()), flush=True)
    seconds = time.perf_counter() - started
    name = torch.cuda.get_device_name() if placement.device.type == "cuda" else "cpu"
    report = {"device": name, "torch": torch.__version__, "tiny": arguments.tiny, "seconds": seconds, "rows": rows}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{seconds:.0f} s, written: {arguments.out}")
    if not all(row.get("right", True) for row in rows):
        raise SystemExit("a kernel differs from PyTorch: see the rows that are not right")


def check_kernels(placement: Placement, tiny: bool) -> Iterator[dict]:
    """Largest difference between the kernels and float64 on the device, relative to the largest value."""
    if placement.device.type != "cuda":
        yield {"what": "check", "skipped": "kernels need a GPU; tests/core/kernels runs them interpreted"}
        return
    if not kernels.serves(torch.empty(1, device=placement.device)):
        raise SystemExit("Triton is not installed: pip install triton")
    from mosaic_cli.core.kernels import leaky

    generator = torch.Generator(placement.device).manual_seed(0)
    for T in (1, 31, 512, 2047):
        for D in (64, 128, 40):
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
                x = torch.randn(2, T, 3, D, device=placement.device, generator=generator).to(dtype).requires_grad_()
                rate = torch.tensor([0.0, 0.05, 4.0], device=placement.device, requires_grad=True)
                exact = [x.detach().double().requires_grad_(), rate.detach().double().requires_grad_()]
                weights = torch.randn(2, 3, T, D, device=placement.device, generator=generator)
                for name, fast, slow in (
                    ("keys", plain.leaky_keys(x, rate), plain.leaky_keys(*exact)),
                    ("average", leaky.leaky_average(x, rate), plain.leaky_average(*exact)),
                    ("gated", _gated(leaky, x, rate), plain.leaky_keys(*exact)),
                ):
                    pairs = [(fast, slow)]
                    found = torch.autograd.grad((fast * weights).sum(), [x, rate])
                    truth = torch.autograd.grad((slow * weights).sum(), exact)
                    pairs += zip(found, truth, strict=True)
                    errors = [_error(a, b) for a, b in pairs]
                    right = all(error < tolerance for error in errors)
                    label = f"check {name}"
                    yield {"what": label, "T": T, "D": D, "dtype": str(dtype), "errors": errors, "right": right}


def _gated(leaky, x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """The gated kernel where it must give what the constant one gives: equal gates, whatever their size."""
    B, T, H, _ = x.shape
    gate = torch.full((B, T, H), 50.0, device=x.device)
    return leaky.gated_keys(x, gate, (-rate).expand(B, T, H))[0]


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-2)).item()


def measure_kernels(placement: Placement, tiny: bool) -> Iterator[dict]:
    """Bytes per second of the keys' kernels, as a share of what copying reaches, for each launch shape."""
    if placement.device.type != "cuda":
        return
    from mosaic_cli.core.kernels import leaky

    default = leaky.TILE, leaky.NUM_WARPS, leaky.NUM_STAGES
    source = torch.empty(2**29, device=placement.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _device_seconds(lambda: target.copy_(source))
    yield {"what": "copy", "bytes_per_second": copy}
    rate = torch.full((12,), 0.3, device=placement.device)
    for T, B in ((512, 256), (2048, 64), (2048, 8)):
        x = torch.randn(B, T, 12, 64, device=placement.device, dtype=torch.bfloat16)
        keys, log_length = leaky.leaky_keys_forward(x, rate)
        gradient = torch.randn_like(keys)
        numbers = x.numel()
        for shape in LAUNCHES:
            leaky.TILE, leaky.NUM_WARPS, leaky.NUM_STAGES = shape
            try:
                forward = _device_seconds(lambda x=x: leaky.leaky_keys_forward(x, rate))
                back = _device_seconds(
                    lambda g=gradient, k=keys, n=log_length: leaky.leaky_keys_backward(g, k, n, rate, torch.bfloat16)
                )
            except Exception as error:  # a shape that does not fit the device is a finding, not the end
                yield {"what": "kernel", "T": T, "batch": B, "shape": shape, "error": repr(error)[:200]}
                continue
            yield {
                "what": "kernel",
                "T": T,
                "batch": B,
                "shape": shape,
                "is_default": shape == default,
                "forward_share_of_copy": (2 + 4) * numbers / forward / copy,  # reads bfloat16, writes float32
                "backward_share_of_copy": (4 + 4 + 2) * numbers / back / copy,
            }
        leaky.TILE, leaky.NUM_WARPS, leaky.NUM_STAGES = default


def measure_training(placement: Placement, tiny: bool) -> Iterator[dict]:
    """Tokens per second of whole steps, both kinds, compiled and eager; share of the matrix rate."""
    rate = _matrix_rate(placement, 256 if tiny else 8192)
    yield {"what": "matrix product", "operations_per_second": rate}
    for T, batch in {64: 2}.items() if tiny else WINDOWS.items():
        steps, models, warm_up = {}, {}, {}
        for kind in KINDS:
            for mode in ("eager",) if tiny else ("eager", "compiled"):
                name = f"{kind} {mode}"
                models[name] = _model(kind, T, placement, tiny)
                compute = torch.compile(models[name]) if mode == "compiled" else models[name]
                steps[name] = _step(models[name], compute, batch, placement)
                warm_up[name] = _timed(steps[name])
        seconds = _interleaved(steps, ROUNDS)
        for name, model in models.items():
            per_second = batch * T / statistics.median(seconds[name])
            yield {
                "what": "train",
                "system": name,
                "parameters": count_parameters(model),
                "T": T,
                "batch": batch,
                "tokens_per_second": per_second,
                "share_of_matrix_rate": 3 * flops_per_token(model.config) * per_second / rate,
                "first_step_seconds": warm_up[name],
                "ratio_to_transformer": _ratio(seconds[f"transformer {name.split()[1]}"], seconds[name]),
            }


def measure_decoding(placement: Placement, tiny: bool) -> Iterator[dict]:
    """Seconds a token of a batch that goes on from a prompt of half a window."""
    T, batch, tokens = (64, 2, 4) if tiny else (512, DECODED_BATCH, 64)
    models = {kind: _model(kind, T, placement, tiny) for kind in KINDS}
    seconds = _interleaved({k: _decoder(m, placement, batch, tokens) for k, m in models.items()}, ROUNDS)
    for kind in KINDS:
        yield {
            "what": "decode",
            "system": kind,
            "batch": batch,
            "position": T // 2,
            "tokens_per_second": batch * tokens / statistics.median(seconds[kind]),
            "ratio_to_transformer": _ratio(seconds["transformer"], seconds[kind]),
        }


def _model(kind: str, T: int, placement: Placement, tiny: bool) -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(kind=kind, init="gpt2", context_length=T, **(TINY if tiny else FULL))
    return build_model(config).to(placement.device)


def _step(model: LanguageModel, compute: Callable, batch: int, placement: Placement) -> Callable[[], None]:
    train = TrainSection(batch_size=batch)
    optimizer = make_optimizer(model, train)
    shape = (batch, model.config.context_length + 1)
    windows = np.random.default_rng(0).integers(0, model.config.vocab_size, shape)

    def step() -> None:
        model.train()
        loss = backward(compute, windows, train, placement)
        update(model, optimizer, train, 1e-5, loss)

    return step


def _decoder(model: LanguageModel, placement: Placement, batch: int, tokens: int) -> Callable[[], Callable]:
    @torch.inference_mode()
    def prepare() -> Callable[[], None]:
        model.eval()
        cache, drawn = model.make_cache(), torch.zeros(batch, 1, dtype=torch.long, device=placement.device)
        with placement.autocast():
            model.hidden(drawn.expand(batch, model.config.context_length // 2), cache)

        @torch.inference_mode()
        def decode() -> None:
            following = drawn
            with placement.autocast():
                for _ in range(tokens):
                    following = model.head(model.hidden(following, cache)[:, -1]).argmax(-1)[:, None]

        return decode

    prepare.prepares = True
    return prepare


def _interleaved(systems: dict[str, Callable], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of each system in each round; one round more warms up. What prepares is called untimed first."""
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for round_number in range(rounds + 1):
        for name, work in systems.items():
            taken = _timed(work() if getattr(work, "prepares", False) else work)
            if round_number:
                seconds[name].append(taken)
    return seconds


def _ratio(base: list[float], own: list[float]) -> float:
    """Median over rounds of how many times as fast `own` is as `base`."""
    return statistics.median(b / o for b, o in zip(base, own, strict=True))


def _matrix_rate(placement: Placement, n: int) -> float:
    """Operations per second of a bfloat16 product of two n x n matrices."""
    a, b = (torch.randn(n, n, device=placement.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / statistics.median([_timed(lambda: a @ b) for _ in range(12)][2:])


def _device_seconds(work: Callable[[], object]) -> float:
    """Median seconds on the GPU, launch not counted, the caches emptied before each call."""
    from triton.testing import do_bench

    return do_bench(work, return_mode="median") / 1000


def _timed(work: Callable[[], object]) -> float:
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(_shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
