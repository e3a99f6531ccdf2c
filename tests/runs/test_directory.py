"""A run's folder: beginning one, its metrics and pointers, and finding a checkpoint by name."""

import pytest

from mosaic_cli.errors import CheckpointError, UsageError
from mosaic_cli.recipe import load_recipe
from mosaic_cli.runs.directory import Run, create_run, find_checkpoint, locate_run


@pytest.fixture
def run(workdir):
    return create_run("one", load_recipe("quickstart").recipe, seconds=0.0)


def _checkpoint(run, step):
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    return folder


def test_a_run_records_how_it_was_begun(run):
    info = run.info()
    assert info.keys() >= {"format_version", "name", "status", "started", "command", "versions", "seed", "seconds"}
    assert (info["name"], info["status"], info["seed"]) == ("one", "running", 1337)
    assert load_recipe(run.recipe_path).recipe == load_recipe("quickstart").recipe
    run.update_info(status="finished")
    assert run.info() == info | {"status": "finished"}


def test_a_run_is_begun_once(run):
    with pytest.raises(UsageError, match="exists"):
        create_run("one", load_recipe("quickstart").recipe)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp/a", ".hidden", "a b", "-a", "a\n"])
def test_a_name_is_not_a_path(workdir, name):
    with pytest.raises(UsageError, match="not a plain name"):
        locate_run(name)


def test_a_failed_write_names_the_file_and_leaves_the_old_one(run, monkeypatch):
    run.write("recipe.yaml", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"recipe\.yaml could not be written: No space left") as caught:
        run.write("recipe.yaml", "new")
    assert run.recipe_path.read_text() == "old" and caught.value.where == str(run.recipe_path)


def test_metrics_leave_out_a_torn_line_and_forget(run):
    for step in (1, 2, 3):
        run.log(step=step, train_loss=0.1 * step)
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "train')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.forget_after(2)
    assert run.metrics() == [{"step": 1, "train_loss": 0.1}, {"step": 2, "train_loss": 0.2}]
    run.log(step=3)
    assert run.metrics()[-1] == {"step": 3}


def test_pruning_keeps_the_newest_the_best_and_the_latest(run):
    folders = [_checkpoint(run, step) for step in (1, 2, 3, 4, 5)]
    torn = run.checkpoints / ".step-00000009.tmp"
    torn.mkdir()
    run.point("best", folders[0])
    run.point("latest", folders[1])
    run.prune(2)
    assert [folder.exists() for folder in folders] == [True, True, False, True, True] and not torn.exists()


def test_a_checkpoint_has_many_names(run, workdir):
    one, two = _checkpoint(run, 10), _checkpoint(run, 20)
    run.point("best", one)
    run.point("latest", two)
    for spec, expected in {
        "one": one,
        "one@best": one,
        "one@10": one,
        "one@latest": two,
        "runs/one@latest": two,
        "runs/one": one,
        str(two): two,
        str(workdir / "runs" / "one"): workdir / one,
    }.items():
        found, checkpoint = find_checkpoint(spec)
        assert found.info()["name"] == "one" and checkpoint == expected, spec


def test_without_a_validation_the_latest_checkpoint_is_taken(run):
    run.point("latest", _checkpoint(run, 10))
    assert find_checkpoint("one")[1].name == "step-00000010"


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("on", "no run 'on'", "Did you mean one?"),
        ("zzz", "no run 'zzz'", "Runs here: one."),
        ("one@best", "has no checkpoint best", "Steps saved: 10, 20."),
        ("one@15", "no checkpoint 15", "10, 20"),
        ("one@newest", "@newest is not", None),
        ("file.pt", "file.pt is a file", "never read"),
        ("", "no run ''", "one"),
    ],
)
def test_a_name_that_stands_for_nothing(run, workdir, spec, message, hint):
    (workdir / "file.pt").write_bytes(b"")
    _checkpoint(run, 10), _checkpoint(run, 20)
    with pytest.raises(UsageError, match=message) as caught:
        find_checkpoint(spec)
    assert hint is None or hint in caught.value.hint


def test_without_any_run_the_hint_is_to_train_one(workdir):
    with pytest.raises(UsageError) as caught:
        find_checkpoint("one")
    assert "mosaic train" in caught.value.hint


def test_a_run_may_have_the_name_of_a_file(run, workdir):
    (workdir / "one").write_text("a file")
    run.point("latest", _checkpoint(run, 10))
    assert find_checkpoint("one")[0] == Run(run.path)
