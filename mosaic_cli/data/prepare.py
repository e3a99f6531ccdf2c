"""From a source to token shards, in two passes and bounded memory.

The first pass validates and counts, and keeps a sample for a tokenizer that is to be trained. The second encodes and
writes.
"""

import errno
import os
import shutil
from collections.abc import Generator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from mosaic_cli import __version__
from mosaic_cli.data.documents import Source
from mosaic_cli.data.encoding import Segment, encoded
from mosaic_cli.data.sample import Sample
from mosaic_cli.data.shards import SPLITS, Manifest, RowRule, ShardWriter, SourceInfo, SplitInfo, TokenizerInfo
from mosaic_cli.data.sources import open_source
from mosaic_cli.data.splits import parts
from mosaic_cli.data.tasks.registry import TASKS, task_tokenizer
from mosaic_cli.data.tasks.task import Task
from mosaic_cli.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from mosaic_cli.data.tokenizer import Tokenizer, make_tokenizer
from mosaic_cli.data.workspace import SPOOL, workspace
from mosaic_cli.errors import DataError
from mosaic_cli.files import sha256
from mosaic_cli.recipe import DataSection

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
        with workspace(out, force) as folder:
            done = yield from _prepare_into(folder, data)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "Free some space, or choose another folder with --out." if full else None
        does = "write the data" if full or error.errno == errno.EROFS else "prepare the data"
        raise DataError(f"cannot {does}: {error.strerror or error}", where=error.filename or out, hint=hint) from error
    yield done
    return done.manifest


def _prepare_into(folder: Path, data: DataSection) -> Generator[PrepareProgress, None, PrepareProgress]:
    yield PrepareProgress("open")
    task = TASKS.get(data.builtin) if data.source == "builtin" else None
    tokenizer = task_tokenizer(data.builtin) if task else _tokenizer_beforehand(data)
    spool = folder / SPOOL
    spool.mkdir()
    source = open_source(data, spool)
    scan = yield from _scan(source, data)
    if tokenizer is None and data.tokenizer == "bpe":
        yield PrepareProgress("train tokenizer", documents=scan.documents)
        tokenizer = Tokenizer.train(scan.sample.texts(scan.cut), data.vocab_size)
    elif tokenizer is None:
        tokenizer = Tokenizer.of_characters(scan.alphabet)
    scan.sample = None  # its memory is wanted for the second pass
    splits = yield from _encode(folder, source, scan, tokenizer)
    shutil.rmtree(spool)
    manifest = _write_manifest(folder, data, source, tokenizer, splits, task and _row_rule(task, tokenizer))
    return PrepareProgress(
        "done", documents=scan.documents, tokens=manifest.train.tokens + manifest.val.tokens, manifest=manifest
    )


def _tokenizer_beforehand(data: DataSection) -> Tokenizer | None:
    """The tokenizer, unless it depends on the text."""
    return None if data.tokenizer in ("bpe", "char") else make_tokenizer(data.tokenizer)


def _row_rule(task: Task, tokenizer: Tokenizer) -> RowRule:
    after = None if task.after is None else tokenizer.single(task.after)
    return RowRule(task.longest, tokenizer.encode(task.ignored), after)


def _write_manifest(
    folder: Path,
    data: DataSection,
    source: Source,
    tokenizer: Tokenizer,
    splits: dict[str, SplitInfo],
    rows: RowRule | None,
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
        rows=rows,
        created_by=f"mosaic {__version__}",
        settings=data.model_dump(mode="json", exclude={"dir", "if_unreachable"}),
    )
    manifest.save(folder)
    return manifest


@dataclass
class _Scan:
    """What the first pass finds out; `fraction` and `cut` as `parts` takes them."""

    fraction: Fraction
    documents: int = 0
    characters: int = 0
    alphabet: set[str] | None = None
    sample: Sample | None = None
    cut: int | None = None


def _scan(source: Source, data: DataSection) -> Generator[PrepareProgress, None, _Scan]:
    warning = f"{source.fallback_reason}. Using {source.used} instead of {source.requested}."
    yield PrepareProgress("scan", 0, _total(source), source.unit, warning=warning if source.fallback_reason else None)
    scan = _Scan(Fraction(0) if source.validation else Fraction(str(data.val_fraction)))
    scan.alphabet = set() if data.tokenizer == "char" else None
    scan.sample = Sample() if data.tokenizer == "bpe" else None
    reported = 0
    for split, text, ends_document in parts(source, scan.fraction):
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


def _encode(
    folder: Path, source: Source, scan: _Scan, tokenizer: Tokenizer
) -> Generator[PrepareProgress, None, dict[str, SplitInfo]]:
    writers = {split: ShardWriter(folder, split, tokenizer.dtype) for split in SPLITS}
    totals = {split: SplitInfo(0, 0, 0, 0, []) for split in SPLITS}
    documents = 0
    yield PrepareProgress("encode", 0, _total(source), source.unit)
    for segments, arrays in encoded(parts(source, scan.fraction, scan.cut), tokenizer):
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


def _write(writer: ShardWriter, chosen: list[tuple[Segment, np.ndarray]], end_of_text: int) -> None:
    end = np.array([end_of_text], dtype=writer.dtype)
    arrays = [array for segment, ids in chosen for array in ((ids, end) if segment.ends_document else (ids,))]
    if arrays:
        writer.write(np.concatenate(arrays))


def _add(total: SplitInfo, segments: list[Segment]) -> SplitInfo:
    return replace(
        total,
        documents=total.documents + sum(segment.ends_stretch for segment in segments),
        characters=total.characters + sum(len(segment.text) for segment in segments),
        bytes=total.bytes + sum(len(segment.text.encode()) for segment in segments),
    )


def _done(source: Source) -> int:
    return source.done + (source.validation.done if source.validation else 0)


def _total(source: Source) -> int:
    return source.total + (source.validation.total if source.validation else 0)
