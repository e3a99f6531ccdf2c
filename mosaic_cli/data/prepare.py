"""From a source to token shards, in two passes and bounded memory; on disk all or nothing.

The first pass validates and counts, and keeps a sample for a tokenizer that is to be trained. The second encodes and
writes. Everything goes to `<out>.partial`, which becomes `out` by a rename at the very end: killed at any moment, there
is no folder that looks good and is not, and running it again starts clean.
"""

import errno
import os
import shutil
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mosaic_cli import __version__
from mosaic_cli.data.documents import Piece, Source
from mosaic_cli.data.shards import (
    MANIFEST_FILE,
    SPLITS,
    Manifest,
    ShardWriter,
    SourceInfo,
    SplitInfo,
    TokenizerInfo,
)
from mosaic_cli.data.sources import open_source
from mosaic_cli.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from mosaic_cli.data.tokenizer import Tokenizer, make_tokenizer
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.files import LOCK_FILE, locked, sha256, sync
from mosaic_cli.recipe import DataSection

SAMPLE_BYTES = 64 << 20  # memory of the text a BPE is trained on: its merges settle far earlier, and it takes 10 s
DISTINCT_BYTES = 3 << 20  # training takes up to 250 bytes a byte of distinct words: Chinese has no spaces between them
SAMPLE_ITEM_BYTES = 160  # what keeping one text costs besides the text: a tuple and an integer
SEGMENT_CHARS = 1 << 16  # a longer document is encoded in segments, so that all cores share it
UNCUT_CHARS = 1 << 19  # without a place to cut, a segment grows up to this: bounds the memory of its tokens
BATCH_CHARS = 1 << 19  # encoded at once: enough for all cores; the library spends some 200 bytes a token on it
BATCH_TEXTS = 4096
BATCHES_AHEAD = 2  # encoded while the next one is read and the one before is written
REPORT_CHARS = 4 << 20  # between two reports of the first pass


@dataclass(frozen=True)
class PrepareProgress:
    """How far `prepare` is: `done` of `total`, in `unit`: `bytes` of the files as they are on disk, or `records`.

    Attributes:
        phase: `open` (a hub data set is downloaded), `scan`, `train tokenizer`, `encode`, `done`.
        total: None where it is not known.
        documents, tokens: found so far in this phase.
        warning: something the user must see: the source that is used is not the one asked for.
        manifest: what was written, with the last item.
    """

    phase: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    documents: int = 0
    tokens: int = 0
    warning: str | None = None
    manifest: Manifest | None = None


def prepare(
    data: DataSection, out: str | Path, *, force: bool = False, workers: int | None = None
) -> Generator[PrepareProgress, None, Manifest]:
    """Write the shards of `data` into the folder `out`; work is done, and checked for, as the generator is read.

    Closing the generator early, or an error, leaves nothing behind.

    Args:
        force: replace prepared data that is there, once the new is complete.
        workers: threads that encode; default one a core. The tokenizer library reads it once in a process, at its
            first use (RAYON_NUM_THREADS).

    Raises:
        UsageError: `out` exists; a file, split or tokenizer that does not.
        DataError: text that cannot be read or is too short, an unreachable hub, another `prepare` at work, a full disk.
    """
    if workers:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
    out = Path(out)
    try:
        with _workspace(out, force) as folder:
            done = yield from _prepare_into(folder, data)
    except OSError as error:
        hint = "Free some space, or choose another folder with --out." if error.errno == errno.ENOSPC else None
        raise DataError(
            f"cannot write the data: {error.strerror or error}", where=error.filename or out, hint=hint
        ) from error
    yield done
    return done.manifest


def is_held_out(document: int, fraction: Fraction) -> bool:
    """Whether document number `document` (from 0) is for validation: evenly spread, and an exact share of any start."""
    share, of = fraction.as_integer_ratio()
    return (document + 1) * share // of > document * share // of


def _prepare_into(folder: Path, data: DataSection) -> Generator[PrepareProgress, None, PrepareProgress]:
    yield PrepareProgress("open")
    tokenizer = None if data.tokenizer in ("bpe", "char") else make_tokenizer(data.tokenizer)
    spool = folder / "spool"
    spool.mkdir()
    source = open_source(data, spool)
    scan = yield from _scan(source, data)
    if data.tokenizer == "bpe":
        yield PrepareProgress("train tokenizer", documents=scan.documents)
        tokenizer = Tokenizer.train(scan.sample.texts(scan.cut), data.vocab_size)
    elif data.tokenizer == "char":
        tokenizer = Tokenizer.of_characters(scan.alphabet)
    scan.sample = None  # its memory is wanted for the second pass
    splits = yield from _encode(folder, source, scan, tokenizer)
    shutil.rmtree(spool)
    manifest = _write_manifest(folder, data, source, tokenizer, splits)
    return PrepareProgress(
        "done", documents=scan.documents, tokens=manifest.train.tokens + manifest.val.tokens, manifest=manifest
    )


