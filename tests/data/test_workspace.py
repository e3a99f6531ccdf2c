"""A folder of data is whole or absent, whatever happens, and nothing that is not ours is touched."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prepared import content, run

from mosaic_cli.data.prepare import prepare
from mosaic_cli.data.shards import Manifest
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.recipe import DataSection


def test_existing_data_is_kept_without_force(tmp_path, corpus):
    run(tmp_path / "out", corpus, tokenizer="byte")
    before = content(tmp_path / "out")
    with pytest.raises(UsageError, match="is there already") as caught:
        run(tmp_path / "out", corpus, tokenizer="char")
    assert "--force" in caught.value.hint and content(tmp_path / "out") == before
    assert run(tmp_path / "out", corpus, tokenizer="char", force=True).tokenizer.kind == "char"
    assert set(os.listdir(tmp_path)) == {"out", "corpus.jsonl"}


def test_force_keeps_the_old_until_the_new_is_complete(tmp_path, corpus):
    run(tmp_path / "out", corpus, tokenizer="byte")
    before = content(tmp_path / "out")
    for stop in range(1, 4):
        items = prepare(DataSection(files=[str(corpus)]), tmp_path / "out", force=True)
        for _ in range(stop):
            next(items)
        assert content(tmp_path / "out") == before
        items.close()
    with corpus.open("a") as file:
        file.write("broken\n")
    with pytest.raises(DataError, match="broken JSON"):
        run(tmp_path / "out", corpus, force=True)
    assert content(tmp_path / "out") == before and not list(tmp_path.glob("*.partial"))


def test_force_never_removes_what_is_not_ours(tmp_path, corpus):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="other things than prepared data"):
        run(tmp_path / "out", corpus, force=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["model.bin", "weights.bin/inner.txt", "train-00000.bin/inner.txt"])
def test_force_never_removes_what_is_only_named_like_ours(tmp_path, corpus, name):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("weights")
    with pytest.raises(UsageError, match="other things than prepared data"):
        run(tmp_path / "out", corpus, force=True)
    assert mine.read_text() == "weights"


def test_a_folder_that_happens_to_have_the_name_of_the_unfinished_one_is_kept(tmp_path, corpus):
    mine = tmp_path / "out.partial"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds other things") as caught:
        run(tmp_path / "out", corpus)
    assert "Rename it" in caught.value.hint
    assert os.listdir(mine) == ["thesis.tex"] and not (tmp_path / "out").exists()


def test_a_link_to_a_folder_stays_one(tmp_path, corpus):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for force in (False, True):
        run(tmp_path / "out", corpus, tokenizer="byte", force=force)
        assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "manifest.json").is_file()
    assert set(os.listdir(tmp_path)) == {"out", "disk", "corpus.jsonl"}


def test_full_disk(tmp_path, corpus, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mosaic_cli.data.shards.ShardWriter.write", full)
    with pytest.raises(DataError, match="cannot write the data: No space left on device") as caught:
        run(tmp_path / "out", corpus)
    assert "Free some space" in caught.value.hint and set(os.listdir(tmp_path)) == {"corpus.jsonl"}


def test_second_live_run_is_refused_and_disturbs_nothing(tmp_path, corpus):
    first = prepare(DataSection(files=[str(corpus)], tokenizer="byte"), tmp_path / "out")
    next(first)
    for force in (False, True):
        with pytest.raises(DataError, match="another mosaic prepare is writing"):
            run(tmp_path / "out", corpus, force=force)
    *_, last = first
    assert last.manifest == Manifest.load(tmp_path / "out")


CHILD = """
import json, sys, time
from pathlib import Path
from mosaic_cli.data import encoding, prepare, workspace
from mosaic_cli.recipe import DataSection
encoding.BATCH_CHARS = prepare.REPORT_CHARS = 1000
if sys.argv[3] == "publish":
    workspace.sync = lambda path: (print("stop", flush=True), time.sleep(60))
if sys.argv[3] == "replace":
    rename = Path.rename
    def stop_after(self, target):
        rename(self, target)
        print("stop", flush=True)
        time.sleep(60)
    Path.rename = stop_after
force = sys.argv[3] == "replace"
for number, item in enumerate(prepare.prepare(DataSection(**json.loads(sys.argv[1])), sys.argv[2], force=force)):
    if item.phase == sys.argv[3] and item.done:
        print("stop", flush=True)
        time.sleep(60)
"""


def killed_during(moment, data, out):
    """A prepare in another process, killed at a moment."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, data.model_dump_json(), str(out), moment],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert child.stdout.readline() == b"stop\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()


@pytest.mark.parametrize("moment", ["scan", "encode", "publish"])
def test_killed_run_leaves_nothing_that_looks_good_and_starts_again(tmp_path, corpus, moment):
    data = DataSection(files=[str(corpus)], vocab_size=400)
    run(tmp_path / "undisturbed", corpus, vocab_size=400)
    killed_during(moment, data, tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").exists()
    run(tmp_path / "out", corpus, vocab_size=400)
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


def test_killed_between_old_and_new_keeps_the_old(tmp_path, corpus):
    run(tmp_path / "out", corpus, tokenizer="byte")
    before = content(tmp_path / "out")
    killed_during("replace", DataSection(files=[str(corpus)]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="is there already"):
        run(tmp_path / "out", corpus)
    assert content(tmp_path / "out") == before
    assert set(os.listdir(tmp_path)) == {"out", "corpus.jsonl"}
