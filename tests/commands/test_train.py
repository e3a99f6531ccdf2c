"""`mosaic train` beyond the happy path: what it reports, what a resumed run may change, and how it fails."""

import errno
import json
import os
import signal
from contextlib import contextmanager

import pytest

from mosaic_cli.training.loop import Trainer

NEW = ("train", "tiny.yaml", "--run", "new")
PROMISED = {
    "run",
    "steps",
    "tokens",
    "parameters",
    "train_loss",
    "val_loss",
    "seconds",
    "tokens_per_second",
    "data_source",
}


def _info(run):
    return json.loads((run / "run.json").read_text())


@contextmanager
def _disk_full_after(allowed, name=""):
    """The disk is full when, after some, one more file is opened for writing whose name holds `name`."""
    opened = []

    def full_open(file, mode="r", *args, **kwargs):
        if mode in ("w", "a") and name in str(file):
            opened.append(file)
            if len(opened) > allowed:
                raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return open(file, mode, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("files", "runs.directory"):
            patch.setattr(f"mosaic_cli.{module}.open", full_open, raising=False)
        yield


def test_json_holds_what_is_promised_and_nothing_else_is_on_stdout(world, mosaic):
    result = mosaic(*NEW, "--json")
    assert result.code == 0 and result.json.keys() >= PROMISED | {"schema"}
    values = result.json
    assert values["schema"] == "mosaic.train/1" and values["run"] == "runs/new" and values["steps"] == 8
    assert values["tokens"] == 8 * 4 * 8 and values["data_source"] == "files: text.txt"
    assert "step 8: validation loss" in result.err
    assert mosaic("train", "gpt.yaml", "--run", "plain").out == "runs/plain\n"


def test_a_dry_run_counts_what_the_machine_cannot_hold(world, mosaic):
    huge = ("--set", "model.d_model=1048576", "--set", "model.num_heads=16", "--dry-run")
    cost = mosaic(*NEW, *huge, "--json").json
    assert cost["state_bytes"] == 16 * cost["parameters"] > 2**45 and cost["seconds"] is None
    told = mosaic(*NEW, *huge).out
    assert "not measured: more than this machine's memory" in told and "Time from" not in told


def test_a_dry_run_trains_nothing(world, mosaic):
    result = mosaic(*NEW, "--set", "data.dir=data/other", "--steps", 20, "--dry-run", "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.train-dry-run/1"
    assert ["train.max_steps", "20", "flag"] in result.json["recipe"]
    assert result.json["parameters"] > 0 and result.json["seconds"] > 0
    assert not (world / "runs" / "new").exists() and not (world / "data" / "other").exists()
    plain, compiled = (mosaic(*NEW, *more, "--dry-run").out for more in ((), ("--compile",)))
    assert "Recipe" in plain and "not compiled" in compiled and "not compiled" not in plain


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("model.d_model=16", "model.d_model"),
        ("train.batch_size=2", "train.batch_size"),
        ("train.micro_batch_size=4", "train.micro_batch_size"),
        ("train.learning_rate=0.5", "train.learning_rate"),
        ("train.seed=2", "train.seed"),
        ("data.val_fraction=0.2", "data.val_fraction"),
    ],
)
def test_resuming_refuses_what_would_make_another_run(world, refused, setting, key):
    before = (world / "runs" / "tiny" / "recipe.yaml").read_text()
    error = refused(2, "train", "tiny.yaml", "--resume", "--steps", "12", "--set", setting)
    assert error["message"].startswith(f"{key} is ") and "but the run was begun with" in error["message"]
    assert error["where"] == f"--set: {key}" and "begin another run" in error["hint"]
    assert (world / "runs" / "tiny" / "recipe.yaml").read_text() == before


def test_resuming_remembers_what_it_may_change(world, mosaic):
    (world / "data" / "tiny").rename(world / "elsewhere")
    assert mosaic("train", "tiny.yaml", "--resume", "--steps", 12, "--set", "data.dir=elsewhere").code == 0
    assert mosaic("train", "--resume", "--run", "tiny", "--json").json["steps"] == 12, "nothing is left to do"
    assert mosaic("eval", "--ckpt", "tiny").code == 0, "the data is found where it is now"
    info = _info(world / "runs" / "tiny")
    assert info["status"] == "finished" and info["step"] == 12 and info["data_dir"] == "elsewhere"


def test_a_run_cannot_end_before_its_step(world, refused):
    error = refused(2, "train", "tiny.yaml", "--resume", "--steps", "5")
    assert "at step 8 already, beyond train.max_steps 5" in error["message"] and "--steps above 8" in error["hint"]
    assert _info(world / "runs" / "tiny")["status"] == "finished"


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(world, refused, mosaic):
    error = refused(
        1, *NEW, "--set", "train.learning_rate=1e30", "--set", "train.warmup_steps=0", "--set", "train.save_interval=1"
    )
    assert error["message"].startswith("step ") and "loss" in error["message"] and "nan" in error["message"]
    assert "train.learning_rate" in error["hint"]
    run, step = world / "runs" / "new", int(error["message"].split(":")[0].removeprefix("step "))
    assert (run / "checkpoints" / "latest").read_text() == f"step-{step - 1:08d}\n"
    assert _info(run)["status"] == "failed" and _info(run)["error"] == error["message"]
    assert mosaic("generate", "--ckpt", f"new@{step - 1}", "a", "--temperature", 0, "--max-new-tokens", 2).code == 0


