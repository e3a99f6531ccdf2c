"""A file of documents that several tests prepare."""

import json

import pytest
from prepared import DOCUMENTS


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return path
