"""Text to tokens on all cores: long documents in segments, segments in batches, batches ahead of their use."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mosaic_cli.data.splits import Part
from mosaic_cli.data.tokenizer import Tokenizer

SEGMENT_CHARS = 1 << 16  # a longer document is encoded in segments, so that all cores share it
UNCUT_CHARS = 1 << 19  # without a place to cut, a segment grows up to this: bounds the memory of its tokens
BATCH_CHARS = 1 << 19  # encoded at once: enough for all cores; the library spends some 200 bytes a token on it
BATCH_TEXTS = 4096
BATCHES_AHEAD = 2  # encoded while the next one is read and the one before is written


class Segment(NamedTuple):
    """A stretch of a document that is encoded by itself."""

    split: str
    text: str
    ends_document: bool
    ends_stretch: bool  # nothing more of this document in this split


def encoded(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[tuple[list[Segment], list[np.ndarray]]]:
    """Segments of the parts, a batch at a time and in order, each with its tokens: an array (n,) of `tokenizer.dtype`.

    Encoding lets go of the interpreter, so reading and writing go on meanwhile.

    Raises:
        DataError: a character that a `char` tokenizer does not know.
    """
    waiting: deque = deque()
    with ThreadPoolExecutor(BATCHES_AHEAD) as pool:
        for batch in _batches(_segments(parts, tokenizer)):
            waiting.append((batch, pool.submit(tokenizer.encode_batch, [segment.text for segment in batch])))
            if len(waiting) > BATCHES_AHEAD:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()


def _segments(parts: Iterable[Part], tokenizer: Tokenizer) -> Iterator[Segment]:
    """Documents, the long ones cut where it makes no difference to their tokens."""
    held, split = "", ""
    for part in parts:
        if held and part.split != split:
            yield Segment(split, held, False, True)
            held = ""
        split, text, start = part.split, held + part.text, 0
        while (cut := _next_cut(text, start, tokenizer)) is not None:
            yield Segment(split, text[start:cut], False, False)
            start = cut
        held = text[start:]
        if part.ends_document:
            yield Segment(split, held, True, True)
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


def _batches(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    batch, size = [], 0
    for segment in segments:
        batch.append(segment)
        size += len(segment.text)
        if size >= BATCH_CHARS or len(batch) >= BATCH_TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
