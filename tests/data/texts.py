"""Small texts in every format, and what a source makes of them."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mosaic_cli.data import documents
from mosaic_cli.data.sources import open_source
from mosaic_cli.errors import DataError
from mosaic_cli.recipe import DataSection

DOCUMENTS = ["One fish.\n\nTwo fish.", "Ein Käfer, 漢字 and 🦊.", " leading space\r\nand CR LF"]
COMPRESSION = {"": lambda data: data, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def as_text(documents):
    return "".join(f"{document}\n<|endoftext|>\n" for document in documents).encode()


def as_jsonl(documents):
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)).encode()


def as_parquet(documents):
    out = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), out)
    return out.getvalue()


FORMATS = {
    ".txt": as_text,
    ".md": as_text,
    ".dat": as_text,
    ".jsonl": as_jsonl,
    ".json": as_jsonl,
    ".parquet": as_parquet,
}


def documents_of(source):
    found, parts = [], []
    for piece in source.pieces():
        assert 0 < len(piece.text) <= documents.PIECE_CHARS
        parts.append(piece.text)
        if piece.ends_document:
            found.append("".join(parts))
            parts = []
    assert not parts, "the last document has no end"
    return found


def read(tmp_path, *files, **settings):
    return documents_of(open_source(DataSection(files=list(map(str, files)), **settings), tmp_path))


def fails(tmp_path, content, name="bad.txt", kind=DataError, **settings):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(kind) as caught:
        read(tmp_path, path, **settings)
    return caught.value.message, caught.value.where.removeprefix(f"{tmp_path}/"), caught.value.hint
