"""Documents: separated wherever blocks end, in pieces of bounded length."""

import pytest
from texts import DOCUMENTS, as_jsonl, as_text, documents_of, fails, read

from mosaic_cli.data import documents, file_source
from mosaic_cli.data.sources import open_source
from mosaic_cli.recipe import DataSection

SEPARATIONS = [
    ("no separator\n", ["no separator\n"]),
    ("a<|endoftext|>b", ["a", "b"]),
    ("a\n<|endoftext|>\nb\n<|endoftext|>\n", ["a", "b"]),
    ("a\r\n<|endoftext|>\r\nb", ["a", "b"]),
    ("a\n\n<|endoftext|>\n\nb", ["a\n", "\nb"]),
    ("<|endoftext|>a<|endoftext|>\n<|endoftext|> \n<|endoftext|>b", ["a", "b"]),
    ("a <|endoftext|b<|endoftext|> c", ["a <|endoftext|b", " c"]),
    ("long " * 50 + "é🦊\n\n\n<|endoftext|>x", ["long " * 50 + "é🦊\n\n", "x"]),
    ("\n\n  a\n<|endoftext|>", ["\n\n  a"]),
    ("nospaces" * 30 + "<|endoftext|>\r", ["nospaces" * 30]),
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 16, 100, 1 << 20])
@pytest.mark.parametrize("text, expected", SEPARATIONS)
def test_separators_wherever_blocks_end(tmp_path, monkeypatch, text, expected, block):
    monkeypatch.setattr(file_source, "BLOCK_BYTES", block)
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path, tmp_path / "a.txt") == expected
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([text]))
    assert read(tmp_path, tmp_path / "a.jsonl") == expected


def test_blank_documents_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(["a", "", " \n", "b"]))
    source = open_source(DataSection(files=[str(tmp_path / "a.jsonl")]), tmp_path)
    assert documents_of(source) == ["a", "b"]
    assert source.blank == 2


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_long_document_comes_in_pieces_cut_at_gaps(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(documents, "PIECE_CHARS", 40)
    monkeypatch.setattr(file_source, "BLOCK_BYTES", 64)
    text = "words and\nlines " * 20 + "x" * 100 + "é" * 100
    path = tmp_path / f"a{suffix}"
    path.write_bytes(as_jsonl([text]) if suffix == ".jsonl" else text.encode())
    pieces = list(open_source(DataSection(files=[str(path)]), tmp_path).pieces())
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.ends_document for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(piece.text) for piece in pieces) <= 40
    assert all(piece.text[-1] in " \n" for piece in pieces[:5])


def test_num_documents_stops_early(tmp_path):
    (tmp_path / "a.txt").write_bytes(as_text(DOCUMENTS))
    assert read(tmp_path, tmp_path / "a.txt", num_documents=2) == DOCUMENTS[:2]


def test_white_space_alone_is_no_text(tmp_path):
    assert fails(tmp_path, b" \n\n")[0] == "no document holds any text"


def test_nothing_left_after_skipping(tmp_path):
    assert "1 bad records were skipped" in fails(tmp_path, b"\xff", skip_bad=True)[0]