def _write_manifest(
    folder: Path, data: DataSection, source: Source, tokenizer: Tokenizer, splits: dict[str, SplitInfo]
) -> Manifest:
    path = folder / TOKENIZER_FILE
    tokenizer.save(path)
    both = [source, source.validation] if source.validation else [source]
    manifest = Manifest(
        dtype=tokenizer.dtype.name,
        vocab_size=tokenizer.vocab_size,
        end_of_text=tokenizer.end_of_text,
        tokenizer=TokenizerInfo(tokenizer.kind, tokenizer.fingerprint, sha256(path)),
        source=SourceInfo(
            source.requested,
            source.used,
            source.fallback_reason,
            sum(s.skipped for s in both),
            next((s.first_skipped for s in both if s.first_skipped), None),
            sum(s.blank for s in both),
        ),
        **splits,
        created_by=f"mosaic {__version__}",
        settings=data.model_dump(mode="json", exclude={"dir", "if_unreachable"}),
    )
    manifest.save(folder)
    return manifest


@dataclass
class _Scan:
    """What the first pass finds out.

    fraction: share of the documents held out; 0 where validation has a source of its own.
    cut: where the joined text is cut instead, if the documents are too few to hold one out.
    """

    fraction: Fraction
    documents: int = 0
    characters: int = 0
    alphabet: set[str] | None = None
    sample: "_Sample | None" = None
    cut: int | None = None


class _Sample:
    """Texts spread evenly over all that were offered, within SAMPLE_BYTES however many are: deterministic."""

    def __init__(self) -> None:
        self._offered = self._size = 0
        self._limit = 1 << 32
        self._kept: list[tuple[int, int, str]] = []  # (rank, offset in the joined text, text)

    def add(self, text: str, offset: int) -> None:
        for start in range(0, len(text), SEGMENT_CHARS):
            # Multiples of the golden section lie evenly whatever their range, and never in step with the data.
            rank = self._offered * 2_654_435_769 & 0xFFFF_FFFF
            self._offered += 1
            if rank < self._limit:
                self._kept.append((rank, offset + start, text[start : start + SEGMENT_CHARS]))
                self._size += _memory(self._kept[-1])
        while self._size > SAMPLE_BYTES:
            self._limit //= 2
            self._kept = [item for item in self._kept if item[0] < self._limit]
            self._size = sum(map(_memory, self._kept))

    def texts(self, cut: int | None) -> Iterator[str]:
        """The sample, up to `cut` in the joined text: the tokenizer sees no text that is held out.

        In the order of rank, so that it is spread evenly wherever it stops: at DISTINCT_BYTES.
        """
        words: set[str] = set()
        size = 0
        for _, offset, text in sorted(self._kept):
            if cut is not None:
                text = text[: max(cut - offset, 0)]
            new = set(text.split()) - words
            words |= new
            size += sum(len(word.encode()) for word in new)
            if size > DISTINCT_BYTES:
                return
            yield text


def _memory(item: tuple[int, int, str]) -> int:
    return sys.getsizeof(item[2]) + SAMPLE_ITEM_BYTES


def _scan(source: Source, data: DataSection) -> Generator[PrepareProgress, None, _Scan]:
    warning = f"{source.fallback_reason}. Using {source.used} instead of {source.requested}."
    yield PrepareProgress("scan", 0, _total(source), source.unit, warning=warning if source.fallback_reason else None)
    scan = _Scan(Fraction(0) if source.validation else Fraction(str(data.val_fraction)))
    scan.alphabet = set() if data.tokenizer == "char" else None
    scan.sample = _Sample() if data.tokenizer == "bpe" else None
    reported = 0
    for split, text, ends_document in _by_document(_joined(source), scan.fraction):
        if scan.alphabet is not None:
            scan.alphabet.update(text)
        if scan.sample is not None and split == "train":
            scan.sample.add(text, scan.characters)
        scan.characters += len(text)
        scan.documents += ends_document
        if scan.characters - reported >= REPORT_CHARS:
            reported = scan.characters
            yield PrepareProgress("scan", _done(source), _total(source), source.unit, scan.documents)
    if scan.fraction and scan.documents * scan.fraction < 1:
        scan.cut = _tail_start(scan)
    return scan


def _tail_start(scan: _Scan) -> int:
    cut = scan.characters * (1 - scan.fraction) // 1
    if not cut:
        raise DataError(f"the text has {scan.characters} characters: too few for a training and a validation split")
    return cut


class _Part(NamedTuple):
    split: str
    text: str
    ends_document: bool


def _parts(source: Source, scan: _Scan) -> Iterator[_Part]:
    if scan.cut is not None:
        return _by_position(source.pieces(), scan.cut)
    return _by_document(_joined(source), scan.fraction)


def _joined(source: Source) -> Iterator[tuple[str | None, Piece]]:
    """The source, then its validation source: pieces with the split that this decides, or None."""
    if source.validation is None:
        return ((None, piece) for piece in source.pieces())
    return chain(
        (("train", piece) for piece in source.pieces()), (("val", piece) for piece in source.validation.pieces())
    )


