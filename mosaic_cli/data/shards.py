"""Token shards: flat little-endian token files of each split, and the manifest that vouches for them.

docs/formats.md specifies the format. The manifest is written last, so a folder with one is complete.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from mosaic_cli.data.tokenizer import FILE_NAME as TOKENIZER_FILE
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.files import dump_json, load_json, sha256, sync, write_atomically

FORMAT_VERSION = 2  # 2: rows
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val")
SHARD_TOKENS = 1 << 27  # 256 MiB of uint16: few files, yet each one quick to copy, check or fetch again
SCAN_TOKENS = 1 << 22  # tokens looked at in one go: 32 MB as int64


@dataclass(frozen=True)
class ShardFile:
    """One file of tokens."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """One split. A document cut at the border of the splits counts in both; `bytes` is its text's length in UTF-8,
    end-of-text tokens counting nothing; `tokens` includes them."""

    documents: int
    characters: int
    bytes: int
    tokens: int
    files: list[ShardFile]


@dataclass(frozen=True)
class TokenizerInfo:
    """Which tokenizer made the tokens, and the file that holds it."""

    kind: str
    fingerprint: str
    sha256: str


@dataclass(frozen=True)
class SourceInfo:
    """Where the text came from: as asked, as used, and why they differ; what was left out."""

    requested: str
    used: str
    fallback_reason: str | None = None
    skipped_records: int = 0
    first_skipped: str | None = None
    blank_documents: int = 0


@dataclass(frozen=True)
class RowRule:
    """Each document is a row that is read by itself, and these of its tokens are asked for."""

    longest: int
    """Tokens that a row may have, end-of-text left out."""
    ignored: list[int]
    """Tokens that are never asked for."""
    after: int | None = None
    """Where given, only what comes later than the first token behind it is asked for."""


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds."""

    dtype: Literal["uint16", "uint32"]
    """Little-endian."""
    vocab_size: int
    end_of_text: int
    tokenizer: TokenizerInfo
    source: SourceInfo
    train: SplitInfo
    val: SplitInfo
    created_by: str
    rows: RowRule | None = None
    """Present where the data consists of rows, not of one long text."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The recipe's data section as it was, to notice that a folder was made from other settings."""

    def split(self, name: str) -> SplitInfo:
        """The split `train` or `val`."""
        return {"train": self.train, "val": self.val}[name]

    @property
    def fingerprint(self) -> str:
        """sha256 over the tokenizer and every token: equal for equal data, whatever its folder is called."""
        parts = [self.tokenizer.fingerprint, self.dtype]
        parts += [file.sha256 for name in SPLITS for file in self.split(name).files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write manifest.json and wait until it is on disk."""
        values = {"format": "mosaic.data", "format_version": FORMAT_VERSION, **asdict(self)}
        write_atomically(folder / MANIFEST_FILE, dump_json(values))

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest":
        """Read manifest.json.

        Raises:
            UsageError: no such folder.
            DataError: no manifest, a damaged one, or one of a newer format version.
        """
        folder = Path(folder)
        path = folder / MANIFEST_FILE
        if not folder.is_dir():
            raise UsageError(
                f"no such folder: {folder}",
                where=folder,
                hint=f"Prepare the data: mosaic prepare RECIPE --out {folder}",
            )
        if not path.exists():
            raise DataError(f"no prepared data: {MANIFEST_FILE} is missing", where=folder, hint=_again(folder))
        values = load_json(path, FORMAT_VERSION, DataError, hint=_again(folder))
        del values["format_version"]
        if values.pop("format", None) != "mosaic.data":
            raise DataError("not a manifest of token shards", where=path, hint=_again(folder))
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise DataError(
                f"damaged manifest: {key}: {first['msg'].lower()}", where=path, hint=_again(folder)
            ) from error


class ShardWriter:
    """Writes one split's tokens into files of `shard_tokens` each.

    Args:
        dtype: little-endian uint16 or uint32.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int = SHARD_TOKENS):
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.tokens = 0
        self._files: list[ShardFile] = []
        self._file: BinaryIO | None = None

    def write(self, tokens: np.ndarray) -> None:
        """Append a 1-d array of token ids."""
        while len(tokens):
            if self._file is None:
                self._open()
            now, tokens = tokens[: self.shard_tokens - self._in_file], tokens[self.shard_tokens - self._in_file :]
            data = memoryview(np.ascontiguousarray(now, dtype=self.dtype)).cast("B")
            self._file.write(data)
            self._hash.update(data)
            self._in_file += len(now)
            self.tokens += len(now)
            if self._in_file == self.shard_tokens:
                self._close()

    def finish(self) -> list[ShardFile]:
        """Close the last file; all are on disk then."""
        if self._file is not None:
            self._close()
        return self._files

    def _open(self) -> None:
        self._file = (self.folder / f"{self.split}-{len(self._files):05d}.bin").open("xb")
        self._hash, self._in_file = hashlib.sha256(), 0

    def _close(self) -> None:
        self._file.close()
        path = Path(self._file.name)
        sync(path)
        self._files.append(ShardFile(path.name, self._in_file, self._hash.hexdigest()))
        self._file = None


