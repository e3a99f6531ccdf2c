"""Sources: every format gives the same documents, in bounded pieces, and every bad input is named where it is."""

import gzip
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mosaic_cli.data import sources
from mosaic_cli.data.sources import BuiltinSource, HubUnreachable, open_source
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.recipe import DataSection

DOCUMENTS = ["One fish.\n\nTwo fish.", "Ein Käfer, 漢字 and 🦊.", " leading space\r\nand CR LF"]
COMPRESSION = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def as_text(documents):
    return "".join(f"{document}\n<|endoftext|>\n" for document in documents).encode()


def as_jsonl(documents):
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)).encode()


def as_parquet(documents):
    out = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), out)
    return out.getvalue()


FORMATS = {
    ".txt": as_text,
    ".md": as_text,
    ".dat": as_text,
    ".jsonl": as_jsonl,
    ".json": as_jsonl,
    ".parquet": as_parquet,
}


def documents_of(source):
    documents, parts = [], []
    for piece in source.pieces():
        assert 0 < len(piece.text) <= sources.PIECE_CHARS
        parts.append(piece.text)
        if piece.ends_document:
            documents.append("".join(parts))
            parts = []
    assert not parts, "the last document has no end"
    return documents


def read(tmp_path, *files, **settings):
    return documents_of(open_source(DataSection(files=list(map(str, files)), **settings), tmp_path))


def fails(tmp_path, content, name="bad.txt", kind=DataError, **settings):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(kind) as caught:
        read(tmp_path, path, **settings)
    return caught.value.message, caught.value.where.removeprefix(f"{tmp_path}/"), caught.value.hint


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
    monkeypatch.setattr(sources, "BLOCK_BYTES", block)
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
    monkeypatch.setattr(sources, "PIECE_CHARS", 40)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
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


def test_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + as_jsonl(["line"]))
    assert read(tmp_path, tmp_path / "a.txt", tmp_path / "b.jsonl") == ["text", "line"]


def test_missing_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder") as caught:
        read(tmp_path, tmp_path / "nowhere.txt")
    assert caught.value.where == str(tmp_path / "nowhere.txt")


def test_empty_folder(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="the folder holds no files"):
        read(tmp_path, tmp_path / "in")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "a.txt.zst"])
def test_empty_file(tmp_path, name):
    compress = COMPRESSION[Path(name).suffix if name.count(".") == 2 else ""]
    assert fails(tmp_path, compress(b""), name)[:2] == ("the file is empty", name)


def test_white_space_alone_is_no_text(tmp_path):
    assert fails(tmp_path, b" \n\n")[0] == "no document holds any text"


def test_not_utf8_names_line_and_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 16)
    message, where, _ = fails(tmp_path, b"a line of text\n" * 5 + b"then \xff\n")
    assert (message, where) == ("not UTF-8 text: byte 0xff at byte 80", "bad.txt:6")


@pytest.mark.parametrize(
    "content, what",
    [
        (b"\x00\x01\x02", "a zero byte"),
        ("text".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"text"), "gzip"),
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
    assert "jq -c '.[]'" in fails(tmp_path, b'[\n{"text": "a"}\n]', "bad.json")[2]


def test_json_line_too_long_to_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "RECORD_BYTES", 50)
    content = as_jsonl(["x" * 120, "short"])
    assert fails(tmp_path, content, "bad.jsonl")[1] == "bad.jsonl:1"
    assert read(tmp_path, tmp_path / "bad.jsonl", skip_bad=True) == ["short"]


def test_bad_lines_of_text_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 8)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\xff\ngood\nbad \xff\nzero \0\nbetter\n")
    source = open_source(DataSection(files=[str(tmp_path / "a.txt")], skip_bad=True), tmp_path)
    assert documents_of(source) == ["good\nbetter\n"]
    assert (source.skipped, source.first_skipped) == (3, f"{tmp_path}/a.txt:1: not UTF-8 text: byte 0xff")


def test_nothing_left_after_skipping(tmp_path):
    assert "1 bad records were skipped" in fails(tmp_path, b"\xff", skip_bad=True)[0]


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


def test_zstd_frames_one_after_another(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert read(tmp_path, tmp_path / "a.txt.zst") == ["one two"]


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


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot read it: Permission denied"):
        read(tmp_path, tmp_path / "a.txt")


def test_builtin_stories_are_the_same_each_time(tmp_path):
    source = open_source(DataSection(source="builtin", num_documents=5, seed=3), tmp_path)
    first = documents_of(source)
    assert len(first) == len(set(first)) == 5 and first == documents_of(source)
    assert (source.done, source.total, source.unit) == (5, 5, "records")
    assert source.used == source.requested == "builtin: stories (5 documents, seed 3)"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path, monkeypatch, hub_cache):
    """A stand-in for the hub: answers every request with `hub.code`."""
    import huggingface_hub.constants

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(server.code)
            if server.code == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def hub_section(name, **settings):
    return DataSection(source="hub", hub=str(name), **settings)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_data_set_with_two_splits(tmp_path, hub_cache, suffix):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / f"train-00000{suffix}").write_bytes(FORMATS[suffix](DOCUMENTS))
    (tmp_path / "set" / f"validation-00000{suffix}").write_bytes(FORMATS[suffix](["held out"]))
    source = open_source(hub_section(tmp_path / "set", hub_val_split="validation"), tmp_path)
    assert documents_of(source) == documents_of(source) == DOCUMENTS
    assert documents_of(source.validation) == ["held out"]
    assert (source.done, source.total, source.unit) == (3, 3, "records")
    assert source.used == source.requested == f"hub: {tmp_path}/set (split train)"


