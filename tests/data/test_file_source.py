"""Files: every format gives the same documents, and every bad input is named where it is."""

import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from texts import COMPRESSION, DOCUMENTS, FORMATS, as_jsonl, as_parquet, documents_of, fails, read

from mosaic_cli.data import file_source
from mosaic_cli.data.sources import open_source
from mosaic_cli.recipe import DataSection


@pytest.mark.parametrize("compression", COMPRESSION)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_documents_twice(tmp_path, suffix, compression):
    path = tmp_path / f"stories{suffix}{compression}"
    path.write_bytes(COMPRESSION[compression](FORMATS[suffix](DOCUMENTS)))
    source = open_source(DataSection(files=[str(path)]), tmp_path)
    assert documents_of(source) == DOCUMENTS
    assert documents_of(source) == DOCUMENTS
    assert (source.unit, source.done, source.total) == ("bytes", path.stat().st_size, path.stat().st_size)
    assert (source.skipped, source.blank) == (0, 0)


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + as_jsonl(["line"]))
    assert read(tmp_path, tmp_path / "a.txt", tmp_path / "b.jsonl") == ["text", "line"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.txt.zst"])
def test_empty_file(tmp_path, name):
    compress = COMPRESSION[Path(name).suffix if name.count(".") == 2 else ""]
    assert fails(tmp_path, compress(b""), name)[:2] == ("the file is empty", name)


def test_not_utf8_names_line_and_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(file_source, "BLOCK_BYTES", 16)
    message, where, _ = fails(tmp_path, b"a line of text\n" * 5 + b"then \xff\n")
    assert (message, where) == ("not UTF-8 text: byte 0xff at byte 80", "bad.txt:6")


@pytest.mark.parametrize(
    "content, what",
    [
        (b"\x00\x01\x02", "a zero byte"),
        ("text".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"text", mtime=0), "gzip"),
        (zstandard.compress(b"text"), "zstd"),
        (b"PK\x03\x04\0\n", "zip"),
        (as_parquet(["a"]), "parquet"),
    ],
)
def test_binary_file_is_refused_with_a_guess(tmp_path, content, what):
    message, where, hint = fails(tmp_path, content)
    assert where == "bad.txt:1" and "not UTF-8 text" in message
    assert what in f"{message} {hint}"


def test_truncated_utf8_at_the_end(tmp_path):
    assert fails(tmp_path, "fün".encode()[:2])[:2] == ("not UTF-8 text: byte 0xc3 at byte 1", "bad.txt:1")


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "a" ', "broken JSON: Expecting ',' delimiter at column 14"),
        (b'{"story": "a", "id": 3}', "the record has no field 'text', only 'story', 'id'"),
        (b'{"text": null}', "the field 'text' holds nothing, not text"),
        (b'{"text": 3}', "the field 'text' holds int, not text"),
        (b"[" * 100_000, "broken JSON: nested too deeply"),
        (b'["a"]', "the record is a list, not an object with fields"),
        (b'{"text": "a", "id": ' + b"1" * 5000 + b"}", "broken JSON: a number of thousands of digits"),
        (b'{"text": "\\ud800"}', "the field 'text' holds half a character: surrogates not allowed"),
        (b'{"text": "\xff"}', "not UTF-8 text: byte 0xff at byte 10 of the line"),
    ],
)
def test_bad_json_record_is_named_or_skipped(tmp_path, line, message):
    content = as_jsonl(["first"]) + b"\n" + line + b"\n" + as_jsonl(["last"])
    assert fails(tmp_path, content, "bad.jsonl")[:2] == (message, "bad.jsonl:3")
    source = open_source(DataSection(files=[str(tmp_path / "bad.jsonl")], skip_bad=True), tmp_path)
    assert documents_of(source) == documents_of(source) == ["first", "last"]
    assert (source.skipped, source.first_skipped) == (1, f"{tmp_path}/bad.jsonl:3: {message}")


def test_json_array_is_refused_with_the_way_to_lines(tmp_path):
    for content in (b'[\n{"text": "a"}\n]', b'[{"text": "a"}]'):
        assert "jq -c '.[]'" in fails(tmp_path, content, "bad.json")[2]


def test_json_line_too_long_to_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(file_source, "RECORD_BYTES", 50)
    content = as_jsonl(["x" * 120, "short"])
    assert fails(tmp_path, content, "bad.jsonl")[1] == "bad.jsonl:1"
    assert read(tmp_path, tmp_path / "bad.jsonl", skip_bad=True) == ["short"]


def test_bad_lines_of_text_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(file_source, "BLOCK_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\xff\ngood\nbad \xff\nzero \0\nbetter\n")
    source = open_source(DataSection(files=[str(tmp_path / "a.txt")], skip_bad=True), tmp_path)
    assert documents_of(source) == ["good\nbetter\n"]
    assert (source.skipped, source.first_skipped) == (3, f"{tmp_path}/a.txt:1: not UTF-8 text: byte 0xff")


def test_broken_parquet(tmp_path):
    whole = as_parquet(DOCUMENTS)
    for content in (whole[:-30], b"not parquet", b""):
        message, where, _ = fails(tmp_path, content, "bad.parquet", skip_bad=True)
        assert (message.startswith("broken file"), where) == (True, "bad.parquet")


def test_parquet_column_missing_empty_or_not_text(tmp_path):
    assert fails(tmp_path, as_parquet(["a"]), "a.parquet", text_field="story")[0] == (
        "there is no field 'story', only 'id', 'text'"
    )
    assert fails(tmp_path, as_parquet(["a"]), "a.parquet", text_field="id")[:2] == (
        "the field 'id' holds int, not text",
        "a.parquet: record 1",
    )
    assert fails(tmp_path, as_parquet(["a", None]), "a.parquet")[:2] == (
        "the field 'text' holds nothing, not text",
        "a.parquet: record 2",
    )
    assert fails(tmp_path, as_parquet([]), "a.parquet")[0] == "the file holds no records"


def test_parquet_bytes_that_are_no_text(tmp_path):
    column = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0"), pa.py_buffer(b"ok\xff\xfe"))
    out = io.BytesIO()
    pq.write_table(pa.table({"text": column}), out)
    assert fails(tmp_path, out.getvalue(), "a.parquet")[1] == "a.parquet: record 2"
    assert read(tmp_path, tmp_path / "a.parquet", skip_bad=True) == ["ok"]
