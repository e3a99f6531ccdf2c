"""Files that are whole or absent, and folders that one process holds."""

import pytest

from mosaic_cli.errors import CheckpointError, UsageError
from mosaic_cli.files import dump_json, load_json, locked, write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "one.json"
    write_atomically(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


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


def test_a_newer_file_names_the_other_way_out(tmp_path):
    path = tmp_path / "one.json"
    path.write_text('{"format_version": 2}')
    with pytest.raises(CheckpointError) as caught:
        load_json(path, 1, CheckpointError, hint="Make it again.")
    assert "newer version" in caught.value.hint and "Make it again." in caught.value.hint


IN_USE = UsageError("it is in use")


def test_one_holds_a_folder_and_leaves_no_trace(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder, IN_USE):
        with pytest.raises(UsageError, match="in use"), locked(folder, IN_USE):
            pass
        assert folder.exists()
    assert not folder.exists()
    with locked(folder, IN_USE):
        (folder / "result").write_text("kept")
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_sign_left_by_a_killed_process_holds_nothing(tmp_path):
    (tmp_path / "lock").write_text("")
    with locked(tmp_path, IN_USE):
        pass


def test_a_renamed_folder_is_no_longer_held(tmp_path):
    with locked(tmp_path / "a", IN_USE):
        (tmp_path / "a").rename(tmp_path / "b")
        with locked(tmp_path / "a", IN_USE):
            pass
        with locked(tmp_path / "a", IN_USE):
            (tmp_path / "a" / "result").write_text("another process's")
    assert (tmp_path / "a" / "result").exists()
