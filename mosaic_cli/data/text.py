"""A text given by file, as tokens in memory: what evaluation on a file reads."""

import tempfile
from pathlib import Path

import numpy as np

from mosaic_cli.data.sources import open_source
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.recipe import DataSection


class TextTokens:
    """Tokens in memory, with the interface of token shards."""

    def __init__(self, ids: np.ndarray):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop (not included) as an int64 array (stop - start,)."""
        return self.ids[start:stop]


def tokens_of_file(name: str, tokenizer: Tokenizer, text_field: str = "text") -> tuple[TextTokens, int]:
    """All documents of a text, jsonl or parquet file (or folder), each followed by the end-of-text token.

    Returns:
        The tokens, and the bytes of text they stand for (UTF-8, end-of-text tokens counting nothing).

    Raises:
        UsageError: no such file.
        DataError: it cannot be read, or holds a character that the tokenizer does not know.
    """
    if not Path(name).exists():
        raise UsageError(f"no file {name!r} to evaluate on", where="--on", hint="Give val, or the path of a text file.")
    num_bytes, parts, text = 0, [], ""
    with tempfile.TemporaryDirectory() as own:
        spool = Path(own, "spool")  # the folder around it is left out where the text is a folder
        spool.mkdir()
        data = DataSection(source="files", files=[name], text_field=text_field)
        source = open_source(data, spool)
        source.may_skip = False
        for piece in source.pieces():
            text += piece.text
            if piece.ends_document:
                try:
                    ids = tokenizer.encode(text)
                except DataError as error:
                    error.where = f"{name}, document {len(parts) + 1}: {error.where}"
                    raise
                num_bytes += len(text.encode())
                parts.append(np.array([*ids, tokenizer.end_of_text], dtype=np.int64))
                text = ""
    return TextTokens(np.concatenate(parts)), num_bytes
