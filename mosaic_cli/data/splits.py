"""Which text is for training and which for validation. docs/formats.md has the rule."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

from mosaic_cli.data.documents import Piece, Source


class Part(NamedTuple):
    """A stretch of one document, all of it in the split `train` or `val`."""

    split: str
    text: str
    ends_document: bool


def parts(source: Source, fraction: Fraction, cut: int | None = None) -> Iterator[Part]:
    """One pass over a source, its validation source included, with the split of everything.

    Args:
        fraction: share of the documents that is held out; 0 where validation has a source of its own.
        cut: the character of the joined text from which on it is held out instead, whatever the documents.

    Raises:
        DataError: see `Source.pieces`.
    """
    if cut is not None:
        return _by_position(source.pieces(), cut)
    return _by_document(_joined(source), fraction)


def _joined(source: Source) -> Iterator[tuple[str | None, Piece]]:
    """The source, then its validation source: pieces with the split that this decides, or None."""
    if source.validation is None:
        return ((None, piece) for piece in source.pieces())
    return chain(
        (("train", piece) for piece in source.pieces()), (("val", piece) for piece in source.validation.pieces())
    )


def is_held_out(document: int, fraction: Fraction) -> bool:
    """Whether document number `document` (from 0) is for validation: evenly spread, and an exact share of any start."""
    share, of = fraction.as_integer_ratio()
    return (document + 1) * share // of > document * share // of


def _by_document(pieces: Iterable[tuple[str | None, Piece]], fraction: Fraction) -> Iterator[Part]:
    document = 0
    for split, (text, ends_document) in pieces:
        yield Part(split or ("val" if is_held_out(document, fraction) else "train"), text, ends_document)
        document += ends_document


def _by_position(pieces: Iterable[Piece], cut: int) -> Iterator[Part]:
    """Everything from character `cut` of the joined text on is `val`."""
    for text, ends_document in pieces:
        before = min(max(cut, 0), len(text))
        if before:
            yield Part("train", text[:before], ends_document and before == len(text))
        if before < len(text):
            yield Part("val", text[before:], ends_document)
        cut -= len(text)
