"""Ablation: the loss with memories taken away, against the model with its values changed by hand."""

import math
from statistics import fmean, stdev

import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model, next_token_loss
from mosaic_cli.device import Placement
from mosaic_cli.errors import DataError, NonFiniteError, UsageError
from mosaic_cli.probes.ablate import BATCH_TOKENS, ablate, every_memory, first_windows
from mosaic_cli.probes.edits import Edit, Memories, edited, resolve

KINDS = ["mosaic", "transformer"]
CPU = Placement(torch.device("cpu"), torch.float32, "for tests")
N, H, V, T = 2, 2, 17, 8


def _model(kind="mosaic"):
    return build_model(
        ModelConfig(kind=kind, num_layers=N, num_heads=H, d_model=8, num_slots=5, context_length=T, vocab_size=V)
    ).eval()


def _windows(count=3):
    return torch.randint(0, V, (count, T + 1), generator=torch.Generator().manual_seed(1))


def _one(model, windows, name, **options):
    (found,) = ablate(model, windows, [Memories.parse(name)], CPU, **options)
    return found


@torch.no_grad()
def _losses(model, windows, edits=()):
    """Mean loss of each window, edited by the edits' own machinery."""
    losses = []
    for window in windows:
        with edited(model, resolve(model, window[:-1].tolist(), list(edits))):
            losses.append(next_token_loss(model(window[None, :-1]), window[None, 1:]).item())
    return losses


@pytest.mark.parametrize(
    ("kind", "name"), [("mosaic", "L0.H1.ctx"), ("mosaic", "L1.H*.slot.2"), ("transformer", "L*.H0.ctx.3")]
)
@pytest.mark.parametrize(("method", "action"), [("drop", "delete"), ("zero", "scale")])
def test_dropping_is_deleting_and_zeroing_is_scaling_by_zero(kind, name, method, action):
    model, windows = _model(kind), _windows()
    found = _one(model, windows, name, method=method)
    before, after = _losses(model, windows), _losses(model, windows, [Edit(action, Memories.parse(name), factor=0.0)])
    assert found.baseline == pytest.approx(fmean(before), rel=1e-5)
    assert found.loss == pytest.approx(fmean(after), rel=1e-5)
    changes = [b - a for a, b in zip(before, after, strict=True)]
    half = 1.959964 * stdev(changes) / math.sqrt(3)
    assert found.change == pytest.approx(fmean(changes), abs=1e-5)
    assert found.interval == pytest.approx((fmean(changes) - half, fmean(changes) + half), abs=2e-5)


def test_the_methods_differ():
    model, windows = _model(), _windows()
    losses = {_one(model, windows, "L*.H0.ctx.2", method=method).loss for method in ("drop", "zero", "mean")}
    assert len({round(loss, 6) for loss in losses}) == 3


def test_the_mean_of_equal_values_changes_nothing():
    model, windows = _model(), _windows()
    with torch.no_grad():
        for block in model.blocks:
            block.persistent.slot_values[:] = block.persistent.slot_values[:, :1]
    assert abs(_one(model, windows, "L*.H*.slot", method="mean").change) < 1e-5
    assert abs(_one(model, windows, "L*.H*.slot", method="zero").change) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["drop", "zero", "mean"])
def test_distances_from_near_to_far_are_all(kind, method):
    model, windows = _model(kind), _windows()
    whole = _one(model, windows, "L0.H*.ctx", method=method).loss
    assert _one(model, windows, "L0.H*.ctx", method=method, distances=(1, T)).loss == pytest.approx(whole, abs=1e-6)
    assert abs(_one(model, windows, "L0.H*.ctx", method=method, distances=(T + 1, 99)).change) < 1e-5
    assert _one(model, windows, "L0.H*.ctx", method=method, distances=(2, 3)).loss != pytest.approx(whole, abs=1e-6)


def test_the_result_does_not_depend_on_the_batch(monkeypatch):
    model, windows = _model(), _windows(5)
    whole = list(ablate(model, windows, every_memory(model), CPU))
    monkeypatch.setattr("mosaic_cli.probes.ablate.BATCH_TOKENS", 1)
    for one, other in zip(whole, ablate(model, windows, every_memory(model), CPU), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5) and BATCH_TOKENS > 5 * T


def test_afterwards_the_model_is_what_it_was():
    model, windows = _model(), _windows()
    before = _losses(model, windows)
    next(ablate(model, windows, every_memory(model), CPU))
    assert _losses(model, windows) == before


def test_a_model_without_a_loss_is_told():
    model = _model()
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        ablate(model, _windows(), every_memory(model), CPU)


def test_one_window_has_no_interval():
    assert _one(_model(), _windows(1), "L0.H0.ctx").interval is None


def test_by_default_every_head_then_every_layer():
    names = [str(one) for one in every_memory(_model())]
    assert names[:4] == ["L0.H0.ctx", "L0.H1.ctx", "L1.H0.ctx", "L1.H1.ctx"] and names[4] == "L0.H0.slot"
    assert names[8:] == ["L0.H*.ctx", "L1.H*.ctx", "L0.H*.slot", "L1.H*.slot"]
    assert not any("slot" in str(one) for one in every_memory(_model("transformer")))


def test_windows_are_side_by_side(array_tokens):
    tokens = array_tokens(range(30))
    assert first_windows(tokens, 8, 2).tolist() == [list(range(9)), list(range(8, 17))]
    assert len(first_windows(tokens, 8, 99)) == 3
    with pytest.raises(DataError, match="one window needs 31"):
        first_windows(tokens, 30, 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("L0.H0.ctx", {"method": "burn"}, "not one of drop, zero, mean"),
        ("L2.H0.ctx", {}, "layers there are 2"),
        ("L0.H0.ctx.7", {}, "stored pairs there are 7"),
        ("L0.H0.slot", {"distances": (1, 2)}, "at no distance"),
        ("L0.H0.ctx", {"distances": (0, 2)}, "from 1 on"),
        ("L0.H0.ctx", {"distances": (3, 2)}, "from 1 on"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(name, options, message):
    with pytest.raises(UsageError, match=message):
        ablate(_model(), _windows(), [Memories.parse(name)], CPU, **options)