def _by_document(pieces: Iterable[tuple[str | None, Piece]], fraction: Fraction) -> Iterator[_Part]:
    document = 0
    for split, (text, ends_document) in pieces:
        yield _Part(split or ("val" if is_held_out(document, fraction) else "train"), text, ends_document)
        document += ends_document


def _by_position(pieces: Iterable[Piece], cut: int) -> Iterator[_Part]:
    """Everything from character `cut` of the joined text on is `val`."""
    for text, ends_document in pieces:
        before = min(max(cut, 0), len(text))
        if before:
            yield _Part("train", text[:before], ends_document and before == len(text))
        if before < len(text):
            yield _Part("val", text[before:], ends_document)
        cut -= len(text)


class _Segment(NamedTuple):
    split: str
    text: str
    ends_document: bool
    ends_stretch: bool  # nothing more of this document in this split


def _encode(
    folder: Path, source: Source, scan: _Scan, tokenizer: Tokenizer
) -> Generator[PrepareProgress, None, dict[str, SplitInfo]]:
    writers = {split: ShardWriter(folder, split, tokenizer.dtype) for split in SPLITS}
    totals = {split: SplitInfo(0, 0, 0, 0, []) for split in SPLITS}
    documents = 0
    yield PrepareProgress("encode", 0, _total(source), source.unit)
    for segments, arrays in _encoded(_batches(_segments(_parts(source, scan), tokenizer)), tokenizer):
        for split, writer in writers.items():
            chosen = [(segment, ids) for segment, ids in zip(segments, arrays, strict=True) if segment.split == split]
            _write(writer, chosen, tokenizer.end_of_text)
            totals[split] = _add(totals[split], [segment for segment, _ in chosen])
        documents += sum(segment.ends_document for segment in segments)
        yield PrepareProgress(
            "encode",
            _done(source),
            _total(source),
            source.unit,
            documents,
            sum(writer.tokens for writer in writers.values()),
        )
    found = documents, sum(total.characters for total in totals.values())
    if found != (scan.documents, scan.characters):
        raise DataError("the text changed while it was being read", where=source.used, hint="Run the command again.")
    return {
        split: replace(totals[split], tokens=writers[split].tokens, files=writers[split].finish()) for split in SPLITS
    }


def _write(writer: ShardWriter, chosen: list[tuple[_Segment, np.ndarray]], end_of_text: int) -> None:
    end = np.array([end_of_text], dtype=writer.dtype)
    arrays = [array for segment, ids in chosen for array in ((ids, end) if segment.ends_document else (ids,))]
    if arrays:
        writer.write(np.concatenate(arrays))


def _add(total: SplitInfo, segments: list[_Segment]) -> SplitInfo:
    return replace(
        total,
        documents=total.documents + sum(segment.ends_stretch for segment in segments),
        characters=total.characters + sum(len(segment.text) for segment in segments),
        bytes=total.bytes + sum(len(segment.text.encode()) for segment in segments),
    )


def _segments(parts: Iterable[_Part], tokenizer: Tokenizer) -> Iterator[_Segment]:
    """Documents, the long ones cut where it makes no difference to their tokens."""
    held, split = "", ""
    for part in parts:
        if held and part.split != split:
            yield _Segment(split, held, False, True)
            held = ""
        split, text, start = part.split, held + part.text, 0
        while (cut := _next_cut(text, start, tokenizer)) is not None:
            yield _Segment(split, text[start:cut], False, False)
            start = cut
        held = text[start:]
        if part.ends_document:
            yield _Segment(split, held, True, True)
            held = ""


def _next_cut(text: str, start: int, tokenizer: Tokenizer) -> int | None:
    """Where the segment that starts at `start` ends; None while it may still grow."""
    length = len(text) - start
    if length <= SEGMENT_CHARS:
        return None
    cut = tokenizer.cut(text, start, start + SEGMENT_CHARS, start + UNCUT_CHARS)
    if cut is None and length > UNCUT_CHARS:
        return tokenizer.forced_cut(text, start + UNCUT_CHARS)
    return cut


def _batches(segments: Iterable[_Segment]) -> Iterator[list[_Segment]]:
    batch, size = [], 0
    for segment in segments:
        batch.append(segment)
        size += len(segment.text)
        if size >= BATCH_CHARS or len(batch) >= BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoded(
    batches: Iterable[list[_Segment]], tokenizer: Tokenizer
) -> Iterator[tuple[list[_Segment], list[np.ndarray]]]:
    """Each batch with its tokens, in order. Encoding lets go of the interpreter, so reading and writing go on."""
    waiting: deque = deque()
    with ThreadPoolExecutor(BATCHES_AHEAD) as pool:
        for batch in batches:
            waiting.append((batch, pool.submit(tokenizer.encode_batch, [segment.text for segment in batch])))
            if len(waiting) > BATCHES_AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _done(source: Source) -> int:
    return source.done + (source.validation.done if source.validation else 0)


def _total(source: Source) -> int:
    return source.total + (source.validation.total if source.validation else 0)


@contextmanager
def _workspace(out: Path, force: bool) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when the block succeeds, and goes when it does not."""
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
