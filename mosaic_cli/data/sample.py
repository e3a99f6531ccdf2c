"""The part of a text that a tokenizer is trained on: bounded, and evenly spread over all of it."""

import sys
from collections.abc import Iterator

SAMPLE_BYTES = 64 << 20  # memory of the text a BPE is trained on: its merges settle far earlier, and it takes 10 s
DISTINCT_BYTES = 3 << 20  # training takes up to 250 bytes a byte of distinct words: Chinese has no spaces between them
ITEM_CHARS = 1 << 16  # a longer text is several items, so that one book is not kept or left out as a whole
ITEM_BYTES = 160  # what keeping one item costs besides its text: a tuple and an integer


class Sample:
    """Texts spread evenly over all that were offered, within SAMPLE_BYTES however many are: deterministic."""

    def __init__(self) -> None:
        self._offered = self._size = 0
        self._limit = 1 << 32
        self._kept: list[tuple[int, int, str]] = []  # (rank, offset in the joined text, text)

    def add(self, text: str, offset: int) -> None:
        """Offer a text that stands at character `offset` of the joined text."""
        for start in range(0, len(text), ITEM_CHARS):
            # Multiples of the golden section lie evenly whatever their range, and never in step with the data.
            rank = self._offered * 2_654_435_769 & 0xFFFF_FFFF
            self._offered += 1
            if rank < self._limit:
                self._kept.append((rank, offset + start, text[start : start + ITEM_CHARS]))
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
    return sys.getsizeof(item[2]) + ITEM_BYTES
