"""prepare: the right tokens in the right split, and on disk all or nothing, whatever happens."""

import gzip
import json
import math
import os
import random
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mosaic_cli.data import prepare as module
from mosaic_cli.data.hub import HubUnreachable
from mosaic_cli.data.prepare import is_held_out, prepare
from mosaic_cli.data.shards import Manifest, open_split, verify
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.recipe import DataSection

WORDS = ["the", "old", "fox", "ran", "hill,", "it's", "3", "o'clock\n\n", "again:", "", "Käfer", "漢字", "🦊"]


def words(seed, count):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count)) + "."


DOCUMENTS = [words(seed, 5 + 7 * seed % 60) for seed in range(50)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path


def run(out, *files, force=False, **settings):
    items = list(prepare(DataSection(files=list(map(str, files)), **settings), out, force=force))
    assert items[-1].manifest == Manifest.load(out)
    assert verify(out).ok
    assert not list(out.parent.glob("*.partial")) and not (out / "lock").exists()
    return items[-1].manifest


def documents_in(folder, split):
    """The documents of a split, read back from its tokens."""
    tokenizer, shards = Tokenizer.load(folder / "tokenizer.json"), open_split(folder, split)
    ids = shards.read(0, len(shards))
    ends = np.flatnonzero(ids == tokenizer.end_of_text)
    parts = np.split(ids, ends + 1)
    return [tokenizer.decode(part) for part in parts if len(part)]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("fraction", ["0.1", "0.25", "0.3", "0.7", "1e-1", "0.05"])
def test_held_out_share_is_exact_and_evenly_spread(fraction):
    share = Fraction(fraction)
    held_out = [is_held_out(i, share) for i in range(1000)]
    for count in range(1001):
        assert sum(held_out[:count]) == math.floor(count * share)


@pytest.mark.parametrize("tokenizer", ["bpe", "byte", "char"])
@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_splits_decode_to_their_documents(tmp_path, corpus, tokenizer, fraction):
    manifest = run(tmp_path / "out", corpus, tokenizer=tokenizer, vocab_size=400, val_fraction=fraction)
    held_out = [is_held_out(i, Fraction(str(fraction))) for i in range(50)]
    expected = {
        "val": [d for d, out in zip(DOCUMENTS, held_out, strict=True) if out],
        "train": [d for d, out in zip(DOCUMENTS, held_out, strict=True) if not out],
    }
    for split, documents in expected.items():
        assert documents_in(tmp_path / "out", split) == documents
        info = manifest.split(split)
        assert (info.documents, info.characters, info.bytes) == (
            len(documents),
            sum(map(len, documents)),
            sum(len(d.encode()) for d in documents),
        )
    assert len(expected["val"]) == math.floor(50 * Fraction(str(fraction)))


@pytest.mark.parametrize(
    "count, fraction, train", [(1_115_394, 0.1, 1_003_854), (1000, 0.1, 900), (10, 0.25, 7), (2, 0.001, 1)]
)
def test_single_document_is_cut_at_the_tail(tmp_path, count, fraction, train):
    text = ("first, second\nthird " * (count // 20 + 1))[:count]
    (tmp_path / "input.txt").write_text(text)
    manifest = run(tmp_path / "out", tmp_path / "input.txt", tokenizer="char", val_fraction=fraction)
    tokenizer = Tokenizer.load(tmp_path / "out" / "tokenizer.json")
    parts = {split: open_split(tmp_path / "out", split) for split in ("train", "val")}
    ids = {split: shards.read(0, len(shards)) for split, shards in parts.items()}
    assert len(ids["train"]) == train, "no end-of-text inside the document"
    assert tokenizer.decode(ids["train"]) == text[:train]
    assert tokenizer.decode(ids["val"][:-1]) == text[train:] and ids["val"][-1] == tokenizer.end_of_text
    assert (manifest.train.characters, manifest.val.characters) == (train, count - train)
    assert (manifest.train.documents, manifest.val.documents) == (1, 1)


@pytest.mark.parametrize("fraction", [0.05, 0.3 / 4, 0.24])
@pytest.mark.parametrize("segment", [1 << 16, 20])
def test_few_documents_are_cut_at_the_tail_too(tmp_path, monkeypatch, fraction, segment):
    monkeypatch.setattr(module, "SEGMENT_CHARS", segment)
    documents = ["x" * 30, "a b\n" * 40 + "c", "y\nz" * 20, "w " * 11]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    manifest = run(tmp_path / "out", tmp_path / "a.txt", tokenizer="byte", val_fraction=fraction)
    joined = "".join(documents)
    cut = math.floor(len(joined) * (1 - Fraction(str(fraction))))
    train, val = (documents_in(tmp_path / "out", split) for split in ("train", "val"))
    assert ("".join(train), "".join(val)) == (joined[:cut], joined[cut:])
    assert (manifest.train.documents, manifest.val.documents) == (len(train), len(val))
    ends = sum(
        open_split(tmp_path / "out", split).read(0, manifest.split(split).tokens).tolist().count(256)
        for split in ("train", "val")
    )
    assert ends == len(documents)


def test_border_between_two_documents(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 90 + "<|endoftext|>" + "b" * 10)
    run(tmp_path / "out", tmp_path / "a.txt", tokenizer="byte", val_fraction=0.1)
    ids = open_split(tmp_path / "out", "train").read(0, 91)
    assert ids.tolist() == [97] * 90 + [256]


@pytest.mark.parametrize("tokenizer", ["bpe", "byte", "char"])
def test_long_document_encodes_as_a_whole(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr("mosaic_cli.data.documents.PIECE_CHARS", 300)
    monkeypatch.setattr("mosaic_cli.data.file_source.BLOCK_BYTES", 200)
    for name, value in {"SEGMENT_CHARS": 100, "UNCUT_CHARS": 400, "BATCH_CHARS": 250}.items():
        monkeypatch.setattr(module, name, value)
    text = words(0, 2000)
    (tmp_path / "a.txt").write_text(text)
    run(tmp_path / "out", tmp_path / "a.txt", tokenizer=tokenizer, vocab_size=400)
    loaded, cut = Tokenizer.load(tmp_path / "out" / "tokenizer.json"), math.floor(len(text) * Fraction("0.9"))
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        shards = open_split(tmp_path / "out", split)
        assert shards.read(0, len(shards)).tolist() == loaded.encode(part) + [loaded.end_of_text] * (split == "val")


def test_document_without_a_gap_is_cut_all_the_same(tmp_path, monkeypatch):
    for name, value in {"SEGMENT_CHARS": 50, "UNCUT_CHARS": 100}.items():
        monkeypatch.setattr(module, name, value)
    lengths = []
    encode = Tokenizer.encode_batch
    monkeypatch.setattr(
        Tokenizer, "encode_batch", lambda self, texts: lengths.extend(map(len, texts)) or encode(self, texts)
    )
    (tmp_path / "a.txt").write_text("漢字" * 500)
    run(tmp_path / "out", tmp_path / "a.txt", tokenizer="bpe")
    assert "".join(documents_in(tmp_path / "out", "train")) == "漢字" * 450
    assert max(lengths) <= 100


def test_tokenizer_is_trained_on_training_text_only(tmp_path):
    documents = ["training words here " * 5] * 9 + ["zebrazebra " * 50]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    run(tmp_path / "out", tmp_path / "a.txt", vocab_size=400)
    tokenizer = Tokenizer.load(tmp_path / "out" / "tokenizer.json")
    assert len(tokenizer.encode(" training")) == 1 and len(tokenizer.encode("zebra")) == 5
    (tmp_path / "b.txt").write_text("".join(documents))
    run(tmp_path / "tail", tmp_path / "b.txt", vocab_size=400, val_fraction=0.4)
    assert len(Tokenizer.load(tmp_path / "tail" / "tokenizer.json").encode("zebra")) == 5


def test_training_sample_is_bounded_and_spread(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_BYTES", 40_000)
    sample = module._Sample()
    for number in range(20_000):
        sample.add(f"{number:05d}" * 4, number)
        assert sample._size <= 40_000
    kept = sorted(int(text[:5]) for text in sample.texts(None))
    assert len(kept) > 80
    assert max(b - a for a, b in zip([0, *kept], [*kept, 20_000], strict=True)) < 3 * 20_000 / len(kept)
    assert sorted(filter(None, sample.texts(kept[3]))) == [f"{number:05d}" * 4 for number in kept[:3]]


def test_training_stops_at_so_many_distinct_words(monkeypatch):
    monkeypatch.setattr(module, "DISTINCT_BYTES", 1000)
    prose, gapless = module._Sample(), module._Sample()
    for number in range(1000):
        prose.add("the same few words again", number)
        gapless.add(f"{number:05d}漢字漢字漢", number)
    assert len(list(prose.texts(None))) == 1000
    kept = sorted(int(text[:5]) for text in gapless.texts(None))
    assert len(kept) == 50, "20 bytes each"
    assert max(b - a for a, b in zip([0, *kept], [*kept, 1000], strict=True)) < 3 * 1000 / 50


def test_vocabulary_decides_the_width_of_a_token(tmp_path, corpus, monkeypatch):
    assert run(tmp_path / "small", corpus, tokenizer="byte").dtype == "uint16"
    monkeypatch.setattr(Tokenizer, "dtype", np.dtype("<u4"))
    assert run(tmp_path / "large", corpus, tokenizer="byte").dtype == "uint32"
    assert documents_in(tmp_path / "large", "val") == documents_in(tmp_path / "small", "val")


def test_tokenizer_from_a_file_keeps_its_ids(tmp_path, corpus):
    first = run(tmp_path / "first", corpus, vocab_size=300)
    second = run(tmp_path / "second", corpus, tokenizer=str(tmp_path / "first"))
    assert first.fingerprint == second.fingerprint and first.tokenizer == second.tokenizer


def test_hub_with_a_validation_split_of_its_own(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    for split, documents in (("train", DOCUMENTS[:7]), ("validation", DOCUMENTS[7:9])):
        (tmp_path / "set" / f"{split}.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    data = DataSection(source="hub", hub=str(tmp_path / "set"), hub_val_split="validation", tokenizer="char")
    items = list(prepare(data, tmp_path / "out"))
    assert documents_in(tmp_path / "out", "train") == DOCUMENTS[:7]
    assert documents_in(tmp_path / "out", "val") == DOCUMENTS[7:9]
    assert {(item.done, item.total) for item in items if item.phase == "encode"} == {(0, 9), (9, 9)}


def test_fallback_is_announced_and_recorded(tmp_path, monkeypatch):
    def unreachable(_data):
        raise HubUnreachable("no network")

    monkeypatch.setattr("mosaic_cli.data.sources.open_hub", unreachable)
    data = DataSection(source="hub", hub="some/set", if_unreachable="builtin", num_documents=20, tokenizer="byte")
    items = list(prepare(data, tmp_path / "out"))
    assert [item.warning for item in items if item.warning] == [
        "no network. Using builtin: stories (20 documents, seed 0) instead of hub: some/set (split train)."
    ]
    source = items[-1].manifest.source
    assert (source.requested, source.used, source.fallback_reason) == (
        "hub: some/set (split train)",
        "builtin: stories (20 documents, seed 0)",
        "no network",
    )
    assert items[-1].manifest.train.documents == 18


def test_progress_ends_where_it_said(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(module, "BATCH_CHARS", 500)
    monkeypatch.setattr(module, "REPORT_CHARS", 500)
    items = list(prepare(DataSection(files=[str(corpus)]), tmp_path / "out"))
    phases = list(dict.fromkeys(item.phase for item in items))
    assert phases == ["open", "scan", "train tokenizer", "encode", "done"]
    for phase in ("scan", "encode"):
        done = [item.done for item in items if item.phase == phase]
        assert len(done) > 5 and done == sorted(done) and done[-1] <= corpus.stat().st_size
    last = [item for item in items if item.phase == "encode"][-1]
    assert last.done == last.total == corpus.stat().st_size and last.unit == "bytes"
    assert last.documents == items[-1].documents == 50 and last.tokens == items[-1].tokens


def test_skipped_and_blank_records_are_recorded(tmp_path, corpus):
    with corpus.open("a") as file:
        file.write('{"text": ""}\n{"text": 1}\nbroken\n')
    source = run(tmp_path / "out", corpus, tokenizer="byte", skip_bad=True).source
    assert (source.skipped_records, source.blank_documents) == (2, 1)
    assert source.first_skipped == f"{corpus}:52: the field 'text' holds int, not text"


def test_one_character_is_too_short(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="the text has 1 characters: too few"):
        run(tmp_path / "out", tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_text_that_changes_between_the_passes(tmp_path, corpus):
    items = prepare(DataSection(files=[str(corpus)], tokenizer="byte"), tmp_path / "out")
    with pytest.raises(DataError, match="changed while it was being read"):
        for item in items:
            if item.phase == "encode":
                corpus.write_text('{"text": "something else"}\n')
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))


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
from mosaic_cli.data import prepare as module
from mosaic_cli.recipe import DataSection
module.BATCH_CHARS = module.REPORT_CHARS = 1000
if sys.argv[3] == "publish":
    module.sync = lambda path: (print("stop", flush=True), time.sleep(60))
if sys.argv[3] == "replace":
    rename = module.Path.rename
    def stop_after(self, target):
        rename(self, target)
        print("stop", flush=True)
        time.sleep(60)
    module.Path.rename = stop_after
force = sys.argv[3] == "replace"
for number, item in enumerate(module.prepare(DataSection(**json.loads(sys.argv[1])), sys.argv[2], force=force)):
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


def test_workers_limit_the_encoder(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    list(prepare(DataSection(files=[str(corpus)], tokenizer="byte"), tmp_path / "out", workers=1))
    assert os.environ["RAYON_NUM_THREADS"] == "1"


def test_standard_input_leaves_no_copy(tmp_path, monkeypatch):
    import io
    from types import SimpleNamespace

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"some words " * 9)))
    run(tmp_path / "out", "-", tokenizer="byte")
    assert sorted(content(tmp_path / "out")) == ["manifest.json", "tokenizer.json", "train-00000.bin", "val-00000.bin"]


def test_compression_does_not_matter(tmp_path, corpus):
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))
    assert run(tmp_path / "a", corpus).fingerprint == run(tmp_path / "b", packed).fingerprint
