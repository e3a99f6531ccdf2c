"""Decay groups, clipping, and the refusal of what is not finite."""

import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model
from mosaic_cli.errors import NonFiniteError
from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.optimizer import _step_on_device, make_optimizer, update

CONFIG = ModelConfig(num_layers=1, num_heads=2, d_model=8, context_length=4, vocab_size=5)


def test_scalars_and_norms_do_not_decay():
    model = build_model(CONFIG)
    decaying, steady = make_optimizer(model, TrainSection()).param_groups
    assert decaying["weight_decay"] == 0.1 and steady["weight_decay"] == 0
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decaying["params"]} == {"weight", "slot_keys", "slot_values"}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in steady["params"]} == {
        "leak",
        "peek",
        "scale",
        "bandwidth",
        "weight",
    }
    assert len(decaying["params"]) + len(steady["params"]) == len(names)


def test_update_reports_the_norm_before_clipping():
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = make_optimizer(model, TrainSection())
    model.weight.grad = torch.tensor([[30.0, 40.0]])
    assert update(model, optimizer, TrainSection(grad_clip=1.0), 0.1).wait()[1] == pytest.approx(50)
    assert model.weight.grad is None


@pytest.mark.parametrize(("loss", "gradient"), [(float("nan"), 1.0), (1.0, float("inf"))])
def test_nothing_is_updated_when_not_finite(loss, gradient):
    model = torch.nn.Linear(2, 1, bias=False)
    before = model.weight.detach().clone()
    model.weight.grad = torch.full((1, 2), gradient)
    figures = update(model, make_optimizer(model, TrainSection()), TrainSection(), 0.1, torch.tensor(loss))
    with pytest.raises(NonFiniteError):
        figures.wait()
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("grad_clip", [0.0, 1.0, 100.0])
def test_a_step_that_the_device_decides_on_is_the_same_step(grad_clip):
    models, train = [torch.nn.Linear(2, 1, bias=False) for _ in range(2)], TrainSection(grad_clip=grad_clip)
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizer(model, train) for model in models]
    for gradient in ([30.0, 40.0], [0.3, -0.4]):
        for model in models:
            model.weight.grad = torch.tensor([gradient])
        _, norm = update(models[0], optimizers[0], train, 0.1).wait()
        optimizers[1].param_groups[0]["lr"] = 0.1
        _step_on_device(optimizers[1], torch.tensor([0.0, norm]), grad_clip)
        torch.testing.assert_close(models[1].weight, models[0].weight)


def test_the_device_takes_no_step_when_not_finite():
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer, before = make_optimizer(model, TrainSection()), model.weight.detach().clone()
    model.weight.grad = torch.full((1, 2), torch.nan)
    _step_on_device(optimizer, torch.tensor([torch.nan, torch.nan]), 1.0)
    assert torch.equal(model.weight, before) and optimizer.state[model.weight]["step"] == 0
