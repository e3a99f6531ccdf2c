"""Files that are whole or absent."""

import pytest

from mosaic_cli.errors import CheckpointError
from mosaic_cli.runs.files import dump_json, load_json, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "one.json"
    write_atomically(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"one\.json could not be written: No space left") as caught:
        write_atomically(path, "new")
    assert path.read_text() == "old" and caught.value.where == str(path)


def test_floats_survive_to_the_last_bit(tmp_path):
    values = {"format_version": 1, "a": 0.1 + 0.2, "b": 1e-310, "c": "é"}
    path = tmp_path / "one.json"
    write_atomically(path, dump_json(values))
    assert load_json(path, 1, CheckpointError) == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[]", "has no format version"),
        (b"{}", "has no format version"),
        (b'{"format_version": "1"}', "no format version"),
        (b'{"format_version": 2}', "has format version 2, this toolkit reads up to 1"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, content, message):
    path = tmp_path / "one.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_json(path, 1, CheckpointError)
    assert caught.value.where == str(path)
