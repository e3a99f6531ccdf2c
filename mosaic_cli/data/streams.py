"""Files as streams of bytes: found, decompressed, and copied to disk where they could be read only once."""

import errno
import gzip
import io
import os
import shutil
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from mosaic_cli.errors import DataError, UsageError, first_line

NOT_ALL = "Take it out of the folder, or name the files that are meant."
BLOCK_BYTES = 1 << 20  # bytes read at a time
ZSTD_READ_BYTES = 4096  # zstd can blow one input byte up to 32 kB, so this bounds one step's output at 128 MB


def find_files(name: str, spool: Path) -> list[tuple[Path, str]]:
    """(path, name for messages) of every file that an entry of `data.files` stands for.

    Args:
        name: a file, a folder (its files in the order of their paths), a named pipe, or `-` for standard input.
        spool: a folder for a copy of what can be read only once. It and the folder around it are not read themselves.

    Raises:
        UsageError: there is no such thing.
        DataError: the folder holds no files, or something in it cannot be read.
    """
    if name == "-":
        if sys.stdin is None:
            raise DataError("standard input is closed", where="-")
        return [(_spooled(sys.stdin.buffer, spool), "standard input")]
    if not name:
        raise UsageError("a source without a name", hint="An empty variable? The current folder is `.`")
    path = Path(name)
    if path.is_dir():
        files = sorted(_files_in(path, spool.parent))
        if not files:
            raise DataError("the folder holds no files", where=name)
        return [(file, printable(file)) for file in files]
    if not path.exists():
        raise UsageError(
            f"no such file or folder: {name}",
            where=name,
            hint=f"Relative names count from beside the recipe and from {Path.cwd()}. A recipe's text is named by "
            "--set data.files=[PATH].",
        )
    if stat.S_ISFIFO(path.stat().st_mode):
        with path.open("rb") as pipe:
            return [(_spooled(pipe, spool), name)]
    if not path.is_file():
        raise UsageError(f"neither a file nor a folder: {name}", where=name)
    return [(path, name)]


def printable(name: str | Path) -> str:
    """A file's name for messages and JSON: what is not UTF-8 in it as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _files_in(folder: Path, own: Path) -> Iterator[Path]:
    """All files of a folder and those in it, but not in `own`; hidden ones are left out, links followed. Each folder is
    read once, wherever links lead."""
    seen = {_identity(own)}
    for root, folders, files in os.walk(folder, followlinks=True, onerror=_raise):
        here = _identity(root)
        if here in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (Path(root, name) for name in files if not name.startswith(".")):
            try:
                kind = file.stat().st_mode
            except OSError as error:
                _raise(error)
            if not stat.S_ISREG(kind):
                raise UsageError(f"neither a file nor a folder: {printable(file)}", where=printable(file), hint=NOT_ALL)
            yield file


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _raise(error: OSError) -> NoReturn:
    raise DataError(f"cannot read it: {error.strerror}", where=printable(error.filename), hint=NOT_ALL) from error


def _spooled(stream: BinaryIO, spool: Path) -> Path:
    """A copy on disk of a stream that can be read only once."""
    path = spool / f"spooled-{len(list(spool.glob('spooled-*')))}"
    with path.open("xb") as file:
        shutil.copyfileobj(stream, file)
    return path


def decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    """The stream of a file whose name ends in `suffix`: unpacked if that is .gz or .zst."""
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)
    return io.BufferedReader(_ZstdReader(raw), BLOCK_BYTES) if suffix == ".zst" else raw


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


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what a broken or unreadable file raises into a DataError that names it."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise _broken(f"broken compressed stream: {error}", name) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:  # of a copy that is made
            raise
        if error.errno:
            raise DataError(f"cannot read it: {error.strerror}", where=name) from error
        raise _broken(f"broken file: {first_line(error)}", name) from error
    except Exception as error:
        if "requires too much memory" in str(error):
            raise DataError(
                "compressed with a window of more than 128 MiB", where=name, hint="Pack it again without zstd --long."
            ) from error
        if type(error).__module__.split(".")[0] in ("zstandard", "zstd", "pyarrow"):
            raise _broken(f"broken file: {first_line(error)}", name) from error
        raise


def _broken(message: str, name: str) -> DataError:
    return DataError(message, where=name, hint="Fetch or make it again; what is lost cannot be skipped.")