def test_a_model_without_a_finite_loss_cannot_be_compared(world, refused, monkeypatch):
    monkeypatch.setattr("mosaic_cli.evaluation.language.LanguageResult.loss", property(lambda self: 1e4))
    error = refused(1, "eval", "--ckpt", "tiny")
    assert error["message"] == "tiny is not usable: its loss is 10000" and "RUN@STEP" in error["hint"]


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("latest", 2), ("best", 1), ("metrics.jsonl", 1), ("metrics.jsonl", 5), ("state.json", 2), ("run.json", 2)],
)
def test_a_disk_that_fills_up(world, refused, mosaic, name, allowed):
    with _disk_full_after(allowed, name):
        error = refused(1, *NEW)
    assert "No space left on device" in error["message"] and name in error["message"] + error["where"]
    assert "Free some disk space" in error["hint"] and "--resume" in error["hint"]
    result = mosaic(*NEW, "--resume", "--json")
    assert result.code == 0 and result.json["steps"] == 8
    lines = (world / "runs" / "new" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))


def test_a_disk_too_full_for_the_status_does_not_hide_the_failure(world, mosaic):
    with _disk_full_after(12):
        result = mosaic(*NEW, "--json")
    assert result.code == 1 and "No space left" in result.json["error"]["message"]
    assert "WARNING run.json could not be written" in result.err


def test_a_folder_that_cannot_be_made(world, refused):
    (world / "runs").rename(world / "before")
    (world / "runs").write_text("a file")
    error = refused(1, *NEW)
    assert error["message"] == "Not a directory" and error["where"] == "runs/new"


def test_an_interrupt_outside_of_the_steps(world, refused, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mosaic_cli.training.setup.begin", interrupted)
    assert refused(130, *NEW)["message"] == "interrupted"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_told_as_json_too(world, refused, monkeypatch, number, code):
    step = Trainer._begin

    def step_and_signal(trainer):
        done = step(trainer)
        if trainer.state.step == 3:
            os.kill(os.getpid(), number)
        return done

    monkeypatch.setattr(Trainer, "_begin", step_and_signal)
    before = signal.getsignal(number)
    error = refused(code, *NEW)
    assert error["message"] == "stopped at step 3, saved" and error["hint"].endswith("train --resume --run new")
    assert signal.getsignal(number) is before


def test_a_signal_in_the_last_step_changes_nothing(world, mosaic, monkeypatch):
    validate = Trainer._validate

    def validate_and_signal(trainer, step):
        if step == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return validate(trainer, step)

    monkeypatch.setattr(Trainer, "_validate", validate_and_signal)
    result = mosaic(*NEW)
    assert (result.code, result.out) == (0, "runs/new\n") and _info(world / "runs" / "new")["status"] == "finished"


def test_an_error_that_nobody_foresaw(world, mosaic, monkeypatch):
    monkeypatch.setattr("mosaic_cli.training.setup.begin", lambda *_: 1 / 0)
    result = mosaic(*NEW)
    assert result.code == 1 and "ZeroDivisionError: division by zero" in result.err and "--debug" in result.err
    assert "Traceback" not in result.err and "Traceback" in mosaic(*NEW, "--debug").err
    monkeypatch.setenv("MOSAIC_DEBUG", "1")
    assert "Traceback" in mosaic(*NEW).err


def test_sampling_and_validation_show_while_training(world, mosaic):
    result = mosaic(*NEW, "--set", "train.sample_prompt=the", "--set", "train.sample_tokens=5")
    assert "step 4: validation loss" in result.err and "  sample: the" in result.err


def test_a_profile_keeps_nothing(world, mosaic, refused):
    result = mosaic(*NEW, "--profile", 1, "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.train-profile/1"
    assert sum(part["share"] for part in result.json["parts"]) == pytest.approx(1)
    assert not (world / "runs" / "new").exists()
    assert "contextual.keys.project" in mosaic(*NEW, "--profile", 1).out
    assert "compiler" in refused(2, *NEW, "--profile", 1, "--compile")["message"]
    assert refused(2, *NEW, "--profile", 1, "--dry-run")["where"] == "--profile"


def test_what_cannot_be_compiled_is_refused_by_a_dry_run_too(world, refused):
    keys = {"preset": "v2", "short_window": 4, "long_delay": 2, "max_long_delay": 4}
    v2 = [part for key, value in keys.items() for part in ("--set", f"model.{key}={value}")]
    told = refused(2, *NEW, *v2, "--device", "cpu", "--compile", "--dry-run")
    assert "cannot be compiled" in told["message"] and told["where"] == "train.compile"
