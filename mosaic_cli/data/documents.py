"""What a source is: documents, one at a time.

A source can be read more than once: `prepare` reads it twice, to look and to encode. However large the text, a source
holds a few megabytes of it: a long document comes in pieces.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from mosaic_cli.errors import DataError
from mosaic_cli.recipe import DataSection

END_OF_TEXT = "<|endoftext|>"
PIECE_CHARS = 1 << 20  # a longer document is handed over in pieces: two of them in UCS-4 are 8 MB
BATCH_RECORDS = 64  # records of a table read at a time; a book each is still some tens of megabytes
_HELD_CHARS = 20  # more than the longest separator (17), which the end of a block may cut in two
_NAME_FIELD = "Name the field that holds the text: --text-field NAME"


class Piece(NamedTuple):
    """A stretch of one document; `text` is never empty, and `PIECE_CHARS` characters at most."""

    text: str
    ends_document: bool


class Source:
    """Documents that can be read again and again.

    Attributes:
        requested, used: what was asked for and what is read, in words; they differ after a fallback.
        fallback_reason: why they differ, else None.
        unit, total, done: progress of the current pass: `bytes` (on disk, compressed ones as they are) or `records`.
        skipped: bad records left out in this pass (only with `skip_bad`); `first_skipped` tells where and why.
        blank: documents without any text left out in this pass.
        may_skip: whether whoever reads has `--skip-bad`, which errors name.
        validation: the source of the validation split, where the hub has one, else None.
    """

    unit = "records"
    may_skip = True

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
            mend = "Mend it, or leave such records out: --skip-bad" if self.may_skip else "Mend it."
            raise DataError(message, where=where, hint=hint or mend)
        self.skipped += 1
        self.first_skipped = self.first_skipped or f"{where}: {message}"

    def _check_column(self, names: list[str], where: str) -> None:
        """Raises DataError when the columns of a table lack the one with the text."""
        if self.data.text_field not in names:
            raise DataError(
                f"there is no field {self.data.text_field!r}, only {_listed(names)}", where=where, hint=_NAME_FIELD
            )

    def _field(self, record: Any, where: str) -> str | None:
        """The text of one record, or None where it is bad and skipped."""
        name = self.data.text_field
        if not isinstance(record, dict):
            return self._bad(f"the record is a {type(record).__name__}, not an object with fields", where)
        if name not in record:
            return self._bad(f"the record has no field {name!r}, only {_listed(record)}", where, _NAME_FIELD)
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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no fields at all"
