"""Documents, one at a time, from files, standard input, the hub or the built-in writer.

A source can be read more than once: `prepare` reads it twice, to look and to encode. However large the text, a source
holds a few megabytes of it: a long document comes in pieces. This is the only file that touches `datasets`.
"""

import codecs
import gzip
import io
import json
import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.recipe import DataSection

END_OF_TEXT = "<|endoftext|>"
BUILTIN_DOCUMENTS = 20_000  # what the built-in writer writes when the recipe names no number
PIECE_CHARS = 1 << 20  # a longer document is handed over in pieces: two of them in UCS-4 are 8 MB
BLOCK_BYTES = 1 << 20  # bytes read at a time from a text file
RECORD_BYTES = 64 << 20  # a longer JSON line is refused: parsing needs it whole in memory, several times over
BATCH_RECORDS = 64  # records of a parquet or hub batch; a book each is still some tens of megabytes
ZSTD_READ_BYTES = 4096  # zstd can blow one input byte up to 32 kB, so this bounds one step's output at 128 MB
HUB_SECONDS = 5.0  # patience of one request; the libraries' own retries take 23 s to say that there is no network
RECORD_SUFFIXES = {".jsonl", ".json", ".ndjson"}
_HELD_CHARS = 20  # more than the longest separator (17), which the end of a block may cut in two
_MAGIC = {
    b"\x1f\x8b": "gzip data: name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd data: name it .zst",
    b"PAR1": "parquet: name it .parquet",
    b"\xff\xfe": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"PK": "a zip archive: unpack it first",
}


class Piece(NamedTuple):
    """A stretch of one document; `text` is never empty, and `PIECE_CHARS` characters at most."""

    text: str
    ends_document: bool


class HubUnreachable(DataError):
    """No answer from the hub, and nothing in the local cache."""


