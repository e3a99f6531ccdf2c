"""Splits: exact shares of the documents, or the end of the text where there are too few."""

import math
from fractions import Fraction

import pytest
from prepared import DOCUMENTS, documents_in, run

from mosaic_cli.data import encoding
from mosaic_cli.data.shards import open_split
from mosaic_cli.data.splits import is_held_out
from mosaic_cli.data.tokenizer import Tokenizer


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
    monkeypatch.setattr(encoding, "SEGMENT_CHARS", segment)
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
