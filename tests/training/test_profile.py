"""Profiles: every module that computes has its part, forward and backward, and the parts add up to the step."""

import numpy as np
import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model
from mosaic_cli.data.batches import Batch
from mosaic_cli.device import choose_placement
from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.profile import profile_training

AROUND = {"input", "head and loss", "norm and clipping of gradients", "optimizer", "other"}


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("mosaic", {"contextual.keys", "contextual.values.project", "contextual.read", "persistent.read", "norm"}),
        ("transformer", {"attention.read", "mlp", "mlp.project", "norm"}),
    ],
)
def test_the_parts_are_the_model_s_and_add_up(kind, parts, capfd):
    config = {"num_layers": 2, "num_heads": 2, "d_model": 8, "num_slots": 4, "context_length": 16, "vocab_size": 11}
    model = build_model(ModelConfig(kind=kind, **config))
    batches = (Batch.of_windows(np.full((4, 17), number % 11)) for number in range(100))
    profile = profile_training(model, batches, TrainSection(batch_size=4), choose_placement("cpu", "float32"), 2)
    times = {part.part: part for part in profile.parts}
    assert set(times) >= AROUND | parts | {"embedding"}
    assert all(times[part].forward > 0 and times[part].backward > 0 for part in parts | {"head and loss"})
    assert sum(part.total for part in profile.parts) == pytest.approx(profile.step_seconds)
    assert 0 < times["other"].total < 0.5 * profile.step_seconds
    assert not capfd.readouterr().err, "PyTorch's profiler talks"
    assert next(batches).inputs[0, 0] == 10, "two steps warm up; two are profiled, two timed plainly, one before each"
    assert "hidden" not in vars(model) and not any(module._forward_hooks for module in model.modules())


def test_time_goes_to_the_part_that_takes_it():
    class Slow(torch.nn.Module):  # by few long operations: what autograd does between operations belongs to no part
        def forward(self, x):
            return (x.unsqueeze(-1) * torch.ones(2**15)).exp().mean(-1)

    config = {"num_layers": 2, "num_heads": 2, "d_model": 8, "num_slots": 4, "context_length": 16, "vocab_size": 11}
    model = build_model(ModelConfig(**config))
    for block in model.blocks:
        block.persistent.output = Slow()
    batches = (Batch.of_windows(np.zeros((4, 17), dtype=np.int64)) for _ in range(100))
    profile = profile_training(model, batches, TrainSection(batch_size=4), choose_placement("cpu", "float32"), 2)
    forward, backward = (max(profile.parts, key=lambda p, key=key: getattr(p, key)) for key in ("forward", "backward"))
    assert forward.part == backward.part == "persistent.output"
