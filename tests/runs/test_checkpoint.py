"""Checkpoints: everything comes back to the bit, nothing is half written, nothing damaged is read."""

import json

import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model
from mosaic_cli.errors import CheckpointError
from mosaic_cli.recipe import TrainSection
from mosaic_cli.runs.checkpoint import (
    TrainingState,
    load_model,
    load_training_state,
    save_checkpoint,
    verify_checkpoint,
)
from mosaic_cli.training.optimizer import make_optimizer, update

TRAIN = TrainSection(max_steps=4, warmup_steps=0)
STATE = TrainingState(step=7, tokens=70, data={"seed": 1, "epoch": 2, "position": 3}, best_step=5, best_val_loss=0.1)


def _trained(kind, seed=0):
    torch.manual_seed(seed)
    model = build_model(
        ModelConfig(kind=kind, num_layers=1, num_heads=2, d_model=8, num_slots=4, context_length=6, vocab_size=8)
    )
    optimizer = make_optimizer(model, TRAIN)
    model(torch.randint(0, 8, (2, 6))).square().mean().backward()
    update(model, optimizer, TRAIN, 1e-2)
    return model, optimizer


@pytest.fixture
def saved(tmp_path):
    model, optimizer = _trained("mosaic")
    return save_checkpoint(tmp_path, model, optimizer, STATE, "tokenizer")


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_everything_comes_back(tmp_path, kind):
    model, optimizer = _trained(kind)
    path = save_checkpoint(tmp_path, model, optimizer, STATE, "tokenizer")
    draws = torch.rand(3)
    other, other_optimizer = _trained(kind, seed=1)
    assert load_training_state(path, other, other_optimizer) == STATE
    assert torch.equal(torch.rand(3), draws), "the random generator too"
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, other_optimizer.state[theirs][key]), key


def test_a_model_alone_comes_back_ready_to_use(saved):
    model, config = load_model(saved)
    assert config["tokenizer"] == "tokenizer" and model.config.num_slots == 4 and not model.training
    original, _ = _trained("mosaic")
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), model.parameters(), strict=True))


def test_saving_again_takes_the_place_of_an_unfinished_one(saved, tmp_path):
    (saved / "state.json").unlink()
    (tmp_path / f".{saved.name}.tmp").mkdir()
    model, optimizer = _trained("mosaic")
    assert save_checkpoint(tmp_path, model, optimizer, STATE, "tokenizer") == saved
    assert verify_checkpoint(saved)["step"] == 7 and [path.name for path in tmp_path.iterdir()] == [saved.name]


@pytest.mark.parametrize("function", ["save_file", "write_atomically", "sync"])
def test_a_failed_save_leaves_nothing(saved, tmp_path, monkeypatch, function):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"mosaic_cli.runs.checkpoint.{function}", full)
    model, optimizer = _trained("mosaic")
    with pytest.raises(CheckpointError, match=r"step 8 could not be saved: .*No space left") as caught:
        save_checkpoint(tmp_path, model, optimizer, TrainingState(step=8), "tokenizer")
    assert "--resume" in caught.value.hint and [path.name for path in tmp_path.iterdir()] == [saved.name]


@pytest.mark.parametrize("change", [{"step": 8}, {"best_val_loss": None}, {"extra": 1}, {"sha256": {}}, {"sha256": 3}])
def test_an_altered_state_is_noticed(saved, change):
    path = saved / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match="is damaged"):
        verify_checkpoint(saved)


def test_another_model_s_checkpoint_does_not_fit(saved):
    model, optimizer = _trained("transformer")
    with pytest.raises(CheckpointError, match="does not fit the recipe's model"):
        load_training_state(saved, model, optimizer)