def test_data_set_errors_name_what_there_is(tmp_path, hub_cache):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(as_jsonl(DOCUMENTS))
    with pytest.raises(UsageError, match=r"Unknown split \"test\".*'train'"):
        open_source(hub_section(tmp_path / "set", hub_split="test"), tmp_path)
    with pytest.raises(UsageError, match=r"'simple' not found\. Available: \['default'\]"):
        open_source(hub_section(tmp_path / "set", hub_config="simple"), tmp_path)
    with pytest.raises(DataError, match="no field 'story', only 'id', 'text'"):
        open_source(hub_section(tmp_path / "set", text_field="story"), tmp_path)
    (tmp_path / "set" / "train.jsonl").write_bytes(b'{"text": "a"}\n{"text')
    with pytest.raises(DataError, match="the data set cannot be read: JSON parse error"):
        open_source(hub_section(tmp_path / "set"), tmp_path)


def test_hub_that_knows_no_such_data_set_is_no_unreachable_hub(tmp_path, hub):
    hub.code = 404
    with pytest.raises(DataError, match="the hub answers, but there is no data set 'no/such'") as caught:
        open_source(hub_section("no/such", if_unreachable="builtin"), tmp_path)
    assert not isinstance(caught.value, HubUnreachable)


def test_hub_that_fails_names_the_ways_out(tmp_path, hub):
    hub.code = 503
    with pytest.raises(HubUnreachable, match=r"cannot be reached: HfHubHTTPError: .*503.*not in the local") as caught:
        open_source(hub_section("some/set"), tmp_path)
    for way in ("data.source=files", "data.files=[FILE]", "data.if_unreachable=builtin"):
        assert way in caught.value.hint


def test_hub_that_fails_falls_back_if_the_recipe_says_so(tmp_path, hub):
    hub.code = 503
    source = open_source(hub_section("some/set", if_unreachable="builtin", num_documents=2), tmp_path)
    assert isinstance(source, BuiltinSource) and len(documents_of(source)) == 2
    assert source.requested == "hub: some/set (split train)"
    assert source.used == "builtin: stories (2 documents, seed 0)"
    assert "cannot be reached" in source.fallback_reason


def test_download_that_breaks_off_counts_as_unreachable(tmp_path, hub_cache, monkeypatch):
    import datasets

    def break_off(*_args, **_kwargs):
        raise RuntimeError("while downloading") from TimeoutError("read timed out")

    monkeypatch.setattr(sources, "ask_hub", lambda name: None)
    monkeypatch.setattr(datasets, "load_dataset", break_off)
    with pytest.raises(HubUnreachable, match="the download failed: while downloading"):
        open_source(hub_section("some/set"), tmp_path)


def test_cached_data_set_serves_without_the_hub(tmp_path, hub, hub_cache):
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "train.jsonl").write_bytes(as_jsonl(DOCUMENTS))
    open_source(hub_section(tmp_path / "stories"), tmp_path)
    (hub_cache / "stories").rename(hub_cache / "owner___stories")
    hub.code = 503
    source = open_source(hub_section("owner/stories"), tmp_path)
    assert documents_of(source) == DOCUMENTS
    assert source.used == "hub: owner/stories (split train) (from the local cache)"


def test_name_that_cannot_be_one(tmp_path, hub_cache):
    with pytest.raises(UsageError, match="'a/b/c' is no name on the hub"):
        open_source(hub_section("a/b/c"), tmp_path)


def test_slow_name_server_does_not_hang(monkeypatch):
    monkeypatch.setattr(sources, "HUB_SECONDS", 0.05)
    forever = threading.Event()
    monkeypatch.setattr(sources, "_hub_problem", lambda *_: forever.wait(5))
    with pytest.raises(HubUnreachable, match="no answer within"):
        sources.ask_hub("some/set")
    forever.set()


def test_offline_mode_is_honoured(tmp_path):
    script = (
        "import sys; from pathlib import Path; from mosaic_cli.data.sources import open_source\n"
        "from mosaic_cli.recipe import DataSection\n"
        "assert not {'datasets', 'pyarrow', 'huggingface_hub', 'torch'} & set(sys.modules)\n"
        "for choice in ('builtin', 'error'):\n"
        "    data = DataSection(source='hub', hub='roneneldan/TinyStories', if_unreachable=choice)\n"
        "    print(open_source(data, Path('.')).fallback_reason)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        timeout=60,
    )
    assert run.stdout.startswith("the hub cannot be reached: offline mode is on (HF_HUB_OFFLINE)")
    assert "HubUnreachable: the hub cannot be reached: offline mode is on" in run.stderr