class TokenShards:
    """One split's tokens, memory-mapped: reading costs what is read, wherever it stands.

    Attributes:
        info: the split's entry in the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str):
        self.info = manifest.split(split)
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._maps = [np.memmap(folder / file.name, dtype=dtype, mode="r") for file in self.info.files]
        self._starts = np.cumsum([0, *(len(tokens) for tokens in self._maps)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop (not included) as an int64 array (stop - start,).

        Raises:
            IndexError: outside 0 <= start <= stop <= len.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of {len(self)}")
        out = np.empty(stop - start, dtype=np.int64)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for tokens, at in zip(self._maps[first:], self._starts[first:], strict=False):
            if at >= stop:
                break
            part = tokens[max(start - at, 0) : stop - at]
            offset = max(at - start, 0)
            out[offset : offset + len(part)] = part
        return out


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` looked at, and what it found wrong (nothing: `ok`)."""

    folder: Path
    manifest: Manifest
    files: int
    bytes: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        return not self.problems


def open_split(folder: str | Path, split: str, verify: bool = True) -> TokenShards:
    """The tokens of one split.

    Args:
        verify: compare checksums too; sizes are compared in any case.

    Raises:
        UsageError: no such folder.
        DataError: a missing, truncated or altered file, named with what to run.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    for name, size, checksum in _expected_files(manifest, (split,)):
        if problem := _file_problem(folder / name, size, checksum if verify else None):
            raise DataError(problem, where=folder / name, hint=_again(folder))
    return TokenShards(folder, manifest, split)


def verify(folder: str | Path) -> VerifyReport:
    """Check every file: sizes, checksums, the tokenizer's fingerprint, and that each token is in the vocabulary.

    Raises:
        UsageError, DataError: no manifest to check against (see `Manifest.load`).
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    problems, num_files, num_bytes = [], 0, 0
    for name, size, checksum in _expected_files(manifest, SPLITS):
        num_files += 1
        if problem := _file_problem(folder / name, size, checksum):
            problems.append(f"{name}: {problem}")
        else:
            num_bytes += (folder / name).stat().st_size
    if not problems:
        problems = list(_content_problems(folder, manifest))
    return VerifyReport(folder, manifest, num_files, num_bytes, problems)


def _expected_files(manifest: Manifest, splits: tuple[str, ...]) -> Iterator[tuple[str, int | None, str]]:
    """(name, bytes or None where the checksum alone vouches, checksum)."""
    yield TOKENIZER_FILE, None, manifest.tokenizer.sha256
    item_bytes = np.dtype(manifest.dtype).itemsize
    for split in splits:
        for file in manifest.split(split).files:
            yield file.name, file.tokens * item_bytes, file.sha256


def _file_problem(path: Path, size: int | None, checksum: str | None) -> str | None:
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            return f"the file has {found:,} bytes instead of {size:,}"
        if checksum and sha256(path) != checksum:
            return "the file was altered: its checksum is not the manifest's"
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return None


def _content_problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    found = tokenizer.kind, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.end_of_text
    of_manifest = manifest.tokenizer.kind, manifest.tokenizer.fingerprint, manifest.vocab_size, manifest.end_of_text
    if found != of_manifest:
        yield f"{TOKENIZER_FILE}: not the tokenizer the manifest describes"
    for split in SPLITS:
        shards = TokenShards(folder, manifest, split)
        if len(shards) != manifest.split(split).tokens:
            yield f"{split}: {len(shards):,} tokens instead of {manifest.split(split).tokens:,}"
        starts = range(0, len(shards), SCAN_TOKENS)
        highest = max((shards.read(at, min(at + SCAN_TOKENS, len(shards))).max() for at in starts), default=0)
        if highest >= manifest.vocab_size:
            yield f"{split}: token {highest} in a vocabulary of {manifest.vocab_size}"


def _again(folder: Path) -> str:
    return f"Prepare the data again: mosaic prepare RECIPE --out {folder} --force"
