"""`mosaic compare`: studies of two-step runs."""

import json
import os
import signal

import pytest

from mosaic_cli.commands.study_figures import drawings
from mosaic_cli.commands.study_pages import fill_blocks
from mosaic_cli.training.loop import Trainer

STUDY = """
recipe: tiny.yaml
set: {train.max_steps: 2, train.eval_interval: 1, train.save_interval: 1, train.min_lr: 0}
vary: {model.kind: [mosaic, transformer]}
tune: {train.learning_rate: [1e-3, 5e-3]}
seeds: [1, 2]
"""


@pytest.fixture
def study(world):
    (world / "pair.yaml").write_text(STUDY)
    return world


def _steps(world):
    """Steps that all of the study's runs have logged; a step that was done twice would count twice."""
    return sum(len(path.read_text().splitlines()) for path in world.glob("runs/pair-*/metrics.jsonl"))


def test_a_dry_run_tells_what_the_machine_cannot_hold(study, mosaic):
    huge = ("-s", "model.d_model=1048576", "-s", "model.num_heads=16", "--dry-run")
    (told,) = mosaic("compare", "pair.yaml", *huge, "--json").json["studies"]
    assert all(cell["seconds"] is None and cell["left"] > 0 for cell in told["cells"])
    shown = mosaic("compare", "pair.yaml", *huge).out
    assert shown.count("no memory") == 2 and "7 runs for which this machine has not the memory" in shown


def test_a_study_from_the_cost_to_the_figures(study, mosaic):
    told = mosaic("compare", "pair.yaml", "--dry-run", "--json").json
    assert told["schema"] == "mosaic.compare-dry-run/1" and not list(study.glob("runs/pair-*"))
    assert {run["state"] for run in told["studies"][0]["runs"]} == {"new"} and len(told["studies"][0]["runs"]) == 8
    assert [cell["runs"] for cell in told["studies"][0]["cells"]] == [4, 3]
    assert all(cell["seconds_left"] > 0 for cell in told["studies"][0]["cells"])
    result = mosaic("compare", "pair.yaml")
    assert (
        result.code == 0
        and "each cell with the values that suit it best" in result.out
        and "7 runs to do" in result.err
    )
    written = json.loads((study / "studies" / "results" / "pair.json").read_text())
    mosaics, transformers = written["cells"]
    assert abs(mosaics["parameters"] - transformers["parameters"]) < 0.01 * transformers["parameters"]
    assert written["command"] == ["mosaic", "compare", "pair.yaml"] and written["machines"] and written["torch"]
    for what in ("curves", "figures"):
        assert "<svg" in (study / "studies" / "results" / f"pair-{what}.svg").read_text()
        assert (study / "studies" / "results" / f"pair-{what}.png").stat().st_size > 1000
    page = fill_blocks("before\n<!-- study:pair -->\nold\n<!-- end -->\nafter\n", study / "studies" / "results")
    assert page == fill_blocks(page, study / "studies" / "results") and "old" not in page
    assert f"{mosaics['figures']['val.loss']['mean']:.4f} ± " in page and "`mosaic compare pair.yaml`" in page
    assert page.startswith("before\n") and page.endswith("after\n")
    run = written["runs"][0]
    row = mosaic("eval", "--ckpt", run["name"], "--json").json["results"][0]
    assert row["loss"] == run["figures"]["val.loss"], "an ordinary run"

    steps, before = _steps(study), {path: path.stat().st_mtime_ns for path in study.glob("runs/pair-*/run.json")}
    again = mosaic("compare", "pair.yaml", "--json")
    assert again.code == 0 and "runs are done" in again.err and _steps(study) == steps
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing was trained"
    (found,) = again.json["studies"]
    assert found["cells"] == written["cells"] and found["differences"] == written["differences"]


def test_a_run_that_is_not_the_planned_one_is_refused(study, refused, mosaic):
    assert mosaic("train", "tiny.yaml", "--steps", 1, "--run", "pair-mosaic-lr0.001-s1").code == 0
    error = refused(2, "compare", "pair.yaml")
    assert error["message"].startswith("the run pair-mosaic-lr0.001-s1 exists with ") and "--name" in error["hint"]


def test_prepared_data_that_the_recipe_would_not_make_is_refused(study, refused):
    error = refused(2, "compare", "pair.yaml", "-s", "data.dir=data/tiny", "-s", "data.val_fraction=0.2")
    assert "data/tiny holds other data: val_fraction was 0.1" in error["message"]
    assert not list(study.glob("runs/pair-*"))


def test_a_study_that_was_stopped_goes_on(study, mosaic, refused, monkeypatch):
    (study / "pair.yaml").write_text(STUDY.replace("tune: {train.learning_rate: [1e-3, 5e-3]}", ""))
    step, stops = Trainer._begin, [1, 4]  # in the middle of a run; in the last step of one, which is finished by it
    done = []

    def step_and_signal(trainer):
        done.append(trainer.run.name)
        if len(done) in stops:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(Trainer, "_begin", step_and_signal)
    for message in ("stopped at step 1, saved", "which is finished"):
        error = refused(130, "compare", "pair.yaml")
        assert message in error["message"] and error["hint"] == "Go on: mosaic compare pair.yaml"
    result = mosaic("compare", "pair.yaml", "--json")
    assert result.code == 0 and len(done) == _steps(study) == 2 * len(list(study.glob("runs/pair-*")))


def test_a_run_that_diverges_counts_as_the_worst(study, mosaic):
    (study / "pair.yaml").write_text(STUDY.replace("5e-3", "1e30").replace("seeds: [1, 2]", "seeds: [1]"))
    result = mosaic("compare", "pair.yaml", "-s", "train.warmup_steps=0", "--json")
    assert result.code == 0 and "diverged: step" in result.err
    (found,) = result.json["studies"]
    assert [one["val_loss"] is None for one in found["sweep"]] == [False, False, True, True]
    assert [cell["tuned"] for cell in found["cells"]] == [{"train.learning_rate": 1e-3}] * 2
    told = mosaic("compare", "pair.yaml", "-s", "train.warmup_steps=0", "--dry-run", "--json").json["studies"][0]
    assert [run["state"] for run in told["runs"]] == ["done", "diverged"] * 2, "and is not tried again"


def test_several_studies_at_once_and_one_name(study, mosaic, refused):
    assert "one name for several" in refused(2, "compare", "pair.yaml", "pair.yaml", "--name", "x")["message"]
    told = mosaic("compare", "pair.yaml", "pair.yaml", "--dry-run", "--json").json
    assert [one["name"] for one in told["studies"]] == ["pair", "pair"]


def test_a_single_cell_is_not_drawn_beside_others():
    assert list(drawings({"cells": ["a", "b"]})) == ["curves", "figures"]
    assert list(drawings({"cells": ["a"]})) == ["curves"]
