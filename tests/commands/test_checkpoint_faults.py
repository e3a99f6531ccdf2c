"""Runs and checkpoints that are damaged, incomplete, from the future or somewhere else."""

import hashlib
import json
from pathlib import Path

import pytest

from mosaic_cli.files import dump_json

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.json")
LATEST = "runs/tiny/checkpoints/step-00000008"


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _alter(path):
    content = bytearray(path.read_bytes())
    at = content.index(b"5") if path.suffix == ".json" else len(content) - 3
    content[at] ^= 1  # 5 becomes 4: still JSON
    path.write_bytes(content)


def _delete(path):
    path.unlink()


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [_cut, _alter, _delete, _empty])
def test_a_damaged_checkpoint_is_not_used(world, refused, name, damage):
    damage(world / LATEST / name)
    for arguments in (("generate", "--ckpt", LATEST, "a"), ("train", "--resume", "--run", "tiny", "--steps", "10")):
        error = refused(1, *arguments)
        assert name in error["message"] and LATEST in error["where"] and "RUN@STEP" in error["hint"]


def test_the_ways_out_of_a_damaged_checkpoint(world, refused, mosaic):
    _cut(world / LATEST / "model.safetensors")
    refused(1, "eval", "--ckpt", "tiny")
    assert mosaic("eval", "--ckpt", "tiny@6").code == 0, "the one that the hint names"
    (world / "runs" / "tiny" / "checkpoints" / "latest").write_text("step-00000006\n")
    assert mosaic("train", "--resume", "--run", "tiny", "--steps", "10").code == 0, "and the other one"


def _rewrite(name, **values):
    """Change a checkpoint's JSON and make its hashes fit, as another version of the toolkit would."""
    path, state_path = Path(LATEST) / name, Path(LATEST) / "state.json"
    path.write_text(dump_json(json.loads(path.read_text()) | values))
    state = json.loads(state_path.read_text())
    hashes = state.pop("sha256")
    hashes["config.json"] = hashlib.sha256((Path(LATEST) / "config.json").read_bytes()).hexdigest()
    hashes["state.json"] = hashlib.sha256(dump_json(state).encode()).hexdigest()
    state_path.write_text(dump_json(state | {"sha256": hashes}))


@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_a_newer_checkpoint_is_refused(world, refused, name):
    _rewrite(name, format_version=99)
    error = refused(1, "eval", "--ckpt", "tiny")
    assert f"{name} has format version 99, this toolkit reads up to 1" in error["message"]
    assert "newer version" in error["hint"]


def test_a_newer_run_is_refused(world, refused):
    path = world / "runs" / "tiny" / "run.json"
    path.write_text(dump_json(json.loads(path.read_text()) | {"format_version": 99}))
    for arguments in (("eval", "--ckpt", "tiny"), ("train", "--resume", "--run", "tiny", "--steps", "10")):
        error = refused(1, *arguments)
        assert "run.json has format version 99" in error["message"] and error["hint"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"kind": "rnn"}, "'rnn'"),
        ({"num_layers": 2}, "Missing key"),
        ({"d_model": 7}, "not a multiple of num_heads"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(world, refused, model, message):
    config = json.loads((world / LATEST / "config.json").read_text())
    _rewrite("config.json", model=config["model"] | model)
    error = refused(1, "eval", "--ckpt", "tiny")
    assert "the checkpoint does not fit" in error["message"] and message in error["message"]


def test_the_tokenizer_must_be_the_run_s_own(world, refused, mosaic):
    assert mosaic("prepare", "text.txt", "--tokenizer", "byte", "--out", "data/byte").code == 0
    (world / "data" / "byte" / "tokenizer.json").replace(world / "runs" / "tiny" / "tokenizer.json")
    error = refused(1, "generate", "--ckpt", "tiny", "a")
    assert "tokenizer.json is not the one" in error["message"] and "runs/tiny/tokenizer.json" in error["where"]


@pytest.mark.parametrize("damage", [_cut, _delete])
def test_a_damaged_tokenizer(world, refused, damage):
    damage(world / "runs" / "tiny" / "tokenizer.json")
    error = refused(1, "generate", "--ckpt", "tiny", "a")
    assert "tokenizer" in error["message"] and "runs/tiny/tokenizer.json" in error["where"]


def test_a_damaged_run(world, refused):
    _cut(world / "runs" / "tiny" / "run.json")
    assert "run.json cannot be read" in refused(1, "eval", "--ckpt", "tiny")["message"]
    (world / "runs" / "gpt" / "metrics.jsonl").write_text("{}}\n")
    error = refused(1, "train", "--resume", "--run", "gpt", "--steps", "10")
    assert "metrics.jsonl is damaged" in error["message"] and "Delete" in error["hint"]


def test_a_run_without_a_checkpoint_yet(world, refused, mosaic):
    for name in ("best", "latest"):
        (world / "runs" / "tiny" / "checkpoints" / name).unlink()
    assert "has no checkpoint yet" in refused(2, "eval", "--ckpt", "tiny")["message"]
    assert "has no checkpoint best" in refused(2, "eval", "--ckpt", "tiny@best")["message"]
    assert mosaic("train", "--resume", "--run", "tiny").code == 0, "it begins at the first step"


def test_a_pointer_to_nowhere(world, refused):
    (world / "runs" / "tiny" / "checkpoints" / "best").write_text("step-00000099\n")
    assert "Steps saved: 6, 8" in refused(2, "eval", "--ckpt", "tiny")["hint"]


def test_a_checkpoint_outside_of_a_run(world, refused):
    (world / LATEST).rename(world / "lone")
    error = refused(1, "eval", "--ckpt", "lone")
    assert "outside of a run" in error["message"] and "tokenizer.json" in error["hint"]


def test_a_finished_run_without_its_metrics_or_tokenizer_is_taken_up(world, mosaic):
    run = world / "runs" / "tiny"
    (run / "metrics.jsonl").unlink()
    tokenizer = (run / "tokenizer.json").read_bytes()
    (run / "tokenizer.json").unlink()
    taken_up = mosaic("train", "--resume", "--run", "tiny", "--json")
    assert taken_up.code == 0 and json.loads(taken_up.out)["train_loss"] is None
    assert (run / "tokenizer.json").read_bytes() == tokenizer


def test_going_on_from_an_earlier_checkpoint_whose_best_is_gone(world, mosaic, refused):
    checkpoints = world / "runs" / "tiny" / "checkpoints"
    state = json.loads((checkpoints / "step-00000008" / "state.json").read_text())
    assert state["best_step"] == 8, "the newest is the best here"
    (checkpoints / "best").write_text("step-00000008\n")
    (checkpoints / "latest").write_text("step-00000006\n")
    earlier = json.loads((checkpoints / "step-00000006" / "state.json").read_text())
    assert earlier["best_step"] != 8 and not (checkpoints / f"step-{earlier['best_step']:08d}").exists()
    assert mosaic("train", "--resume", "--run", "tiny", "--steps", "7").code == 0
    assert mosaic("generate", "--ckpt", "tiny", "a").code == 0
