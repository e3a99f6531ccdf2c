"""Encoding in segments: the same tokens as the whole, and a bound where there is no place to cut."""

import math
from fractions import Fraction

import pytest
from prepared import documents_in, run, words

from mosaic_cli.data import encoding as module
from mosaic_cli.data.shards import open_split
from mosaic_cli.data.tokenizer import Tokenizer


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
