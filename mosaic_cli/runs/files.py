"""Files that are either whole or absent, and JSON with a format version."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mosaic_cli.errors import CheckpointError, MosaicError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a write that the system refuses (a full disk, say) into a CheckpointError that names the file."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path.name} could not be written: {error.strerror}",
            where=path,
            hint="Free some disk space, then train with --resume.",
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file so that a crash leaves the old or the new one, never a part.

    Raises:
        CheckpointError: it could not be written; the old one is untouched.
    """
    beside = path.with_name(f".{path.name}.tmp")
    with writing(path):
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync(path.parent)


def sync(path: Path) -> None:
    """Make a written file's content, or a folder's entries (creations, renames), survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hash of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dump_json(value: dict[str, Any]) -> str:
    """JSON as the toolkit writes it: indented, floats in full."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def load_json(path: Path, format_version: int, error: type[MosaicError]) -> dict[str, Any]:
    """Read a JSON file that carries `format_version`.

    Raises:
        error: missing, not JSON, or written by a newer version of the toolkit.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as missing:
        raise error(f"{path.name} is missing", where=path) from missing
    except (OSError, ValueError) as damage:
        raise error(f"{path.name} cannot be read: {damage}", where=path) from damage
    found = value.get("format_version") if isinstance(value, dict) else None
    if not isinstance(found, int):
        raise error(f"{path.name} has no format version", where=path)
    if found > format_version:
        raise error(
            f"{path.name} has format version {found}, this toolkit reads up to {format_version}",
            where=path,
            hint="Use a newer version of the toolkit: pip install --upgrade mosaic-cli",
        )
    return value
