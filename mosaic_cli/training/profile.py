"""Where a step's time goes, by part of the model: torch's profiler, read by module names.

Each module's forward pass is a named range. What runs inside belongs to the innermost range. The operations of the
backward pass belong where the forward operation stands that recorded them: autograd numbers both alike.
"""

import itertools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

from mosaic_cli.core.model import LanguageModel, training_loss
from mosaic_cli.data.batches import Batch
from mosaic_cli.device import Placement
from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.loop import backward
from mosaic_cli.training.optimizer import make_optimizer, update

RANGE = "mosaic: "  # begins the names of our ranges
INPUT, BETWEEN, HEAD = "input", "between the parts", "head and loss"
CLIPPING, OPTIMIZER, OTHER = "norm and clipping of gradients", "optimizer", "other"
OPTIMIZER_RANGE = "Optimizer.step#"  # what torch itself calls it
WARM_UP = 2  # steps before any that count


@dataclass(frozen=True)
class PartTime:
    """One part's time a step, in seconds. On a GPU that of its kernels, on a CPU wall time."""

    part: str
    """Module names without the blocks' numbers, such as `contextual.keys.project`; a name holds what its inner modules
    do not. Or one of the parts around the model."""
    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Profile:
    """A mean step. The parts add up to `step_seconds`: what no range holds is the part `other`."""

    parts: list[PartTime]
    step_seconds: float
    """Wall time of a step while it was profiled."""
    plain_seconds: float
    """Median wall time of a step without the profiler."""


def profile_training(
    model: LanguageModel, batches: Iterator[Batch], train: TrainSection, placement: Placement, steps: int
) -> Profile:
    """Train for some steps at the lowest learning rate and tell where a step's time goes. The model is changed.

    Args:
        model: on the placement's device; not compiled, for a compiler merges parts.
        batches: as the recipe's stream gives them.
        steps: profiled steps. As many are timed without the profiler, in turn; before each of both is one that does
            not count. What the profiler keeps splits the free memory of large tensors, so that those of the next step
            come from the system, which clears them; and the first step under it is slower.
    """
    optimizer = make_optimizer(model, train)
    model.train()

    numbers = itertools.count()

    def step() -> float:
        started = time.perf_counter()
        model.begin_step(train.seed, next(numbers))
        with _range(INPUT):
            batch = next(batches)
        loss = backward(model, batch, train, placement, _loss_in_range)
        with _range(CLIPPING):
            update(model, optimizer, train, train.min_lr, loss).wait()
        _wait(placement)
        return time.perf_counter() - started

    for _ in range(WARM_UP):
        step()
    if placement.device.type == "cpu":  # PyTorch's profiler tells each beginning and end on stderr, above all levels
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if placement.device.type == "cuda" else [])]
    schedule = torch.profiler.schedule(wait=0, warmup=1, active=1, repeat=1)
    plain, profiled, times = [], [], _Times()
    for _ in range(steps):
        step()
        plain.append(step())
        with _named_ranges(model), torch.profiler.profile(activities=activities, schedule=schedule) as profiler:
            step()
            profiler.step()
            profiled.append(step())
            profiler.step()
        times.add(profiler.events(), on_gpu=placement.device.type == "cuda")
    parts, seconds = times.means(model, steps), statistics.fmean(profiled)
    other = seconds - sum(part.total for part in parts)
    return Profile([*parts, PartTime(OTHER, other, 0.0)], seconds, statistics.median(plain))


def _loss_in_range(model: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    with _range(HEAD):
        return training_loss(model, tokens, targets)


def _range(part: str) -> record_function:
    return record_function(RANGE + part)


@contextmanager
def _named_ranges(model: nn.Module) -> Iterator[None]:
    """Every module's forward pass becomes a range of its name, and `hidden`, which is no module's, one of its own."""
    hidden, open_ranges = model.hidden, []

    def enter(part: str) -> None:
        open_ranges.append(_range(part))
        open_ranges[-1].__enter__()

    def leave(*_: object) -> None:
        open_ranges.pop().__exit__(None, None, None)

    def hidden_in_range(*arguments: object) -> torch.Tensor:
        with _range(BETWEEN):
            return hidden(*arguments)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                part = _part_of(name)
                handle = module.register_forward_pre_hook(lambda *_, part=part: enter(part))
                hooks.callback(handle.remove)
                hooks.callback(module.register_forward_hook(leave).remove)
        model.hidden = hidden_in_range
        hooks.callback(delattr, model, "hidden")
        yield


def _part_of(name: str) -> str:
    """`blocks.3.contextual.keys` -> `contextual.keys`; a block itself does what stands between its parts."""
    words = name.split(".")
    inner = words[2:] if len(words) > 1 and words[1].isdigit() else words
    return ".".join(inner) or BETWEEN


class _Times:
    """Seconds by part, forward and backward, of all steps added so far."""

    def __init__(self):
        self._forward: dict[str, float] = defaultdict(float)
        self._backward: dict[str, float] = defaultdict(float)

    def add(self, events: list, on_gpu: bool) -> None:
        """Add what the profiler saw of a step."""
        on_host = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
        recorded = {}  # number of an autograd node -> the range that it was recorded in
        places = [(event, *_place(event)) for event in sorted(on_host, key=lambda event: event.time_range.start)]
        for event, part, node in places:
            if part is not None and node is None and event.sequence_nr >= 0:
                recorded[event.sequence_nr] = part  # the last operation to carry a number is the one that recorded it
        for event, part, node in places:
            seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
            if part is not None:
                self._forward[part] += seconds
            elif node in recorded:
                self._backward[recorded[node]] += seconds

    def means(self, model: nn.Module, steps: int) -> list[PartTime]:
        """Those of a step, for all parts that took any, in the model's order."""
        modules = (_part_of(name) for name, _ in model.named_modules() if name)
        order = dict.fromkeys([INPUT, *modules, BETWEEN, HEAD, CLIPPING, OPTIMIZER])
        times = [PartTime(part, self._forward[part] / steps, self._backward[part] / steps) for part in order]
        return [part for part in times if part.total > 0]


def _place(event) -> tuple[str | None, int | None]:
    """The innermost range that an event stands in, or the autograd node whose backward pass it belongs to."""
    while event is not None:
        if event.name.startswith(RANGE):
            return event.name.removeprefix(RANGE), None
        if event.name.startswith(OPTIMIZER_RANGE):
            return OPTIMIZER, None
        if event.name.startswith("autograd::engine::evaluate_function"):
            return None, event.sequence_nr
        event = event.cpu_parent
    return None, None


def _wait(placement: Placement) -> None:
    if placement.device.type == "cuda":
        torch.cuda.synchronize(placement.device)
