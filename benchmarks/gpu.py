"""Kernels checked and measured on a GPU, and the mosaic's speed there beside the transformer's of equal size.

    python -m benchmarks.gpu [--only PART ...] [--windows T ...] [--out benchmarks/gpu.json]
    python -m benchmarks.gpu --page

Parts: `check`, the kernels against PyTorch in float64, and a small model on the device against the CPU; `kernels`,
their share of copy bandwidth; `train`, whole steps at 124 M parameters, of v2 too, compiled and eager, as tokens per
second and as a share of the matrix rate measured in the same run; `decode`, a token of a batch by recorded steps that
are compiled, by recorded steps, and plainly. Systems run in turn, several rounds. Takes some five minutes on one H200,
most of it compilation; `--windows` takes one length of windows, so that parts can be prepared side by side. `--tiny
--device cpu` walks through everything but kernels, compiling and recording in small, to see that the script runs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import interleaved, ratio, wait
from benchmarks.report import write_gpu_tables
from benchmarks.systems import build
from mosaic_cli.core import kernels, ops
from mosaic_cli.core import leaky as plain
from mosaic_cli.core.loss import chunk_tokens
from mosaic_cli.core.model import (
    LanguageModel,
    arrange_for_decoding,
    count_parameters,
    flops_per_token,
    training_loss,
)
from mosaic_cli.data.batches import Batch
from mosaic_cli.decoding import RecordedStep, cuda_graph, plain_step
from mosaic_cli.device import Placement, choose_placement, machine_words
from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.loop import backward
from mosaic_cli.training.optimizer import make_optimizer, update

KINDS = ("transformer", "mosaic")
TRAINED = (*KINDS, "mosaic v2")
FULL = {"num_layers": 12, "num_heads": 12, "d_model": 768, "num_slots": 2688, "vocab_size": 50304}
TINY = {"num_layers": 1, "num_heads": 2, "d_model": 16, "num_slots": 56, "vocab_size": 64}
CHECKED = {"num_layers": 2, "num_heads": 4, "d_model": 256, "num_slots": 896, "vocab_size": 1024, "context_length": 300}
BATCHES = {512: 64, 2048: 16}  # tokens of a window, and windows of a step
DECODED_BATCH = 64
ROUNDS = 7
STEPS = 4  # of training in a round, one behind the other: `mosaic train` does not wait for a step either
Row = dict[str, object]


def main() -> None:
    """Check, measure, print a line a row, write the JSON file; exits with 1 when a kernel is wrong."""
    parts = {"check": check_kernels, "kernels": measure_kernels, "train": measure_training, "decode": measure_decoding}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), metavar="PART")
    parser.add_argument("--windows", nargs="+", type=int, choices=BATCHES, default=list(BATCHES), metavar="T")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "gpu.json")
    parser.add_argument("--page", action="store_true", help="only write what --out holds into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.page:
        write_gpu_tables(json.loads(arguments.out.read_text()))
        return
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("the sizes are a GPU's: with --device cpu give --tiny")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that PyTorch can use; to try the script: --device cpu --tiny")
    placement = choose_placement(arguments.device, "bfloat16")
    if placement.device.type == "cuda" and not kernels.HAS_TRITON:
        parser.error("Triton is not installed: pip install triton")
    started, rows, device = time.perf_counter(), [], machine_words(placement.device)
    for part in arguments.only:
        for row in parts[part](placement, {64: 2} if arguments.tiny else {T: BATCHES[T] for T in arguments.windows}):
            rows.append(row)
            print("  ".join(f"{name} {_shown(value)}" for name, value in row.items()), flush=True)
            report = {"device": device, "torch": torch.__version__, "tiny": arguments.tiny, "rows": rows}
            arguments.out.write_text(json.dumps(report, indent=2) + "\n")  # what was measured stays, whatever follows
    print(f"{time.perf_counter() - started:.0f} s, written: {arguments.out}")
    if not all(row.get("right", True) for row in rows):
        raise SystemExit("a kernel differs from PyTorch: see the rows that are not right")


def check_kernels(placement: Placement, batches: dict[int, int]) -> Iterator[Row]:
    """Largest differences between kernels and float64, of values and each gradient, relative to the largest value."""
    if placement.device.type != "cuda":
        yield {"what": "check", "skipped": "kernels need a GPU; tests/core/kernels runs them interpreted"}
        return
    from mosaic_cli.core.kernels import decoding, gated

    torch.manual_seed(0)
    for T, D, dtype in ((31, 64, torch.float32), (2047, 64, torch.float32), (512, 64, torch.bfloat16),
                        (300, 40, torch.bfloat16), (300, 128, torch.bfloat16)):  # fmt: skip
        x = torch.randn(2, T, 3, D, device=placement.device).to(dtype).requires_grad_()
        rate, gamma, alpha = (
            torch.tensor(scalars, device=placement.device, requires_grad=True)
            for scalars in ([0.0, 0.05, 4.0], [0.3, 0.9, 1.4], [0.5, 1.0, 3.0])
        )
        gate = torch.full((2, T, 3), 50.0, device=placement.device)  # equal gates, whatever their size, cancel
        for name, fast, slow, inputs in (
            ("keys", plain.leaky_keys, _averaged_keys, (x, rate)),
            ("average", plain.leaky_average, _averages, (x, rate)),
            (
                "gated keys",
                lambda x, r, g=gate: gated.gated_keys(x, g, (-r).expand_as(g))[0],
                _averaged_keys,
                (x, rate),
            ),
            ("values", lambda c, *s: ops.peeked_values(c.transpose(1, 2), *s), _values, (x, gamma, alpha)),
        ):
            yield _checked(f"check {name}", fast, slow, inputs) | {"T": T, "D": D, "dtype": str(dtype)}
    beta, alpha = (torch.tensor(n, device=placement.device) for n in ([0.5, 2.0, 30.0], [1.0, 0.1, 3.0]))
    for stored in (1, 100, 1024):
        queries, keys, values = (torch.randn(2, 3, n, 64, device=placement.device) for n in (1, 1024, 1024))
        newest = torch.tensor([stored - 1], device=placement.device)
        read = decoding.attend_stored(queries, keys, values, beta[:, None], newest)
        scores = queries.double() * beta[:, None, None] @ keys[:, :, :stored].double().mT
        error = _error(read, torch.softmax(scores, -1) @ values[:, :, :stored].double())
        yield {"what": "check read of stored pairs", "errors": [error], "right": error < 1e-4, "stored": stored}
    for texts, dtype, tolerance in ((1, torch.float32, 1e-4), (65, torch.bfloat16, 2e-2)):
        queries = torch.nn.functional.normalize(torch.randn(texts, 3, 1, 64, device=placement.device), dim=-1)
        slots = [torch.randn(3, 1000, 64, device=placement.device).to(dtype) for _ in range(2)]
        read = decoding.attend_slots(queries, *slots, beta, alpha)
        exact = ops.slot_read(*(tensor.double() for tensor in (queries, *slots, beta, alpha)))
        error = _error(read, exact)
        yield {"what": "check read of slots", "errors": [error], "right": error < tolerance, "texts": texts}

    for kind in KINDS:
        yield from _check_model(kind, placement)
    for name in TRAINED:
        yield from _check_gradients(name, placement)


def _check_model(kind: str, placement: Placement) -> Iterator[Row]:
    """A small model's logits, whole and by recorded steps behind a prompt, beside those of float64 on the CPU."""
    prompt, exactly = 200, Placement(placement.device, torch.float32, "to be compared")
    model = build(kind, CHECKED, torch.device("cpu")).model.eval()
    tokens = torch.randint(0, CHECKED["vocab_size"], (3, CHECKED["context_length"]))
    with torch.inference_mode():
        exact = model.double()(tokens)
        model.float().to(placement.device)
        on_device = tokens.to(placement.device)
        found = {"whole": (model(on_device), exact)}
        for way, compiled in (("recorded", False), ("recorded, compiled", True)):
            cache = model.make_cache()
            model(on_device[:, :prompt], cache)
            step = RecordedStep(model, cache, exactly, compiled=compiled)
            logits = [step(token).clone() for token in on_device[:, prompt:].T]
            found[way] = torch.stack(logits, dim=1), exact[:, prompt:]
    for way, (logits, truth) in found.items():
        error = _error(logits.cpu(), truth)
        yield {"what": f"check {kind}, {way}", "errors": [error], "right": error < 1e-4}


