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
from mosaic_cli.data.streams import find_files
from mosaic_cli.errors import DataError, MosaicError, UsageError
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


def test_folders_that_links_lead_to_are_read_once(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "deep" / "a.txt").write_text("a")
    (tmp_path / "elsewhere" / "b.txt").write_text("b")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "deep" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "own").mkdir()
    found = find_files(str(tmp_path / "in"), tmp_path / "own" / "spool")
    assert [path.name for path, _ in found] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("kind", ["pipe", "dangling", "folder"])
def test_what_a_folder_holds_and_cannot_be_read_is_named(tmp_path, monkeypatch, kind):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    if kind == "pipe":
        os.mkfifo(folder / "odd")
    elif kind == "dangling":
        (folder / "odd").symlink_to(folder / "nothing")
    else:  # root may read all, so the system's answer is made up
        scan = os.scandir

        def refuse(path):
            if str(path).endswith("sub"):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(MosaicError, match=r"neither a file|cannot read it") as caught:
        find_files(str(folder), tmp_path / "spool")
    assert str(caught.value.where) == str(folder / ("sub" if kind == "folder" else "odd"))
    assert "Take it out of the folder" in caught.value.hint


def test_the_folder_that_is_being_made_is_not_read(tmp_path):
    (tmp_path / "in" / "out.partial" / "spool").mkdir(parents=True)
    (tmp_path / "in" / "out.partial" / "lock").write_text("")
    (tmp_path / "in" / "a.txt").write_text("a")
    found = find_files(str(tmp_path / "in"), tmp_path / "in" / "out.partial" / "spool")
    assert [path.name for path, _ in found] == ["a.txt"]


def test_names_that_are_not_utf8_are_told(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b\udcff.txt").write_text("b")
    ((path, name),) = find_files(str(tmp_path / "in"), tmp_path / "spool")
    assert path.is_file() and name.endswith("b\\xff.txt") and name.encode()


def test_closed_standard_input(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        find_files("-", tmp_path)


def test_zstd_with_a_long_window(tmp_path):
    path = tmp_path / "long.txt.zst"
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    stream = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    path.write_bytes(stream.compress(b"text " * 1000) + stream.flush())
    with pytest.raises(DataError, match="window of more than 128 MiB") as caught:
        read(tmp_path, path)
    assert "--long" in caught.value.hint


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
