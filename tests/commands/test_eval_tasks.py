"""Built-in tasks through the command line: prepared as rows, trained on, resumed exactly, evaluated."""

import json

import pytest

from mosaic_cli.data.tasks import regbench

TINY = {
    "model.num_layers": 1,
    "model.d_model": 8,
    "model.num_slots": 4,
    "train.max_steps": 2,
    "train.warmup_steps": 1,
    "train.batch_size": 4,
    "train.micro_batch_size": 2,
    "train.eval_interval": 1,
    "train.save_interval": 1,
    "train.eval_tokens": 500,
    "train.device": "cpu",
}


def _flags(**changes):
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, value in values.items() for word in ("-s", f"{key}={value}")]


@pytest.fixture(scope="module")
def few():
    """Few of the held-out problems, so that reading all of them takes no time."""
    held_out = regbench._held_out()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regbench, "_held_out", lambda: (*held_out[:6], *held_out[500:504]))
        patch.setattr(regbench, "NUM_VALIDATION", 6)
        yield


def test_regbench_from_the_recipe_to_the_table(workdir, mosaic, few):
    flags = _flags(model__num_heads=2, data__num_documents=8, data__dir="data/r")
    assert mosaic("train", "regbench-100", *flags, "--run", "r").code == 0
    lines = [json.loads(line) for line in (workdir / "runs/r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and lines[0]["val_tokens"] < lines[1]["val_tokens"]

    result = mosaic("eval", "--ckpt", "r", "--on", "regbench", "--json", "--min", "accuracy=0")
    own, bigram, trigram = result.json["results"]
    assert (own["kind"], bigram["ckpt"], trigram["kind"]) == ("mosaic", "2-gram", "n-gram")
    assert own["languages"] == 4 and own["positions"] == trigram["positions"]
    assert own["interval"][0] <= own["accuracy"] <= own["interval"][1] and own["tvd_interval"][0] <= own["tvd"] <= 1
    assert trigram["accuracy"] > own["accuracy"] and trigram["tvd"] < own["tvd"], "two steps teach nothing"
    missed = mosaic("eval", "--ckpt", "r", "--on", "regbench", "--min", "accuracy=1")
    assert missed.code == 3 and "3-gram" in missed.out

    (row,) = mosaic("eval", "--ckpt", "r", "--by-position", "--json").json["results"]
    assert row["bits_per_byte"] is None and len(row["positions"]) == len(row["loss_by_position"])
    assert "perplexity" in mosaic("eval", "--ckpt", "r").out
    assert mosaic("eval", "--ckpt", "r", "--context", "8").code == 2
    assert mosaic("eval", "--ckpt", "r", "--on", "mqar").code == 2
    assert mosaic("probe", "patterns", "--ckpt", "r").code == 2


def test_lists_asked_back(workdir, mosaic):
    flags = _flags(data__num_documents=20, data__dir="data/m")
    for name in ("induction", "induction-transformer"):
        assert mosaic("train", name, *flags).code == 0
    result = mosaic("eval", "--ckpt", "induction", "--ckpt", "induction-transformer", "--on", "induction", "--json")
    own, twin = result.json["results"]
    assert own["answers"] == twin["answers"] == sum(row["n"] for row in own["by_size"] if row["trained"])
    assert [row["size"] for row in own["by_size"]] == [4, 8, 16, 32, 64]
    assert all(row["unread"] == 0 for row in own["by_size"]) and own["accuracy_beyond"] is not None
    assert twin["accuracy_beyond"] is None and twin["by_size"][-1] | {"n": 0, "mean": None} == twin["by_size"][-1]
    table = mosaic("eval", "--ckpt", "induction-transformer", "--on", "induction").out
    assert "64 letters (untrained)" in table and "beyond its context" in table


def test_a_run_on_rows_is_resumed_exactly(workdir, mosaic):
    flags = _flags(model__dropout=0.1, train__max_steps=4, data__num_documents=7, data__dir="data/m")
    assert mosaic("train", "mqar", *flags, "--run", "whole").code == 0
    assert mosaic("train", "mqar", *flags, "--run", "parts", "--time-limit", "0s").code == 0
    assert mosaic("train", "mqar", *flags, "--run", "parts", "--resume").code == 0
    one, other = (workdir / f"runs/{name}/checkpoints/step-00000004" for name in ("whole", "parts"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_task_is_prepared_by_its_name_alone(workdir, mosaic):
    result = mosaic("prepare", "builtin:mqar", "--num-documents", 3, "--json")
    rows = result.json["manifest"]["rows"]
    assert result.json["data"] == "data/mqar" and rows["longest"] == 65 and len(rows["ignored"]) == 64
    assert mosaic("prepare", "--verify", "data/mqar").code == 0


def test_a_task_of_other_tokens_is_refused(workdir, refused):
    error = refused(2, "prepare", "builtin:mqar", "--tokenizer", "bpe")
    assert "the task mqar are chars" in error["message"] and error["where"] == "data.tokenizer"
