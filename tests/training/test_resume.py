"""A run that is killed or stopped at any moment and taken up again ends as one never stopped: bit for bit."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from processes import command, start, wait

from mosaic_cli.runs.checkpoint import verify_checkpoint
from mosaic_cli.runs.directory import Run

RECIPES = {"mosaic": "tiny.yaml", "transformer": "gpt.yaml"}
CUT = Run(Path("runs/cut"))
SAVED_FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "config.json")


@pytest.fixture(scope="module")
def whole(_trained_world, tmp_path_factory):
    """For each kind, a run that went through, and the number of changes to the file system that it took."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(_trained_world, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended = {kind: command("train", recipe, "--run", kind) for kind, recipe in RECIPES.items()}
    assert all(one.code == 0 for one in ended.values()), ended
    return {kind: (Run(folder / "runs" / kind), one.changes) for kind, one in ended.items()}


def _train(kind="mosaic", *options, **plan):
    """Begin the run `cut`, or take it up where there is one."""
    resume = ["--resume"] if CUT.exists() else []
    return command("train", RECIPES[kind], "--run", CUT.name, *resume, *options, **plan)


def _assert_ends_as(whole):
    ended = _train(whole.name)
    assert ended.code == 0, ended.text
    cut, whole_last = CUT.pointer("latest"), whole.pointer("latest")
    for name in SAVED_FILES:
        assert (cut / name).read_bytes() == (whole_last / name).read_bytes(), name
    assert CUT.pointer("best").name == whole.pointer("best").name
    assert _metrics(CUT) == _metrics(whole)
    assert CUT.info()["status"] == "finished" and not list(CUT.path.rglob("*.tmp"))


def _metrics(run):
    return [{key: value for key, value in line.items() if key != "step_seconds"} for line in run.metrics()]


# The first number is where the first process dies, in percent of all changes it would make; the second is the change
# at which the one that takes up dies: its first ones belong to taking up, the others to steps and their saving.
@pytest.mark.parametrize(
    ("kind", "percent", "change"),
    [
        *zip(["mosaic"] * 7, range(12, 100, 13), (1, 8, 3, 12, 6, 21, 15), strict=True),
        ("transformer", 35, 13),
        ("transformer", 75, 5),
    ],
)
def test_killed_twice_while_it_writes(whole, world, kind, percent, change):
    run, changes = whole[kind]
    assert _train(kind, signals={changes * percent // 100: signal.SIGKILL}).code == -signal.SIGKILL
    _train(kind, signals={change: signal.SIGKILL})  # it may be done before it comes to that change
    _assert_ends_as(run)


@pytest.mark.parametrize(("steps", "seconds"), [(0, 0.0), (3, 0.007)])
def test_killed_by_the_clock(whole, world, steps, seconds):
    process = start("train", RECIPES["mosaic"], "--run", CUT.name)
    while len(CUT.metrics()) < steps or not CUT.exists():
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()
    wait(process)
    _assert_ends_as(whole["mosaic"][0])


def test_a_run_in_use_is_not_taken_up(whole, world, refused):
    for resume in ([], ["--resume"]):
        before = CUT.info()["step"] if resume else 0
        process = start("train", RECIPES["mosaic"], "--run", CUT.name, "--steps", 1_000_000, *resume)
        while not CUT.exists() or CUT.info().get("step", 0) <= before:
            assert process.is_alive()
            time.sleep(0.01)
        for recipe in ([], [RECIPES["mosaic"]]):
            error = refused(2, "train", *recipe, "--resume", "--run", CUT.name)
            assert error["message"].startswith("the run 'cut' is in use") and error["where"] == "runs/cut"
            assert "Wait until it ends" in error["hint"]
        assert "the run 'cut' exists" in refused(2, "train", RECIPES["mosaic"], "--run", CUT.name)["message"]
        process.kill()
        assert wait(process).code == -signal.SIGKILL
    steps = CUT.metrics()[-1]["step"] + 2
    assert _train("mosaic", "--steps", steps).code == 0 and CUT.info()["status"] == "finished"
    assert not (CUT.path / "lock").exists()


def test_a_run_that_another_process_is_about_to_begin(world, refused):
    with CUT.locked():
        assert "the run 'cut' is in use" in refused(2, "train", RECIPES["mosaic"], "--run", CUT.name)["message"]
    assert not CUT.path.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_finish_and_saves(whole, world, number, code):
    run, changes = whole["mosaic"]
    ended = _train(signals={changes // 2: number})
    step = CUT.metrics()[-1]["step"]
    assert ended.code == code and f"stopped at step {step}, saved" in ended.text and "--resume --run cut" in ended.text
    assert 0 < step < run.metrics()[-1]["step"] and CUT.pointer("latest").name == f"step-{step:08d}"
    assert CUT.info()["status"] == "interrupted" and CUT.info()["step"] == step
    _assert_ends_as(run)


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(whole, world, second, code):
    run, changes = whole["mosaic"]
    middle = changes // 2
    ended = _train(signals={middle: signal.SIGINT, middle + 2: second})
    assert ended.code == code and "left at once" in ended.text and "Traceback" not in ended.text
    assert verify_checkpoint(CUT.pointer("latest"))["step"] and CUT.info()["status"] == "interrupted"
    _assert_ends_as(run)


def test_a_time_limit_stops_and_saves(whole, world):
    for step in (1, 2, 3):
        assert _train("mosaic", "--time-limit", "0s").code == 0
        assert CUT.pointer("latest").name == f"step-{step:08d}" and CUT.info()["status"] == "interrupted"
    _assert_ends_as(whole["mosaic"][0])


def test_a_full_disk_keeps_the_last_checkpoint(whole, world):
    _train("mosaic", "--time-limit", "0s")
    size = (CUT.pointer("latest") / "model.safetensors").stat().st_size
    ended = _train(largest_file=size - 1)
    assert ended.code == 1 and "the checkpoint of step 2 could not be saved" in ended.text
    assert "File too large" in ended.text and "Earlier checkpoints are intact" in ended.text
    assert CUT.pointer("latest").name == "step-00000001" and CUT.info()["status"] == "failed"
    assert "could not be saved" in CUT.info()["error"] and len(list(CUT.checkpoints.iterdir())) == 2
    _assert_ends_as(whole["mosaic"][0])
    assert CUT.info()["error"] is None


def test_the_seconds_of_a_killed_session_count(whole, world):
    _, changes = whole["mosaic"]
    _train(signals={changes // 2: signal.SIGKILL})
    counted = CUT.info()["seconds"]
    report = json.loads(_train("mosaic", "--json").text.splitlines()[-1])
    assert 0 < counted < report["seconds"] and report["steps"] == 8