class Source:
    """Documents that can be read again and again.

    Attributes:
        requested, used: what was asked for and what is read, in words; they differ after a fallback.
        fallback_reason: why they differ, else None.
        unit, total, done: progress of the current pass: `bytes` (on disk, compressed ones as they are) or `records`.
        skipped: bad records left out in this pass (only with `skip_bad`); `first_skipped` tells where and why.
        blank: documents without any text left out in this pass.
        validation: the source of the validation split, where the hub has one, else None.
    """

    unit = "records"

    def __init__(self, data: DataSection, requested: str):
        self.data = data
        self.requested = self.used = requested
        self.fallback_reason: str | None = None
        self.validation: Source | None = None
        self.total = 0
        self._reset()

    def pieces(self) -> Iterator[Piece]:
        """One pass over the documents, from the start.

        Raises:
            DataError: text that cannot be read, with file and line or record; no text at all.
        """
        self._reset()
        documents = 0
        for text, ends_record in self._texts():
            for piece in self._splitter.feed(text, ends_record):
                yield piece
                documents += piece.ends_document
                if documents == self.data.num_documents:
                    return
        if not documents:
            bad = f": {self.skipped:,} bad records were skipped, the first {self.first_skipped}" if self.skipped else ""
            raise DataError(f"no document holds any text{bad}", where=self.used)

    @property
    def blank(self) -> int:
        return self._splitter.blank

    def _reset(self) -> None:
        self.done = self.skipped = 0
        self.first_skipped: str | None = None
        self._splitter = _Splitter()

    def _texts(self) -> Iterator[tuple[str, bool]]:
        """(text, is the end of its record or file); the separator is still inside."""
        raise NotImplementedError

    def _bad(self, message: str, where: str, hint: str | None = None) -> None:
        """A record that cannot be used: counted with `skip_bad`, else an error."""
        if not self.data.skip_bad:
            raise DataError(message, where=where, hint=hint or "Mend it, or leave such records out: --skip-bad")
        self.skipped += 1
        self.first_skipped = self.first_skipped or f"{where}: {message}"

    def _field(self, record: Any, where: str) -> str | None:
        """The text of one record, or None where it is bad and skipped."""
        name = self.data.text_field
        if not isinstance(record, dict):
            return self._bad(f"the record is a {type(record).__name__}, not an object with fields", where)
        if name not in record:
            return self._bad(
                f"the record has no field {name!r}, only {_listed(record)}",
                where,
                "Name the field that holds the text: --text-field NAME",
            )
        text = record[name]
        if not isinstance(text, str):
            return self._bad(
                f"the field {name!r} holds {'nothing' if text is None else type(text).__name__}, not text", where
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return self._bad(f"the field {name!r} holds half a character: {error.reason}", where)
        return text


class FileSource(Source):
    """Text, jsonl and parquet files, plain or compressed, in the order given; a folder's files sorted by path."""

    unit = "bytes"

    def __init__(self, data: DataSection, spool: Path):
        super().__init__(data, f"files: {', '.join(data.files)}")
        self.paths = [found for name in data.files for found in _find(name, spool)]
        self.total = sum(path.stat().st_size for path, _ in self.paths)
        self._spool = spool

    def _texts(self) -> Iterator[tuple[str, bool]]:
        before = 0
        for path, name in self.paths:
            with _reading(name), path.open("rb") as raw:
                size, self._position = path.stat().st_size, raw.tell
                for text in self._file(path, raw, name):
                    self.done = before + min(self._position(), size)
                    yield text
            before += size
            self.done = before

    def _file(self, path: Path, raw: BinaryIO, name: str) -> Iterator[tuple[str, bool]]:
        packed = path.suffix in (".gz", ".zst")
        kind = (path.with_suffix("") if packed else path).suffix.lower()
        stream = _decompressed(raw, path.suffix)
        if kind in RECORD_SUFFIXES:
            yield from self._json_lines(stream, name)
        elif kind != ".parquet":
            yield from self._plain_text(stream, name)
        elif packed:  # parquet is read from its end
            with tempfile.TemporaryFile(dir=self._spool) as copy:
                shutil.copyfileobj(stream, copy, BLOCK_BYTES)
                yield from self._parquet(copy, name)
        else:
            yield from self._parquet(stream, name)

    def _plain_text(self, stream: BinaryIO, name: str) -> Iterator[tuple[str, bool]]:
        offset, line = 0, 1
        for block in _blocks(stream):
            text = self._decode(block, offset, line, name)
            offset, line = offset + len(block), line + block.count(b"\n")
            if text:
                yield text, False
        if offset:
            yield "", True
        else:
            self._bad("the file is empty", name)

    def _decode(self, block: bytes, offset: int, line: int, name: str) -> str:
        """One block as text; with `skip_bad`, without the lines that are not."""
        problem = _not_text(block)
        if problem and self.data.skip_bad:
            block = b"".join(self._good_lines(block, line, name))
        elif problem:
            message, at = problem
            line += block.count(b"\n", 0, at)
            self._bad(f"not UTF-8 text: {message} at byte {offset + at:,}", f"{name}:{line}", _kind_hint(block, offset))
        return (block if offset else block.removeprefix(codecs.BOM_UTF8)).decode()

    def _good_lines(self, block: bytes, first: int, name: str) -> Iterator[bytes]:
        for number, line in enumerate(io.BytesIO(block), first):
            if problem := _not_text(line):
                self._bad(f"not UTF-8 text: {problem[0]}", f"{name}:{number}")
            else:
                yield line

    def _json_lines(self, stream: BinaryIO, name: str) -> Iterator[tuple[str, bool]]:
        number = 0
        while line := stream.readline(RECORD_BYTES):
            number += 1
            if len(line) == RECORD_BYTES and not line.endswith(b"\n"):
                self._bad(f"the line is longer than {RECORD_BYTES >> 20} MiB", f"{name}:{number}")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(RECORD_BYTES)
            elif line.strip() and (text := self._json_text(line, number, name)) is not None:
                yield text, True
        if not number:
            self._bad("the file is empty", name)

    def _json_text(self, line: bytes, number: int, name: str) -> str | None:
        where = f"{name}:{number}"
        try:
            record = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            return self._bad(f"not UTF-8 text: byte 0x{line[error.start]:02x} at byte {error.start} of the line", where)
        except json.JSONDecodeError as error:
            hint = "A file of one JSON array becomes lines with: jq -c '.[]'" if line.lstrip()[:1] == b"[" else None
            return self._bad(f"broken JSON: {error.msg} at column {error.pos + 1}", where, hint)
        except RecursionError:
            return self._bad("broken JSON: nested too deeply", where)
        return self._field(record, where)

    def _parquet(self, stream: BinaryIO, name: str) -> Iterator[tuple[str, bool]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(stream, pre_buffer=False, buffer_size=BLOCK_BYTES) as file:
            _check_column(file.schema_arrow.names, self.data.text_field, name)
            rows, size, number = file.metadata.num_rows, os.fstat(stream.fileno()).st_size, 0
            self._position = lambda: size * number // rows
            if not rows:
                self._bad("the file holds no records", name)
            for batch in file.iter_batches(BATCH_RECORDS, columns=[self.data.text_field]):
                for value in batch.column(0):
                    number += 1
                    text = self._parquet_text(value, f"{name}: record {number}")
                    if text is not None:
                        yield text, True

    def _parquet_text(self, value, where: str) -> str | None:
        try:
            return self._field({self.data.text_field: value.as_py()}, where)
        except UnicodeDecodeError as error:
            return self._bad(f"not UTF-8 text: {error}", where)


class BuiltinSource(Source):
    """Stories from the seeded writer."""

    def __init__(self, data: DataSection, requested: str | None = None, reason: str | None = None):
        count = data.num_documents or BUILTIN_DOCUMENTS
        used = f"builtin: {data.builtin} ({count:,} documents, seed {data.seed})"
        super().__init__(data, requested or used)
        self.total, self.used, self.fallback_reason = count, used, reason

    def _texts(self) -> Iterator[tuple[str, bool]]:
        from mosaic_cli.data.stories import stories

        for story in stories(self.total, seed=self.data.seed):
            self.done += 1
            yield story.text, True


class HubSource(Source):
    """One split of a data set that `datasets` has downloaded or found in its cache (or of a local folder)."""

    def __init__(self, data: DataSection, split: str, offline_reason: str | None = None):
        super().__init__(data, _hub_name(data, split))
        self.dataset = _load_split(data, split, offline_reason)
        self.total = min(len(self.dataset), data.num_documents or len(self.dataset))
        if offline_reason:
            self.used += " (from the local cache)"
        _check_column(self.dataset.column_names, data.text_field, self.requested)

    def _texts(self) -> Iterator[tuple[str, bool]]:
        field = self.data.text_field
        for batch in self.dataset.select_columns([field]).iter(batch_size=BATCH_RECORDS):
            for value in batch[field]:
                self.done += 1
                text = self._field({field: value}, f"{self.requested}: record {self.done}")
                if text is not None:
                    yield text, True


def open_source(data: DataSection, spool: Path) -> Source:
    """The source a recipe names, ready to be read; a hub data set is downloaded here.

    Args:
        spool: a folder for a copy of standard input, which cannot be read twice.

    Raises:
        UsageError: a file, split or configuration that does not exist.
        DataError: an empty folder, or a hub that cannot be reached while `if_unreachable` is `error`.
    """
    if data.source == "files":
        return FileSource(data, spool)
    if data.source == "builtin":
        return BuiltinSource(data)
    try:
        return _open_hub(data)
    except HubUnreachable as error:
        if data.if_unreachable == "error":
            raise
        return BuiltinSource(data, _hub_name(data, data.hub_split), error.message)


def ask_hub(name: str, kind: str = "dataset") -> None:
    """One quick request: does the hub answer, and does it know `name`?

    Raises:
        HubUnreachable: no answer within seconds, or offline mode.
        DataError: the hub answered that there is no such thing, or that it is not for everybody.
    """
    problem = _patiently(lambda: _hub_problem(name, kind))
    if isinstance(problem, Exception):
        raise problem
    if problem:
        raise HubUnreachable(f"the hub cannot be reached: {problem}", where=f"hub: {name}")


def _hub_problem(name: str, kind: str) -> str | Exception | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=HUB_SECONDS)
    except RepositoryNotFoundError as error:  # gated ones too: 401 or 403 instead of 404
        what = "data set" if kind == "dataset" else kind
        return DataError(
            f"the hub answers, but there is no {what} {name!r}, or it is not open to you: {_first_line(error)}",
            where=f"hub: {name}",
            hint="Check the name on https://huggingface.co; for a private one log in: hf auth login",
        )
    except HFValidationError as error:
        return UsageError(f"{name!r} is no name on the hub: {_first_line(error)}", hint="Names look like owner/name.")
    except OfflineModeIsEnabled:
        return "offline mode is on (HF_HUB_OFFLINE)"
    except Exception as error:  # the network has too many ways to fail to list: every other one is "no answer"
        return f"{type(error).__name__}: {_first_line(error)}"
    return None


def _patiently(ask) -> Any:
    """`ask()`, or a note after twice its time: looking a name up can hang longer than a request's own limit."""
    answer: list = []
    thread = threading.Thread(target=lambda: answer.append(ask()), daemon=True)
    thread.start()
    thread.join(2 * HUB_SECONDS)
    return answer[0] if answer else f"no answer within {2 * HUB_SECONDS:.0f} s"


def _open_hub(data: DataSection) -> Source:
    unreachable = None
    if not os.path.isdir(data.hub):
        try:
            ask_hub(data.hub)
        except HubUnreachable as error:
            unreachable = error.message
    source = HubSource(data, data.hub_split, unreachable)
    if data.hub_val_split:
        source.validation = HubSource(data, data.hub_val_split, unreachable)
    return source


def _load_split(data: DataSection, split: str, offline_reason: str | None):
    """The data set's split; only from the cache where there is a reason for that."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what it would log is raised too
    try:
        with _offline() if offline_reason else nullcontext():
            return datasets.load_dataset(data.hub, data.hub_config, split=split)
    except Exception as error:
        raise _load_error(error, _hub_name(data, split), offline_reason) from error


def _load_error(error: Exception, where: str, offline_reason: str | None) -> DataError | UsageError:
    import datasets.exceptions

    detail = _first_line(_root(error))
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return DataError(detail, where=where, hint="Check the name on https://huggingface.co")
    if offline_reason and not detail.startswith("Unknown split"):
        missing = "" if isinstance(error, ConnectionError) else f" ({detail})"
        return _unreachable(f"{offline_reason}; and it is not in the local cache{missing}", where)
    if _is_network_failure(error):
        return _unreachable(f"the download failed: {_first_line(error)}", where)
    if isinstance(error, ValueError):  # how the library refuses a split or configuration, naming the valid ones
        return UsageError(detail, where=where, hint="Choose with --set data.hub_split=... and data.hub_config=...")
    return DataError(f"the data set cannot be read: {detail}", where=where)


def _unreachable(reason: str, where: str) -> HubUnreachable:
    return HubUnreachable(
        reason,
        where=where,
        hint="Train on local files (--set data.source=files --set data.files=[FILE]) or on the built-in stories "
        "(--set data.if_unreachable=builtin).",
    )


@contextmanager
def _offline() -> Iterator[None]:
    """Only the cache: the libraries read HF_HUB_OFFLINE once, at import, and without it they retry for 23 s."""
    import datasets.config
    import huggingface_hub.constants

    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def _is_network_failure(error: BaseException | None) -> bool:
    """Whether a network library stands anywhere in the chain of causes; which one differs between hub versions."""
    while error is not None:
        roots = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
        if isinstance(error, ConnectionError | TimeoutError) or roots & {
            "httpx",
            "httpx2",
            "requests",
            "urllib3",
            "aiohttp",
        }:
            return True
        error = error.__cause__ or error.__context__
    return False


class _Splitter:
    """Cuts a stream of text at `<|endoftext|>`, wherever blocks happen to end, and leaves blank documents out."""

    def __init__(self) -> None:
        self.blank = 0
        self._held = ""  # the end of the text so far, which may be the start of a separator
        self._space = ""  # white space at a document's start, until something else follows
        self._started = self._separated = False

    def feed(self, text: str, ends_record: bool) -> Iterator[Piece]:
        text, self._held = self._held + text, ""
        start = 0
        for before, after in _separators(text):
            if after >= len(text) - 1 and not ends_record:
                break  # its own line break may still be to come
            yield from self._emit(text[start : max(start, before)], True)
            start, self._separated = after, True
        text = text[start:]
        if ends_record:
            if text or not self._separated:
                yield from self._emit(text, True)
            self._separated = False
        elif text:
            cut = _gap_before(text, max(0, len(text) - _HELD_CHARS))
            self._held = text[cut:]
            yield from self._emit(text[:cut], False)

    def _emit(self, text: str, ends_document: bool) -> Iterator[Piece]:
        if not self._started and len(self._space) < PIECE_CHARS and (not text or text.isspace()):
            self._space += text
            if ends_document:
                self.blank += 1
                self._space = ""
            return
        text, self._space, self._started = self._space + text, "", not ends_document
        start = 0
        while len(text) - start > PIECE_CHARS:
            cut = _gap_before(text, start + PIECE_CHARS, start)
            yield Piece(text[start:cut], False)
            start = cut
        if start < len(text):
            yield Piece(text[start:], ends_document)


def _separators(text: str) -> Iterator[tuple[int, int]]:
    """Where separators start and end. One line break on each side is part of one, so that a separator on a line of its
    own leaves no empty line behind. (A regular expression for this takes ten times as long.)"""
    at = text.find(END_OF_TEXT)
    while at >= 0:
        after = at + len(END_OF_TEXT)
        before = at - (text.endswith("\n", 0, at) + text.endswith("\r\n", 0, at))
        after += 2 if text.startswith("\r\n", after) else text.startswith("\n", after)
        yield before, after
        at = text.find(END_OF_TEXT, after)


def _gap_before(text: str, limit: int, start: int = 0) -> int:
    """Where to cut after `start`, up to `limit`: after the last line break, else the last space, else right there."""
    return (text.rfind("\n", start, limit) + 1) or (text.rfind(" ", start, limit) + 1) or limit


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in blocks that end after a line or, in a line longer than a block, between two characters."""
    rest = b""
    while block := stream.read(BLOCK_BYTES):
        block = rest + block
        cut = block.rfind(b"\n") + 1 or _character_start(block)
        rest = block[cut:]
        if cut:
            yield block[:cut]
    if rest:
        yield rest


def _character_start(block: bytes) -> int:
    """Where the last character of a UTF-8 block starts (the end of the block, if it is not UTF-8)."""
    for at in range(len(block) - 1, max(len(block) - 5, -1), -1):
        if block[at] & 0xC0 != 0x80:
            return at
    return len(block)


def _not_text(block: bytes) -> tuple[str, int] | None:
    """What makes these bytes not text, and at which of them; None if they are text."""
    if (at := block.find(b"\0")) >= 0:
        return "a zero byte, as in binary files,", at
    try:
        block.decode()
    except UnicodeDecodeError as error:
        return f"byte 0x{block[error.start]:02x}", error.start
    return None


def _kind_hint(block: bytes, offset: int) -> str | None:
    kinds = (kind for magic, kind in _MAGIC.items() if offset == 0 and block.startswith(magic))
    return next((f"It looks like {kind}." for kind in kinds), None)


class _ZstdReader(io.RawIOBase):
    """Decompresses frame after frame and, unlike zstandard's own reader, notices a stream that stops too early."""

    def __init__(self, raw: BinaryIO):
        import zstandard

        self._raw, self._new_frame = raw, zstandard.ZstdDecompressor().decompressobj
        self._frame, self._ready, self._unused = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            data = self._unused or self._raw.read(ZSTD_READ_BYTES)
            if not data:
                if self._frame:
                    raise EOFError("the compressed stream stops too early")
                return 0
            self._frame = self._frame or self._new_frame()
            self._ready = self._frame.decompress(data)
            self._unused = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    return io.BufferedReader(_ZstdReader(raw), BLOCK_BYTES) if suffix == ".zst" else raw


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns what a broken or unreadable file raises into a DataError that names it."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise _broken(f"broken compressed stream: {error}", name) from error
    except OSError as error:
        if error.errno:
            raise DataError(f"cannot read it: {error.strerror}", where=name) from error
        raise _broken(f"broken file: {_first_line(error)}", name) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("zstandard", "zstd", "pyarrow"):
            raise _broken(f"broken file: {_first_line(error)}", name) from error
        raise


def _broken(message: str, name: str) -> DataError:
    return DataError(message, where=name, hint="Fetch or make it again; what is lost cannot be skipped.")


def _find(name: str, spool: Path) -> list[tuple[Path, str]]:
    """(path, name for messages) of every file that an entry of `data.files` stands for."""
    if name == "-":
        return [(_spooled(sys.stdin.buffer, spool), "standard input")]
    path = Path(name)
    if path.is_dir():
        files = [Path(folder, file) for folder, _, files in os.walk(path) for file in files]
        visible = [file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        if not visible:
            raise DataError("the folder holds no files", where=name)
        return [(file, str(file)) for file in sorted(visible)]
    if not path.exists():
        raise UsageError(
            f"no such file or folder: {name}",
            where=name,
            hint=f"Relative names count from beside the recipe and from {Path.cwd()}.",
        )
    if stat.S_ISFIFO(path.stat().st_mode):
        with path.open("rb") as pipe:
            return [(_spooled(pipe, spool), name)]
    if not path.is_file():
        raise UsageError(f"neither a file nor a folder: {name}", where=name)
    return [(path, name)]


def _spooled(stream: BinaryIO, spool: Path) -> Path:
    """A copy on disk of a stream that can be read only once."""
    path = spool / f"spooled-{len(list(spool.glob('spooled-*')))}"
    with path.open("xb") as file:
        shutil.copyfileobj(stream, file, BLOCK_BYTES)
    return path


def _check_column(names: list[str], field: str, where: str) -> None:
    if field not in names:
        raise DataError(
            f"there is no field {field!r}, only {_listed(names)}",
            where=where,
            hint="Name the field that holds the text: --text-field NAME",
        )


def _hub_name(data: DataSection, split: str) -> str:
    config = f", {data.hub_config}" if data.hub_config else ""
    return f"hub: {data.hub}{config} (split {split})"


def _listed(names) -> str:
    return ", ".join(map(repr, names)) or "no fields at all"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
