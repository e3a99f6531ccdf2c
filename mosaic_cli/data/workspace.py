"""A folder of prepared data that appears whole or not at all.

It is made as `<out>.partial`, which becomes `out` by a rename at the very end: killed at any moment, there is no folder
that looks good and is not, and running it again starts clean.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosaic_cli.data.shards import MANIFEST_FILE
from mosaic_cli.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.files import LOCK_FILE, locked, sync


@contextmanager
def workspace(out: Path, force: bool) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when the block succeeds, and goes when it does not.

    Raises:
        UsageError: `out` is there already, or, with `force`, holds other things than prepared data.
        DataError: another process is making the same folder.
    """
    partial = out.with_name(f"{out.name}.partial")
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
    ours = {MANIFEST_FILE, TOKENIZER_FILE, LOCK_FILE}
    return folder.is_dir() and all(file.name in ours or file.suffix == ".bin" for file in folder.iterdir())


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
