"""`mosaic probe ablate`: the table, the object, and what is refused."""

import json

import pytest

ABLATE = ("probe", "ablate", "--ckpt", "tiny", "--windows", 6)


def test_json_holds_what_is_promised(world, mosaic):
    found = mosaic(*ABLATE, "--json").json
    assert found["schema"] == "mosaic.probe.ablate/1" and found["method"] == "drop" and found["distance"] is None
    assert (found["on"], found["context"], found["windows"]) == ("val", 8, 6)
    names = ["L0.H0.ctx", "L0.H1.ctx", "L0.H0.slot", "L0.H1.slot", "L0.H*.ctx", "L0.H*.slot"]
    assert [row["memory"] for row in found["results"]] == names
    for row in found["results"]:
        assert row.keys() == {"memory", "loss", "change", "interval"}
        assert row["change"] == pytest.approx(row["loss"] - found["loss"])
        assert row["interval"][0] < row["change"] < row["interval"][1]
    assert json.loads((world / "runs" / "tiny" / "probes" / "ablate" / "ablate.json").read_text()) == found


def test_with_all_memories_the_loss_is_that_of_eval(world, mosaic):
    (world / "short.txt").write_text("the bird found the old hat and a cat"[:32])
    found = mosaic(*ABLATE, "--on", "short.txt", "--json").json
    (row,) = mosaic("eval", "--ckpt", "tiny", "--on", "short.txt", "--json").json["results"]
    assert found["windows"] == 4 and found["loss"] == pytest.approx(row["loss"], rel=1e-6)


def test_the_table_shows_what_was_asked(world, mosaic):
    names = ("--memories", "L0.H1.ctx.2", "--memories", "L*.H*.ctx")
    arguments = (*ABLATE, *names, "--method", "mean", "--distance", "2-5", "--context", 12, "--out", "here")
    result = mosaic(*arguments)
    found = json.loads((world / "here" / "ablate.json").read_text())
    assert result.code == 0 and "(mean) at distance 2-5" in result.out and "windows of 12 tokens" in result.out
    assert [row["memory"] for row in found["results"]] == ["L0.H1.ctx.2", "L*.H*.ctx"] and found["distance"] == [2, 5]
    for row in found["results"]:
        assert f"{row['loss']:.4f}" in result.out and f"{row['change']:+.4f}" in result.out


def test_one_window_has_no_interval(world, mosaic):
    found = mosaic(*ABLATE[:4], "--windows", 1, "--json").json
    assert all(row["interval"] is None for row in found["results"])
    assert mosaic(*ABLATE[:4], "--windows", 1).code == 0


def test_a_transformer_has_pairs_only(world, mosaic):
    found = mosaic("probe", "ablate", "--ckpt", "gpt", "--method", "zero", "--json").json
    assert [row["memory"] for row in found["results"]] == ["L0.H0.ctx", "L0.H1.ctx", "L0.H*.ctx"]


def test_distances_leave_the_slots_alone(world, mosaic):
    found = mosaic(*ABLATE, "--distance", "1-1", "--json").json
    assert not any("slot" in row["memory"] for row in found["results"])


def test_one_distance_is_a_range_of_itself(world, mosaic):
    one, many = (mosaic(*ABLATE, "--distance", text, "--json").json for text in ("2", "2-2"))
    assert one == many and one["distance"] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--memories", "L0.H9.ctx"), 2, "of heads there are 2"),
        (("--memories", "head 1"), 2, "does not name a memory"),
        (("--method", "burn"), 2, "not one of drop, zero, mean"),
        (("--distance", "near"), 2, "is not A-B"),
        (("--distance", "5-2"), 2, "from 1 on"),
        (("--distance", "1-2", "--memories", "L0.H0.slot"), 2, "at no distance"),
        (("--on", "none.txt"), 2, "no file"),
        (("--context", "100000"), 1, "one window needs"),
    ],
)
def test_what_cannot_be_is_refused(world, refused, arguments, code, message):
    assert message in refused(code, *ABLATE, *arguments)["message"]


def test_a_transformer_cannot_read_past_its_context(world, refused):
    error = refused(2, "probe", "ablate", "--ckpt", "gpt", "--context", 9)
    assert "trained on 8 tokens cannot read 9" in error["message"]
