"""`mosaic probe edit`: predictions before and after, the flags, files of edits, and what is refused."""

import json

import pytest

EDIT = ("probe", "edit", "--ckpt", "tiny")
DELETE = ("--delete", "L*.H*.ctx.3")


def _json(mosaic, *arguments):
    result = mosaic(*EDIT, *arguments, "--json")
    assert result.code == 0, result
    return result.json


def test_json_holds_what_is_promised(world, mosaic):
    found = _json(mosaic, "the cat", *DELETE, "--top", 3)
    assert found["schema"] == "mosaic.probe.edit/1" and found["prompt"] == "the cat"
    assert found["edits"] == [{"delete": "L*.H*.ctx.3"}]
    for rows in (found["before"], found["after"]):
        assert len(rows) == 3 and all(row.keys() == {"token", "id", "probability", "logit"} for row in rows)
        assert rows[0]["probability"] >= rows[1]["probability"] >= rows[2]["probability"] > 0
    assert found["before"] != found["after"]
    assert found["undone_bitwise"] is True and found["continuation"] is None
    assert json.loads((world / "runs" / "tiny" / "probes" / "edit" / "edit.json").read_text()) == found


def test_the_table_shows_both_predictions(world, mosaic):
    result = mosaic(*EDIT, "the cat", *DELETE, "--replace", "L0.H1.ctx.2=k", "--max-new-tokens", 4, "--out", "here")
    found = json.loads((world / "here" / "edit.json").read_text())
    assert result.code == 0 and "bit for bit" in result.out
    assert "delete L*.H*.ctx.3   pair 3: ' ' → 'c'" in result.out
    assert "replace L0.H1.ctx.2 token 'k'   pair 2: 'e' → ' '" in result.out
    for row in found["before"] + found["after"]:
        assert f"{row['probability']:.4f}" in result.out and f"{row['logit']:.3f}" in result.out
    assert repr(found["continuation"]["before"]) in result.out and "'k'" in result.out.partition("token ")[2]


def test_before_is_what_generate_writes(world, mosaic):
    found = _json(mosaic, "the cat", "--scale", "L0.H*.slot=-4", "--max-new-tokens", 6)["continuation"]
    greedy = ("generate", "--ckpt", "tiny", "the cat", "--temperature", 0, "--max-new-tokens", 6, "--json")
    assert mosaic(*greedy).json["samples"][0]["text"] == found["before"] != found["after"]
    (world / "some.yaml").write_text("edits: [{scale: L0.H*.slot, factor: -4}]")
    assert mosaic(*greedy, "--edit", "some.yaml").json["samples"][0]["text"] == found["after"]


def test_flags_and_files_say_the_same(world, mosaic):
    flags = (
        *("--delete", "L0.H0.ctx.1", "--delete", "L0.H1.slot.2", "--scale", "L0.H1.ctx=0.5"),
        *("--replace", "L0.H0.ctx.2= ", "--add", "L0.H*.ctx@3=k"),
    )
    found = _json(mosaic, "the cat", *flags, "--save", "some.yaml")
    assert found["edits"] == [
        {"delete": "L0.H0.ctx.1"},
        {"delete": "L0.H1.slot.2"},
        {"scale": "L0.H1.ctx", "factor": 0.5},
        {"replace": "L0.H0.ctx.2", "token": " "},
        {"add": "L0.H*.ctx", "after": 3, "token": "k"},
    ]
    again = _json(mosaic, "the cat", "--edit", "some.yaml")
    assert again == found
    more = _json(mosaic, "the cat", "--edit", "some.yaml", "--delete", "L0.H1.ctx.0", "--save", "more.yaml")
    assert more["edits"] == [*found["edits"], {"delete": "L0.H1.ctx.0"}]
    assert _json(mosaic, "the cat", "--edit", "more.yaml") == more


def test_the_prompt_may_come_from_three_places(world, mosaic):
    (world / "prompt.txt").write_text("the cat")
    given = _json(mosaic, "the cat", *DELETE)
    assert _json(mosaic, "--prompt-file", "prompt.txt", *DELETE) == given
    assert mosaic(*EDIT, *DELETE, "--json", stdin=b"the cat").json == given


def test_a_transformer_can_be_edited(world, mosaic):
    result = mosaic("probe", "edit", "--ckpt", "gpt", "the cat", *DELETE, "--json")
    assert result.json["undone_bitwise"] and result.json["before"] != result.json["after"]
    assert "pair 3: ' '\n" in mosaic("probe", "edit", "--ckpt", "gpt", "the cat", *DELETE).out


def test_without_an_edit_it_says_where_names_come_from(world, refused):
    error = refused(2, *EDIT, "the cat")
    assert error["message"] == "no edit is given" and "mosaic probe trace" in error["hint"]


@pytest.mark.parametrize(
    ("arguments", "message", "where"),
    [
        (("--delete", "L0.H0"), "does not name a memory", "--delete"),
        (("--delete", "L0.H0.ctx.1=3"), "is not NAME", "--delete"),
        (("--delete", "L0.H0.ctx.6"), "of stored pairs there are 6", None),
        (("--delete", "L3.H0.ctx.1"), "of layers there are 1", None),
        (("--scale", "L0.H0.ctx.1"), "is not NAME=FACTOR", "--scale"),
        (("--scale", "L0.H0.ctx.1=half"), "'half' is not a number", "--scale"),
        (("--scale", "L0.H0.ctx.1=[", *DELETE), "not valid YAML", "--scale"),
        (("--replace", "L0.H0.ctx.1=kite"), "is not one token", "--replace"),
        (("--replace", "L0.H0.ctx.1=ß"), "is not one of the", "--replace"),
        (("--replace", "L0.H0.ctx=k"), "more than one memory", None),
        (("--add", "L0.H0.ctx=k"), "is not NAME@POSITION=TOKEN", "--add"),
        (("--add", "L0.H0.ctx@x=k"), "after 'x' is not a position", "--add"),
        (("--add", "L0.H0.ctx@6=k"), "there is no memory L0.H0.ctx.6", None),
        (("--add", "L0.H0.slot@1=k"), "slots cannot be added", None),
        (("--edit", "none.yaml"), "cannot be read", "none.yaml"),
        ((*DELETE, "--prompt-file", "text.txt"), "both a prompt and --prompt-file", "--prompt-file"),
        ((*DELETE, "--out", "text.txt"), "not a folder", "text.txt"),
    ],
)
def test_what_is_no_edit_is_refused(world, refused, arguments, message, where):
    error = refused(2, *EDIT, "the cat", *arguments)
    assert message in error["message"]
    assert error["where"] == where or str(error["where"]).startswith(f"{where}, line")
