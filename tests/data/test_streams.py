"""Files as streams: found in order, decompressed, copied where they can be read only once, and named when broken."""

import io
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import zstandard
from texts import COMPRESSION, DOCUMENTS, FORMATS, as_jsonl, as_text, documents_of, fails, read

from mosaic_cli.data.sources import open_source
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.recipe import DataSection


def test_folder_is_read_in_the_order_of_its_paths(tmp_path):
    for name in ("b.txt", "a/z.jsonl", "a/b.txt", ".hidden/x.txt", ".DS_Store"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(as_jsonl([name]) if "json" in name else name.encode())
    assert read(tmp_path, tmp_path / "in") == ["a/b.txt", "a/z.jsonl", "b.txt"]


def test_files_are_read_in_the_order_given(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert read(tmp_path, tmp_path / "b", tmp_path / "a") == ["b", "a"]


def test_standard_input_is_spooled_and_read_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(as_text(DOCUMENTS))))
    source = open_source(DataSection(files=["-"]), tmp_path)
    assert documents_of(source) == documents_of(source) == DOCUMENTS


def test_named_pipe_is_spooled_too(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(b"text"), daemon=True).start()
    source = open_source(DataSection(files=[str(pipe)]), tmp_path)
    assert documents_of(source) == documents_of(source) == ["text"]


def test_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder") as caught:
        read(tmp_path, tmp_path / "nowhere.txt")
    assert caught.value.where == str(tmp_path / "nowhere.txt")


def test_empty_folder(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="the folder holds no files"):
        read(tmp_path, tmp_path / "in")


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot read it: Permission denied"):
        read(tmp_path, tmp_path / "a.txt")


def test_zstd_frames_one_after_another(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert read(tmp_path, tmp_path / "a.txt.zst") == ["one two"]


@pytest.mark.parametrize("skip_bad", [False, True])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("inner", [".txt", ".jsonl", ".parquet"])
def test_broken_compressed_stream_cannot_be_skipped(tmp_path, inner, suffix, skip_bad):
    content = FORMATS[inner](["".join(map(chr, range(100, 5000)))])
    whole = COMPRESSION[suffix](content)
    name = f"bad{inner}{suffix}"
    message, where, _ = fails(tmp_path, whole[:-20], name, skip_bad=skip_bad)
    assert (message.startswith("broken"), where) == (True, name)
    assert fails(tmp_path, b"not compressed at all", name, skip_bad=skip_bad)[1] == name
