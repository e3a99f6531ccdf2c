"""Files that are whole or absent, their hashes, JSON with a format version, and folders that one process holds."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mosaic_cli.errors import MosaicError

LOCK_FILE = "lock"
_UPGRADE = "Use a newer version of the toolkit"


def sha256(path: Path) -> str:
    """Hash of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a written file's content, or a folder's entries (creations, renames), survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unfinished(path: Path) -> Path:
    """Where a file is until it is whole."""
    return path.with_name(f".{path.name}.tmp")


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file so that a crash leaves the old or the new one, never a part.

    Raises:
        OSError: it could not be written; the old one is untouched.
    """
    beside = unfinished(path)
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync(path.parent)


def dump_json(value: dict[str, Any]) -> str:
    """JSON as the toolkit writes it: indented, floats in full."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def load_json(path: Path, format_version: int, error: type[MosaicError], hint: str | None = None) -> dict[str, Any]:
    """Read a JSON file that carries `format_version`.

    Args:
        hint: what to do when the file cannot be used.

    Raises:
        error: missing, not JSON, or written by a newer version of the toolkit.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise error(f"{path.name} is missing", where=path, hint=hint) from missing
    except (OSError, ValueError, RecursionError) as damage:
        raise error(f"{path.name} cannot be read: {damage}", where=path, hint=hint) from damage
    found = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(found, int):
        raise error(f"{path.name} has no format version", where=path, hint=hint)
    if found > format_version:
        raise error(
            f"{path.name} has format version {found}, this toolkit reads up to {format_version}",
            where=path,
            hint=f"{_UPGRADE}. Else: {hint}" if hint else f"{_UPGRADE}.",
        )
    return value


@contextmanager
def locked(folder: Path, in_use: MosaicError) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes while the block runs.

    A locked file `lock` in it is the sign. The system lets go of it when the process ends, however that happens. At the
    end of the block the sign is removed, and the folder too if nothing else is in it.

    Raises:
        in_use: another process holds the folder.
    """
    path = folder / LOCK_FILE
    with _lock(path, in_use) as file:
        try:
            yield
        finally:
            if _is_at(path, file):  # else the block has renamed the folder, and this one is another process's
                path.unlink()
                with suppress(OSError):
                    folder.rmdir()


def _lock(path: Path, in_use: MosaicError) -> IO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # whoever held the folder has just removed or renamed it
            file = path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise in_use from error
            if _is_at(path, file):
                return file
            file.close()


def _is_at(path: Path, file: IO) -> bool:
    """Whether an open file is the one at `path`, which may have been renamed or removed meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