def _check_gradients(name: str, placement: Placement) -> Iterator[Row]:
    """A small model's gradient, eager and compiled, beside that of float64 on the CPU. Logits are in two chunks."""
    model, T = build(name, CHECKED, torch.device("cpu")).model.train(), CHECKED["context_length"]
    tokens, targets = torch.randint(0, CHECKED["vocab_size"], (2, 2 * chunk_tokens(placement.device) // T, T))

    def gradient(loss: Callable, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        model.to(device, dtype)
        value = loss(model, tokens.to(device), targets.to(device)) / targets.numel()
        parts = torch.autograd.grad(value, list(model.parameters()))
        return torch.cat([part.flatten().double().cpu() for part in parts])

    exact = gradient(training_loss, torch.device("cpu"), torch.float64)
    for way, loss in (("eager", training_loss), ("compiled", torch.compile(training_loss))):
        error = ((gradient(loss, placement.device, torch.float32) - exact).norm() / exact.norm()).item()
        yield {"what": f"check {name}, {way} gradient", "errors": [error], "right": error < 1e-3}


def _averages(x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    """The definition in float64, by the whole matrix of decays: (B, T, H, D) -> (B, H, T, D)."""
    steps = torch.arange(x.shape[1], device=x.device)
    decays = torch.exp(-rate[:, None, None] * (steps[:, None] - steps).clamp(min=0)).tril()  # (H, T, T)
    return decays @ x.transpose(1, 2)


def _averaged_keys(x: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    averages = _averages(x, rate)
    return averages / averages.norm(dim=-1, keepdim=True)


def _values(content: torch.Tensor, gamma: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    content, gamma, alpha = content.transpose(1, 2), gamma[:, None, None], alpha[:, None, None]
    mixed = gamma * content[:, :, :-1] + (1 - gamma) * content[:, :, 1:]
    return alpha * mixed / mixed.norm(dim=-1, keepdim=True)


def _checked(what: str, fast: Callable, slow: Callable, inputs: tuple[torch.Tensor, ...]) -> Row:
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found, truth = fast(*inputs), slow(*exact)
    weights = torch.randn_like(truth).to(found.dtype)
    pairs = [(found, truth)]
    pairs += zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(truth, exact, weights.double()), strict=True
    )
    errors = [_error(a, b) for a, b in pairs]
    # the gradients by scalars are sums of 10^5 terms of either sign, of which little may be left
    return {"what": what, "errors": errors, "right": max(errors) < (1e-3 if inputs[0].dtype == torch.float32 else 2e-2)}


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-2)).item()


def measure_kernels(placement: Placement, batches: dict[int, int]) -> Iterator[Row]:
    """Bytes per second of the kernels of keys and values as a share of what copying reaches. Counted are the bytes that
    must move: content and results, gradients and what was kept for them, all in bfloat16."""
    if placement.device.type != "cuda":
        return
    from triton.testing import do_bench

    source = torch.empty(2**29, device=placement.device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    # not recorded: a graph copies in another way, more slowly
    copy = 2 * source.nbytes / do_bench(lambda: target.copy_(source), return_mode="median") * 1000
    yield {"what": "copy", "bytes_per_second": copy}
    for T, B in batches.items():
        nbytes = torch.bfloat16.itemsize * B * T * FULL["d_model"]
        for name, ways in _kernels(placement.device, B, T).items():
            row = {"what": f"kernel of {name}", "T": T, "batch": B}
            for way, moved, work in zip(("forward", "backward"), (2, 3), ways, strict=True):
                row[f"{way}_seconds"] = _device_seconds(work)
                row[f"{way}_share_of_copy"] = moved * nbytes / row[f"{way}_seconds"] / copy
            yield row


def _kernels(device: torch.device, B: int, T: int) -> dict[str, tuple[Callable, Callable]]:
    """What moves two tensors of B * T tokens at least (forward), and three (backward)."""
    from mosaic_cli.core.kernels import leaky, values

    # no head of `FULL` begins with a rate below 0.5, and those that forget more slowly read more
    rate, gamma, alpha = (torch.full((12,), number, device=device) for number in (0.3, 0.6, 1.0))
    x, by_keys = (torch.randn(B, T, 12, 64, device=device, dtype=torch.bfloat16) for _ in range(2))
    by_values = torch.randn(B, T - 1, 12, 64, device=device, dtype=torch.bfloat16)
    keys, lengths = leaky._leaky_rows(x, rate, None, True, x.dtype)
    target = torch.empty_like(x)
    return {
        "keys": (
            lambda: leaky._leaky_rows(x, rate, None, True, x.dtype),
            lambda: leaky._leaky_rows_backward(by_keys, keys, lengths, rate, True, x.dtype),
        ),
        "values": (
            lambda: values._peeked_rows(x, gamma, alpha),
            lambda: values._peeked_rows_backward(by_values, x, gamma, alpha),
        ),
        "a copy, and a sum of two": (lambda: target.copy_(x), lambda: torch.add(x, by_keys, out=target)),
    }


def measure_training(placement: Placement, batches: dict[int, int]) -> Iterator[Row]:
    """Tokens per second of whole steps, both kinds, compiled and eager; share of the matrix rate."""
    on_gpu = placement.device.type == "cuda"
    for T, batch in batches.items():
        for mode in ("compiled", "eager") if on_gpu else ("eager",):
            torch.compiler.reset()  # lest the second T be compiled as one that varies
            steps, models, warm_up = {}, {}, {}
            for name in TRAINED:
                models[name] = _model(name, T, placement)
                loss = torch.compile(training_loss) if mode == "compiled" else training_loss
                steps[name] = _steps(models[name], loss, batch, placement)
                warm_up[name] = _timed(lambda first=steps[name]: first(1))
            rate = _matrix_rate(placement, 8192 if on_gpu else 256)
            yield {"what": "matrix product", "operations_per_second": rate}
            several = {name: lambda many=many: lambda: many(STEPS) for name, many in steps.items()}
            seconds = interleaved(several, ROUNDS)
            for name, model in models.items():
                per_second = STEPS * batch * T / statistics.median(seconds[name])
                yield {
                    "what": "train",
                    "system": f"{name} {mode}",
                    "parameters": count_parameters(model),
                    "T": T,
                    "batch": batch,
                    "tokens_per_second": per_second,
                    "share_of_matrix_rate": 3 * flops_per_token(model.config) * per_second / rate,
                    "first_step_seconds": warm_up[name],
                    "ratio_to_transformer": ratio(seconds["transformer"], seconds[name]),
                }


def measure_decoding(placement: Placement, batches: dict[int, int]) -> Iterator[Row]:
    """Tokens per second of a batch, and of a single text, that go on from a prompt of half a window."""
    if placement.device.type == "cuda":
        ways = {"recorded, compiled": {"compiled": True}, "recorded": {}, "plain": {}}
        shapes = [(T, DECODED_BATCH, ways) for T in batches] + [(max(batches), 1, {"recorded": {}, "plain": {}})]
    else:
        shapes = [(T, batch, {"plain": {}}) for T, batch in batches.items()]
    for T, batch, ways in shapes:
        for way, options in ways.items():
            torch.compiler.reset()
            tokens = (T // 2 - 1) // (ROUNDS + 1)  # of a round; all rounds end within the window
            decoders = {
                kind: _decoder(_model(kind, T, placement), placement, batch, tokens, way, options) for kind in KINDS
            }
            seconds = interleaved({kind: lambda decode=decode: decode for kind, decode in decoders.items()}, ROUNDS)
            for kind in KINDS:
                yield {
                    "what": "decode",
                    "system": f"{kind} {way}",
                    "batch": batch,
                    "from": T // 2,
                    "to": T,
                    "tokens_per_second": batch * tokens / statistics.median(seconds[kind]),
                    "ratio_to_transformer": ratio(seconds["transformer"], seconds[kind]),
                }


def _model(name: str, T: int, placement: Placement) -> LanguageModel:
    size = FULL if placement.device.type == "cuda" else TINY
    return build(name, size | {"context_length": T}, placement.device).model


def _steps(model: LanguageModel, loss: Callable, batch: int, placement: Placement) -> Callable[[int], None]:
    train = TrainSection(batch_size=batch)
    optimizer = make_optimizer(model, train)
    shape = (batch, model.config.context_length + 1)
    windows = Batch.of_windows(np.random.default_rng(0).integers(0, model.config.vocab_size, shape))
    model.train()

    def many(steps: int) -> None:
        for _ in range(steps):
            figures = update(model, optimizer, train, 1e-5, backward(model, windows, train, placement, loss))
        figures.wait()

    return many


@torch.inference_mode()
def _decoder(
    model: LanguageModel, placement: Placement, batch: int, tokens: int, way: str, options: dict[str, bool]
) -> Callable[[], None]:
    """Reads half a window; then so many tokens more at each call, greedily."""
    arrange_for_decoding(model.eval(), placement.dtype)
    cache, drawn = model.make_cache(), torch.zeros(batch, dtype=torch.long, device=placement.device)
    with placement.autocast():
        model.hidden(drawn[:, None].expand(-1, model.config.context_length // 2), cache)
    step = plain_step(model, cache, placement) if way == "plain" else RecordedStep(model, cache, placement, **options)
    step(drawn)

    @torch.inference_mode()
    def decode() -> None:
        following = drawn
        for _ in range(tokens):
            following = step(following).argmax(-1)

    return decode


def _matrix_rate(placement: Placement, n: int) -> float:
    """Operations per second of a bfloat16 product of two n x n matrices."""
    a, b = (torch.randn(n, n, device=placement.device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / statistics.median([_timed(lambda: a @ b) for _ in range(12)][2:])


def _device_seconds(work: Callable[[], object]) -> float:
    """Median seconds on the GPU of work that is recorded, so that launches are not counted; caches are emptied before
    each call."""
    from triton.testing import do_bench

    work()
    wait()
    return do_bench(cuda_graph(work), return_mode="median") / 1000


def _timed(work: Callable[[], object]) -> float:
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(_shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
