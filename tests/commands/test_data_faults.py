"""Text, shards and tokenizers that cannot be used: exit code 1, naming file and place, and leaving nothing behind."""

import json
import pickle
import shutil

import pytest

NEW = ("train", "tiny.yaml", "--run", "new", "--set", "data.dir=data/new")


class _Evil:
    """Unpickled, it leaves a trace."""

    def __reduce__(self):
        return open, ("unpickled", "w")


@pytest.fixture
def evil():
    return pickle.dumps(_Evil())


@pytest.mark.parametrize(
    ("content", "message", "where"),
    [
        (b"", "the file is empty", "text.txt"),
        (b" \n\n", "no document holds any text", "text.txt"),
        (b"good line\n\x00\x01binary", "a zero byte, as in binary files", "text.txt:2"),
        (b"good line\nbad \xff", "not UTF-8 text: byte 0xff", "text.txt:2"),
        ("utf-16".encode("utf-16"), "not UTF-8 text", "text.txt:1"),
        (b"abcdefgh", "the train split has 7 tokens, but one window needs 9", "train split"),
    ],
)
def test_text_that_cannot_be_trained_on(world, refused, content, message, where):
    (world / "text.txt").write_bytes(content)
    error = refused(1, *NEW)
    assert message in error["message"] and where in error["where"]
    assert not (world / "runs" / "new").exists() and not list(world.glob("data/new.partial"))


def test_text_that_does_not_exist(world, refused):
    error = refused(2, *NEW, "--set", "data.files=[nowhere.txt]")
    assert "no such file or folder: nowhere.txt" in error["message"] and "beside the recipe" in error["hint"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\x00\x00", "a zero byte"),
        (b"a \xff", "byte 0xff"),
        (b"  \n", "no document holds"),
        (b"the cat~", "the character '~' (U+007E) is not one of the"),
    ],
)
def test_text_that_cannot_be_evaluated_on(world, refused, content, message):
    (world / "other.txt").write_bytes(content)
    error = refused(1, "eval", "--ckpt", "tiny", "--on", "other.txt")
    assert message in error["message"] and error["where"]


def test_a_character_that_the_tokenizer_lacks_is_named_with_its_file(world, refused):
    (world / "other.txt").write_text("the cat<|endoftext|>the c~t")
    error = refused(1, "eval", "--ckpt", "tiny", "--on", "other.txt")
    assert (
        "the character '~'" in error["message"] and error["where"] == "other.txt, document 2: character 5 of the text"
    )


def test_text_in_the_folder_for_temporary_files_is_read(world, mosaic, monkeypatch):
    (world / "temporary").mkdir()
    (world / "temporary" / "text.txt").write_text("the cat sat on the mat")
    monkeypatch.setenv("TMPDIR", str(world / "temporary"))
    assert mosaic("eval", "--ckpt", "tiny", "--on", "temporary", "--json").json["results"][0]["tokens"] > 10


def test_a_field_that_the_records_lack(world, refused):
    (world / "other.jsonl").write_text('{"story": "the cat"}\n')
    error = refused(1, "eval", "--ckpt", "tiny", "--on", "other.jsonl")
    assert "no field 'text', only 'story'" in error["message"] and "--text-field" in error["hint"]


def test_a_prompt_with_a_character_that_the_tokenizer_lacks(world, refused, mosaic):
    error = refused(1, "generate", "--ckpt", "tiny", "the c@t")
    assert "the character '@' (U+0040) is not one of the" in error["message"] and "character 5" in error["where"]
    assert mosaic("generate", "--ckpt", "tiny", "the c@t").out == ""


def _cut(path):
    path.write_bytes(path.read_bytes()[:-2])


