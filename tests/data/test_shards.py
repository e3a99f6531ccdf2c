"""Token shards: what is written is what is read, and whatever happened to a file is noticed."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from mosaic_cli.data.shards import (
    Manifest,
    ShardWriter,
    SourceInfo,
    SplitInfo,
    TokenizerInfo,
    open_split,
    verify,
)
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import DataError, UsageError
from mosaic_cli.files import sha256


def write_shards(folder, tokens, dtype="uint16", **changes):
    """A folder of byte tokens in files of seven."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer.of_bytes()
    tokenizer.save(folder / "tokenizer.json")
    infos = {}
    for split, ids in tokens.items():
        writer = ShardWriter(folder, split, np.dtype(dtype).newbyteorder("<"), shard_tokens=7)
        for start in range(0, len(ids), 5):
            writer.write(np.array(ids[start : start + 5]))
        infos[split] = SplitInfo(1, len(ids), len(ids), writer.tokens, writer.finish())
    values = {
        "dtype": dtype,
        "vocab_size": 257,
        "end_of_text": 256,
        "source": SourceInfo("files: a", "files: a"),
        "tokenizer": TokenizerInfo("byte", tokenizer.fingerprint, sha256(folder / "tokenizer.json")),
        "created_by": "mosaic test",
        "settings": {"files": ["a"]},
        **infos,
        **changes,
    }
    Manifest(**values).save(folder)
    return folder


TOKENS = {"train": [random.Random(0).randrange(257) for _ in range(40)], "val": [1, 2, 256]}


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "data", TOKENS)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_every_window_is_what_was_written(tmp_path, dtype):
    folder = write_shards(tmp_path / "data", TOKENS, dtype)
    assert [path.name for path in sorted(folder.glob("*.bin"))] == [f"train-0000{i}.bin" for i in range(6)] + [
        "val-00000.bin"
    ]
    split = open_split(folder, "train")
    assert len(split) == split.info.tokens == 40
    for start in range(41):
        for stop in range(start, 41):
            window = split.read(start, stop)
            assert window.dtype == np.int64 and window.tolist() == TOKENS["train"][start:stop]


@pytest.mark.parametrize("start, stop", [(-1, 3), (0, 41), (5, 4)])
def test_window_outside_is_refused(shards, start, stop):
    with pytest.raises(IndexError):
        open_split(shards, "train").read(start, stop)


def test_files_are_flat_and_little_endian(shards):
    assert (shards / "val-00000.bin").read_bytes() == b"\x01\x00\x02\x00\x00\x01"


def test_manifest_survives_the_round_trip(shards):
    manifest = Manifest.load(shards)
    manifest.save(shards)
    assert Manifest.load(shards) == manifest
    assert manifest.split("train").tokens == 40 and manifest.settings == {"files": ["a"]}
    values = json.loads((shards / "manifest.json").read_text())
    assert (values["format"], values["format_version"]) == ("mosaic.data", 2)


def test_fingerprint_is_that_of_the_tokens(tmp_path, shards):
    same = write_shards(tmp_path / "same", TOKENS, created_by="another version")
    other = write_shards(tmp_path / "other", {**TOKENS, "val": [1, 2, 3]})
    assert Manifest.load(same).fingerprint == Manifest.load(shards).fingerprint != Manifest.load(other).fingerprint


def test_sound_folder_verifies(shards):
    report = verify(shards)
    assert report.ok and report.problems == []
    assert report.files == 8 and report.bytes == sum(
        path.stat().st_size for path in shards.iterdir() if path.name != "manifest.json"
    )


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = [
    (truncate, "train-00002.bin", "the file has 12 bytes instead of 14"),
    (alter, "train-00002.bin", "the file was altered"),
    (Path.unlink, "train-00002.bin", "the file is missing"),
    (alter, "tokenizer.json", "the file was altered"),
    (Path.unlink, "tokenizer.json", "the file is missing"),
]


@pytest.mark.parametrize("damage, name, message", DAMAGES)
def test_damaged_file_is_named_with_what_to_run(shards, damage, name, message):
    damage(shards / name)
    with pytest.raises(DataError, match=message) as caught:
        open_split(shards, "train")
    assert caught.value.where == str(shards / name)
    assert caught.value.hint == f"Prepare the data again: mosaic prepare RECIPE --out {shards} --force"
    report = verify(shards)
    assert not report.ok and report.problems[0].startswith(f"{name}: {message}")


def test_without_checksums_only_sizes_count(shards):
    alter(shards / "train-00002.bin")
    assert len(open_split(shards, "train", verify=False)) == 40
    truncate(shards / "train-00002.bin")
    with pytest.raises(DataError, match="12 bytes instead of 14"):
        open_split(shards, "train", verify=False)


def test_other_split_may_be_damaged(shards):
    alter(shards / "train-00002.bin")
    assert len(open_split(shards, "val")) == 3


def test_token_outside_the_vocabulary(tmp_path):
    folder = write_shards(tmp_path / "data", {**TOKENS, "val": [1, 999]})
    assert verify(folder).problems == ["val: token 999 in a vocabulary of 257"]


def test_tokenizer_that_is_not_the_manifests(tmp_path):
    other = write_shards(tmp_path / "data", TOKENS)
    tokenizer = Tokenizer.of_characters("ab")
    tokenizer.save(other / "tokenizer.json")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["tokenizer"]["sha256"] = sha256(other / "tokenizer.json")
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert verify(other).problems == ["tokenizer.json: not the tokenizer the manifest describes"]


def test_newer_format_is_refused(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps({**manifest, "format_version": 3, "shape": "unknown"}))
    with pytest.raises(DataError, match="format version 3, this toolkit reads up to 2") as caught:
        open_split(shards, "train")
    assert caught.value.where == str(shards / "manifest.json")
    assert "newer version" in caught.value.hint and "mosaic prepare" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format_version": 1}',
        "\udcff",
        '{"format": "mosaic.data", "format_version": 1, "dtype": "float32"}',
    ],
)
def test_damaged_manifest(shards, content):
    (shards / "manifest.json").write_text(content, errors="surrogateescape")
    with pytest.raises(DataError, match="manifest") as caught:
        Manifest.load(shards)
    assert caught.value.where == str(shards / "manifest.json") and "--force" in caught.value.hint


@pytest.mark.parametrize("key", ["train", "tokenizer", "vocab_size", "created_by"])
def test_manifest_without_a_key(shards, key):
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest[key]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=f"damaged manifest: {key}: "):
        Manifest.load(shards)


def test_folder_missing_or_without_a_manifest(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no prepared data: manifest\.json is missing"):
        verify(tmp_path)
