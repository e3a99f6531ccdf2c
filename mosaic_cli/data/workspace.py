"""A folder of prepared data that appears whole or not at all.

It is made as `<out>.partial`, which becomes `out` by a rename at the very end: killed at any moment, there is no folder
that looks good and is not, and running it again starts clean.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosaic_cli.data.shards import MANIFEST_FILE
from mosaic_cli.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.files import LOCK_FILE, locked, sync, unfinished

SPOOL = "spool"  # a folder, in the one that is being made, for what can be read only once
_SHARD = re.compile(r"(train|val)-\d{5,}\.bin")


@contextmanager
def workspace(out: Path, force: bool) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when the block succeeds, and goes when it does not.

    Where `out` is a link to a folder, that folder's place is taken.

    Raises:
        UsageError: `out` is there already, or, with `force`, holds other things than prepared data; it cannot be
            replaced as a whole; or the folder beside it is somebody's.
        DataError: another process is making the same folder.
    """
    out = out.resolve()
    if out == Path.cwd() or out.is_mount():
        raise UsageError(
            "this folder cannot be replaced as a whole", where=out, hint=f"Write to one inside it: --out {out / 'NAME'}"
        )
    partial = out.with_name(f"{out.name}.partial")
    if not _is_partial(partial):
        raise UsageError(
            f"{partial} is needed while {out} is being made, and holds other things",
            where=partial,
            hint="Rename it, or choose another --out.",
        )
    busy = DataError(
        f"another mosaic prepare is writing {out}",
        where=partial,
        hint="Wait until it is done, or write elsewhere with --out.",
    )
    with locked(partial, busy):
        try:
            _settle(out)
            _check_replaceable(out, force)
            _clear(partial)
            yield partial
            _publish(partial, out)
        except BaseException:
            _clear(partial)
            raise


def _check_replaceable(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UsageError(f"{out} is there already", where=out, hint="Replace it with --force, or choose another --out.")
    if not _is_prepared(out):
        raise UsageError(
            f"{out} holds other things than prepared data and is not replaced", where=out, hint="Choose another --out."
        )


def _is_prepared(folder: Path) -> bool:
    """Whether everything in a folder is ours: only then may it be removed."""
    return folder.is_dir() and all(_is_ours(entry) for entry in folder.iterdir())


def _is_partial(folder: Path) -> bool:
    """Whether a folder is not there, or everything in it is ours, of a run that was killed."""
    if not os.path.lexists(folder):
        return True
    return _is_folder(folder) and all(_is_ours(entry) or _is_unfinished(entry) for entry in folder.iterdir())


def _is_unfinished(entry: Path) -> bool:
    if entry.name == SPOOL:
        return _is_folder(entry)
    return entry in (unfinished(entry.with_name(name)) for name in (MANIFEST_FILE, TOKENIZER_FILE))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_ours(entry: Path) -> bool:
    named = entry.name in (MANIFEST_FILE, TOKENIZER_FILE, LOCK_FILE) or _SHARD.fullmatch(entry.name)
    return bool(named) and entry.is_file() and not entry.is_symlink()


def _publish(partial: Path, out: Path) -> None:
    sync(partial)
    if out.exists():
        out.rename(_replaced(out))
    partial.rename(out)
    (out / LOCK_FILE).unlink()
    sync(out.parent)
    _settle(out)


def _settle(out: Path) -> None:
    """What a replacement left behind: the old data is put back if the new never took its place, else removed."""
    old = _replaced(out)
    if not old.exists():
        return
    if not out.exists():
        old.rename(out)
    elif _is_prepared(old):
        shutil.rmtree(old)


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def _clear(folder: Path) -> None:
    """Removes everything in a folder but the lock."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK_FILE:
            entry.unlink()