def _alter(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _delete(path):
    path.unlink()


def _newer(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


DAMAGE = [
    ("train-00000.bin", _cut, "bytes instead of"),
    ("train-00000.bin", _alter, "was altered"),
    ("train-00000.bin", _delete, "missing"),
    ("val-00000.bin", _alter, "was altered"),
    ("manifest.json", _cut, "manifest.json cannot be read"),
    ("manifest.json", _delete, "manifest.json is missing"),
    ("manifest.json", _newer, "format version 99"),
    ("tokenizer.json", _cut, "was altered"),
    ("tokenizer.json", _delete, "missing"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_damaged_data_is_not_trained_on(world, refused, name, damage, message):
    damage(world / "data" / "tiny" / name)
    error = refused(1, "train", "tiny.yaml", "--run", "new")
    assert message in error["message"] and name in (error["message"] + error["where"])
    assert "prepare" in error["hint"].lower() and not (world / "runs" / "new").exists()
    assert refused(1, "train", "tiny.yaml", "--resume", "--steps", "10")["message"] == error["message"]


@pytest.mark.parametrize(("name", "damage"), [(name, damage) for name, damage, _ in DAMAGE if "train" not in name])
def test_damaged_data_is_not_evaluated_on(world, refused, name, damage):
    damage(world / "data" / "tiny" / name)
    assert refused(1, "eval", "--ckpt", "tiny")["hint"]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_verify_finds_the_damage(world, refused, name, damage, message):
    damage(world / "data" / "tiny" / name)
    error = refused(1, "prepare", "--verify", "data/tiny")
    assert name in (error["message"] + error["where"]) and "prepare" in error["hint"].lower()


def test_data_of_another_tokenizer(world, mosaic, refused):
    shutil.rmtree(world / "data" / "tiny")
    assert mosaic("prepare", "text.txt", "--tokenizer", "byte", "--out", "data/tiny").code == 0
    error = refused(2, "eval", "--ckpt", "tiny")
    assert "prepared with another tokenizer than tiny was trained with" in error["message"]
    error = refused(2, "train", "tiny.yaml", "--resume", "--steps", "10")
    assert "the prepared data is not what the run was trained on" in error["message"]
    assert "tokenizer was 'byte'" in mosaic("train", "tiny.yaml", "--run", "new").err, "a new run says so at least"


def test_data_that_is_not_the_run_s_any_more(world, mosaic, refused):
    """A tokenizer that does not depend on the text is the same in other data."""
    prepare = ("prepare", "text.txt", "--tokenizer", "byte", "--out", "data/bytes")
    assert mosaic(*prepare).code == 0
    assert mosaic("train", "tiny.yaml", "--run", "bytes", "--set", "data.dir=data/bytes").code == 0
    assert mosaic("eval", "--ckpt", "bytes").code == 0
    (world / "text.txt").write_text("another cat on another mat " * 40)
    assert mosaic(*prepare, "--force").code == 0
    error = refused(2, "eval", "--ckpt", "bytes")
    assert "not what bytes was trained on" in error["message"] and "--on FILE" in error["hint"]


def test_no_pickle_is_read(world, refused, evil):
    (world / "evil.pt").write_bytes(evil)
    (world / "evil.txt").write_bytes(evil)
    error = refused(2, "eval", "--ckpt", "evil.pt")
    assert "evil.pt is a file" in error["message"] and "never read" in error["hint"]
    refused(1, "eval", "--ckpt", "tiny", "--on", "evil.pt")
    refused(1, *NEW, "--set", "data.tokenizer=evil.pt")
    refused(1, *NEW, "--set", "data.files=[evil.txt]")
    refused(2, "train", "evil.pt")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "config.json"):
        (world / "runs" / "tiny" / "checkpoints" / "step-00000008" / name).write_bytes(evil)
    refused(1, "generate", "--ckpt", "tiny", "a")
    refused(1, "train", "--resume", "--run", "tiny")
    for name in ("tokenizer.json", "manifest.json", "train-00000.bin"):
        (world / "data" / "tiny" / name).write_bytes(evil)
    refused(1, "train", "tiny.yaml", "--run", "new")
    assert not (world / "unpickled").exists()
    pickle.loads(evil)
    assert (world / "unpickled").exists(), "the trap works"


HUB = """
extends: tiny.yaml
data: {source: hub, hub: nobody/nothing, dir: data/hub, num_documents: 30, if_unreachable: error}
"""


def test_no_network_stops_and_names_the_ways_out(world, refused):
    (world / "hub.yaml").write_text(HUB)
    for command in ("train", "prepare"):
        error = refused(1, command, "hub.yaml")
        assert "the hub cannot be reached" in error["message"] and "nobody/nothing" in error["where"]
        assert "data.files=[FILE]" in error["hint"] and "data.if_unreachable=builtin" in error["hint"]
    assert not (world / "runs" / "hub").exists() and not (world / "data" / "hub").exists()


def test_no_network_with_the_built_in_stories_allowed_says_so_everywhere(world, mosaic):
    (world / "hub.yaml").write_text(HUB)
    result = mosaic("train", "hub.yaml", "--set", "data.if_unreachable=builtin", "--json")
    assert result.code == 0 and result.json["data_source"].startswith("builtin: stories")
    assert "WARNING the hub cannot be reached" in result.err
    assert "WARNING training on builtin: stories (30 documents, seed 0), NOT on what the recipe names" in result.err
    assert "WARNING the numbers are for builtin" in mosaic("train", "--resume", "--run", "hub").err
    source = json.loads((world / "data" / "hub" / "manifest.json").read_text())["source"]
    assert source["requested"] == "hub: nobody/nothing (split train)" and source["used"].startswith("builtin: stories")
    info = json.loads((world / "runs" / "hub" / "run.json").read_text())
    assert info["data_source"] == source["used"] and info["fallback_reason"] == source["fallback_reason"]
    assert "builtin: stories" in mosaic("eval", "--ckpt", "hub").out
    assert mosaic("eval", "--ckpt", "hub", "--json").json["results"][0]["data_source"].startswith("builtin: stories")
