"""`mosaic probe trace`: what is promised of its object, its options, where it writes, and what it refuses."""

import itertools
import json
import math

import pytest

from mosaic_cli.commands.manual import JSON_OBJECTS

TINY = ("probe", "trace", "--ckpt", "tiny")
PROMISED = {"target", "logit", "completeness_error", "plain_logit_error", "contributions"}
PROMISED_OF_ONE = {"id", "kind", "layer", "head", "position", "key_text", "value_text", "weight", "contribution"}
TEXT = "Mia saw the ki"


def test_json_holds_what_is_promised(world, mosaic):
    result = mosaic(*TINY, TEXT, "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.probe.trace/1"
    trace = result.json
    assert trace.keys() >= PROMISED and trace["contributions"][0].keys() >= PROMISED_OF_ONE | {"leave_one_out"}
    assert trace["completeness_error"] < 1e-4 and trace["plain_logit_error"] == 0
    total = sum(row["contribution"] for row in trace["contributions"]) + trace["rest"]
    assert total == pytest.approx(trace["logit"], abs=1e-9)
    assert trace["target"] == trace["predictions"][0]["text"] and trace["rank"] == 1
    assert trace["loss"] == pytest.approx(-math.log(trace["probability"]))
    assert trace["tokens"] == [*TEXT] and trace["position"] == len(TEXT) - 1
    assert json.loads((world / "runs/tiny/probes/trace/trace.json").read_text()) == trace
    assert "float32" in result.err


@pytest.mark.parametrize("ckpt", ["tiny", "gpt"])
def test_every_documented_key_is_there_and_no_other(world, mosaic, ckpt):
    trace = mosaic("probe", "trace", "--ckpt", ckpt, "a cat", "--share", "0.001", "--json").json
    documented = JSON_OBJECTS["probe trace"][1]
    assert {key.split("[].")[0] for key in documented} | {"schema"} == trace.keys()
    for name in ("predictions", "sums", "contributions"):
        assert {key.split("[].")[1] for key in documented if key.startswith(f"{name}[]")} == trace[name][0].keys()
    assert {key.split("[].")[1] for key in documented if key.startswith("paths[]")} <= trace["paths"][0].keys()
    assert trace["costliest"][0].keys() == trace["contributions"][0].keys() - {"matches"}
    kinds = {"embedding", "ctx", "slot"} if ckpt == "tiny" else {"embedding", "ctx", "mlp"}
    assert {row["kind"] for row in trace["contributions"]} == kinds
    assert any(row["matches"] for row in trace["contributions"]) == (ckpt == "tiny")


def test_positions_count_from_both_ends(world, mosaic):
    first = mosaic(*TINY, TEXT, "--position", 4, "--json").json
    assert mosaic(*TINY, TEXT, "--position", -10, "--json").json == first and first["position"] == 4
    assert all(row["position"] < 4 for row in first["contributions"] if row["kind"] == "ctx")


@pytest.mark.parametrize("ckpt", ["tiny", "gpt"])
def test_unread_is_what_the_token_there_loses(world, mosaic, ckpt):
    """What follows the position has no part in it."""
    text = "saw the"
    whole = mosaic("probe", "trace", "--ckpt", ckpt, text, "--position", 4, "--target", "t", "--json").json
    short = mosaic("probe", "trace", "--ckpt", ckpt, text[:5], "--target", "t", "--json").json
    effects = {row["id"]: row["unread"] for row in whole["costliest"]}
    expected = {row["id"]: row["unread"] for row in short["costliest"]}
    assert effects.keys() == expected.keys() and len(effects) == 5
    for name, effect in effects.items():
        assert effect == pytest.approx(expected[name], abs=1e-6)
    sizes = [abs(effect) for effect in effects.values()]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0
    for row in whole["contributions"]:
        assert (row["unread"] is None) == (row["kind"] != "ctx")
        assert row["id"] not in effects or effects[row["id"]] == row["unread"]


def test_a_target_and_its_lead(world, mosaic):
    one, other = (mosaic(*TINY, TEXT, "--target", letter, "--json").json for letter in "te")
    lead = mosaic(*TINY, TEXT, "--target", "t", "--vs", "e", "--json").json
    assert (one["target"], one["versus"], lead["versus"]) == ("t", None, "e")
    assert lead["logit"] == pytest.approx(one["logit"] - other["logit"], abs=1e-5)
    assert lead["completeness_error"] < 1e-4
    assert mosaic(*TINY, TEXT, "--target", "<|endoftext|>", "--json").json["target"] == "<|endoftext|>"


def test_a_token_taken_without_its_space_is_noted_where_the_other_is_likelier(world, mosaic):
    words = ("--set", "data.tokenizer=bpe", "--set", "data.vocab_size=290", "--set", "data.dir=data/words")
    assert mosaic("train", "tiny.yaml", "--run", "words", "--steps", 1, *words).code == 0
    noted = set()
    for letter, prompt in itertools.product("bh", ("the", "bb", "hh")):  # " b" and " h" are tokens too
        asked = ("probe", "trace", "--ckpt", "words", prompt, "--json", "--target")
        plain, spaced = mosaic(*asked, letter), mosaic(*asked, f" {letter}")
        assert (plain.json["target"], spaced.json["target"]) == (letter, f" {letter}")
        note = f'--target {letter}: "{letter}" as written'
        assert (note in plain.err) == (spaced.json["logit"] > plain.json["logit"])
        assert "as written" not in spaced.err
        noted.add(note in plain.err)
    assert noted == {True, False}


def test_the_prompt_may_come_from_three_places(world, mosaic):
    (world / "prompt.txt").write_text("a\ncat")
    given = mosaic(*TINY, "a\ncat", "--json").json
    assert mosaic(*TINY, "--prompt-file", "prompt.txt", "--json").json == given
    assert mosaic(*TINY, "--json", stdin=b"a\ncat").json == given
    assert "↵" in given["tokens"]


def test_a_mosaic_is_traced_past_its_context(world, mosaic):
    assert mosaic(*TINY, "the bird found the old hat", "--json").json["completeness_error"] < 1e-4


def test_what_is_printed(world, mosaic):
    result = mosaic(*TINY, TEXT, "--top", 5, "--out", "elsewhere")
    assert result.code == 0 and "\x1b" not in result.out
    trace = json.loads((world / "elsewhere" / "trace.json").read_text())
    assert not (world / "runs/tiny/probes").exists()
    for word in (
        "completeness error",
        "plain-logit error",
        "leave-one-out",
        "unread",
        "all others",
        "loss would change most",
        "~",
        "Paths of the logit",
    ):
        assert word in result.out
    table = result.out.partition("Where it came from")[2].partition("all others")[0]
    assert all(row["id"] in table for row in trace["contributions"][:5])
    assert trace["contributions"][5]["id"] not in table
    assert "MLP, layer 0" in mosaic("probe", "trace", "--ckpt", "gpt", "a cat").out


def test_what_looks_like_markup_is_text(world, mosaic):
    assert mosaic("prepare", "-", "--tokenizer", "byte", "--out", "data/bytes", stdin=b"some text " * 50).code == 0
    settings = ("-s", "data.dir=data/bytes", "-s", "data.tokenizer=byte", "--steps", "1", "--run", "bytes")
    assert mosaic("train", "tiny.yaml", *settings).code == 0
    result = mosaic("probe", "trace", "--ckpt", "bytes", "[/]\x1b[1m\u202e")
    assert result.code == 0 and "[/]\\x1b[1m" in result.out and "\x1b" not in result.out


def test_the_page_has_the_numbers_of_the_object(world, mosaic):
    trace = mosaic(*TINY, TEXT, "--html", "pages/a.html", "--json").json
    page = (world / "pages" / "a.html").read_text(encoding="utf-8")
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    item = data["items"][data["chosen"]]
    assert data["tokens"] == trace["tokens"] and item["target"] == trace["target"]
    assert item["logit"] == pytest.approx(trace["logit"], rel=1e-5)
    assert [row["id"] for row in item["rows"]] == [row["id"] for row in trace["contributions"][:8]]
    assert [row["id"] for row in item["costliest"]] == [row["id"] for row in trace["costliest"]]
    assert [path[0] for path in item["paths"]] == [path["id"] for path in trace["paths"]]
    assert [bool(item["costliest"]) for item in data["items"][1:]] == [False] * 13 + [True]


def test_unread_is_shown_of_as_many_tokens_as_asked(world, mosaic):
    assert mosaic(*TINY, TEXT, "--position", 6, "--html", "a.html", "--unread", 3).code == 0
    page = (world / "a.html").read_text(encoding="utf-8")
    items = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["items"][1:]
    assert [position for position, item in enumerate(items) if item["costliest"]] == [4, 5, 6]
    earlier = mosaic(*TINY, TEXT[:5], "--target", TEXT[5], "--json").json  # what the model read up to token 4
    assert [row["id"] for row in items[4]["costliest"]] == [row["id"] for row in earlier["costliest"]]
    unread = [row["unread"] for row in earlier["costliest"]]
    assert [row["unread"] for row in items[4]["costliest"]] == pytest.approx(unread, rel=1e-5)


def test_a_page_that_cannot_be_written_is_named(world, refused):
    assert refused(2, *TINY, TEXT, "--html", "runs")["where"] == "runs"


def test_the_help_ends_with_an_example(mosaic):
    end = " ".join(mosaic("probe", "trace", "-h").out.split())
    assert "Example: mosaic probe trace --ckpt quickstart" in end


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("",), "empty"),
        ((TEXT, "--unread", 2), "only a page shows several tokens"),
        ((TEXT, "--position", 14), "position 14 is outside of a text of 14 tokens"),
        ((TEXT, "--position", -15), "position -15 is outside"),
        ((TEXT, "--target", "Mia"), "not one token: 'M' + 'i' + 'a'"),
        ((TEXT, "--vs", "é"), "not one token"),
        ((TEXT, "--target", "a", "--vs", "a"), "compared with"),
        ((TEXT, "--share", 0), "share 0 is not"),
        ((TEXT, "--prompt-file", "text.txt"), "both"),
    ],
)
def test_what_is_refused(world, refused, arguments, said):
    error = refused(2, *TINY, *arguments)
    assert said in error["message"] and error["hint"]
    assert not (world / "runs/tiny/probes").exists()


def test_a_text_longer_than_a_transformer_s_context_is_refused(world, refused):
    error = refused(2, "probe", "trace", "--ckpt", "gpt", "the old hat")
    assert "trained on 8 tokens cannot read 11" in error["message"] and "shorter" in error["hint"]
