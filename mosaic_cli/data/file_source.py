"""Documents from text, JSON lines and parquet files, each plain or compressed."""

import codecs
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mosaic_cli.data.documents import BATCH_RECORDS, Source
from mosaic_cli.data.streams import BLOCK_BYTES, decompressed, find_files, reading
from mosaic_cli.recipe import DataSection

RECORD_BYTES = 64 << 20  # a longer JSON line is refused: parsing needs it whole in memory, several times over
RECORD_SUFFIXES = {".jsonl", ".json", ".ndjson"}
ARRAY_HINT = "A file of one JSON array becomes lines with: jq -c '.[]'"
_MAGIC = {
    b"\x1f\x8b": "gzip data: name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd data: name it .zst",
    b"PAR1": "parquet: name it .parquet",
    b"\xff\xfe": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"PK": "a zip archive: unpack it first",
    b"BZh": "bzip2 data: unpack it first",
    b"\xfd7zXZ": "xz data: unpack it first",
}


class FileSource(Source):
    """Text, jsonl and parquet files, plain or compressed, in the order given; a folder's files sorted by path."""

    unit = "bytes"

    def __init__(self, data: DataSection, spool: Path):
        super().__init__(data, f"files: {', '.join(data.files)}")
        self.paths = [found for name in data.files for found in find_files(name, spool)]
        self.total = sum(path.stat().st_size for path, _ in self.paths)
        self._spool = spool

    def _texts(self) -> Iterator[tuple[str, bool]]:
        before = 0
        for path, name in self.paths:
            with reading(name), path.open("rb") as raw:
                size, self._position = path.stat().st_size, raw.tell
                for text in self._file(path, raw, name):
                    self.done = before + min(self._position(), size)
                    yield text
            before += size
            self.done = before

    def _file(self, path: Path, raw: BinaryIO, name: str) -> Iterator[tuple[str, bool]]:
        packed = path.suffix in (".gz", ".zst")
        kind = (path.with_suffix("") if packed else path).suffix.lower()
        stream = decompressed(raw, path.suffix)
        if kind in RECORD_SUFFIXES:
            yield from self._json_lines(stream, name)
        elif kind != ".parquet":
            yield from self._plain_text(stream, name)
        elif packed:  # parquet is read from its end
            with tempfile.TemporaryFile(dir=self._spool) as copy:
                shutil.copyfileobj(stream, copy)
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
            hint = ARRAY_HINT if line.lstrip()[:1] == b"[" else None
            return self._bad(f"broken JSON: {error.msg} at column {error.pos + 1}", where, hint)
        except RecursionError:
            return self._bad("broken JSON: nested too deeply", where)
        except ValueError:  # what is left: Python reads integers of up to 4,300 digits
            return self._bad("broken JSON: a number of thousands of digits", where)
        if isinstance(record, list):
            return self._bad("the record is a list, not an object with fields", where, ARRAY_HINT)
        return self._field(record, where)

    def _parquet(self, stream: BinaryIO, name: str) -> Iterator[tuple[str, bool]]:
        import pyarrow.parquet as pq

        with pq.ParquetFile(stream, pre_buffer=False, buffer_size=BLOCK_BYTES) as file:
            self._check_column(file.schema_arrow.names, name)
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
