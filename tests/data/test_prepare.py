"""prepare: from any source to the right tokens, and what it tells about it."""

import gzip
import io
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from prepared import DOCUMENTS, content, documents_in, run

from mosaic_cli.data.hub import HubUnreachable
from mosaic_cli.data.prepare import prepare
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import DataError
from mosaic_cli.recipe import DataSection


def test_tokenizer_is_trained_on_training_text_only(tmp_path):
    documents = ["training words here " * 5] * 9 + ["zebrazebra " * 50]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(documents))
    run(tmp_path / "out", tmp_path / "a.txt", vocab_size=400)
    tokenizer = Tokenizer.load(tmp_path / "out" / "tokenizer.json")
    assert len(tokenizer.encode(" training")) == 1 and len(tokenizer.encode("zebra")) == 5
    (tmp_path / "b.txt").write_text("".join(documents))
    run(tmp_path / "tail", tmp_path / "b.txt", vocab_size=400, val_fraction=0.4)
    assert len(Tokenizer.load(tmp_path / "tail" / "tokenizer.json").encode("zebra")) == 5


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
    monkeypatch.setattr("mosaic_cli.data.encoding.BATCH_CHARS", 500)
    monkeypatch.setattr("mosaic_cli.data.prepare.REPORT_CHARS", 500)
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


def test_workers_limit_the_encoder(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    list(prepare(DataSection(files=[str(corpus)], tokenizer="byte"), tmp_path / "out", workers=1))
    assert os.environ["RAYON_NUM_THREADS"] == "1"


def test_standard_input_leaves_no_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"some words " * 9)))
    run(tmp_path / "out", "-", tokenizer="byte")
    assert sorted(content(tmp_path / "out")) == ["manifest.json", "tokenizer.json", "train-00000.bin", "val-00000.bin"]


def test_compression_does_not_matter(tmp_path, corpus):
    packed = tmp_path / "corpus.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))
    assert run(tmp_path / "a", corpus).fingerprint == run(tmp_path / "b", packed).fingerprint
