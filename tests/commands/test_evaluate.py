"""`mosaic eval`: one column a model, the ways to name one, bounds, and figures that do not depend on the batch."""

import json
import math
import shutil

import pytest

PROMISED = {"ckpt", "kind", "parameters", "on", "loss", "perplexity", "bits_per_byte", "tokens", "interval"}
LATEST = "runs/tiny/checkpoints/step-00000008"


def test_json_holds_what_is_promised(world, mosaic):
    result = mosaic("eval", "--ckpt", "tiny", "--ckpt", "gpt@6", "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.eval/1"
    tiny, gpt = result.json["results"]
    assert tiny.keys() >= PROMISED and "positions" not in tiny
    assert (tiny["ckpt"], tiny["kind"], tiny["on"]) == ("tiny", "mosaic", "val")
    assert (gpt["ckpt"], gpt["kind"]) == ("gpt@6", "transformer")
    manifest = json.loads((world / "data" / "tiny" / "manifest.json").read_text())
    assert tiny["tokens"] == gpt["tokens"] == manifest["val"]["tokens"] - 1
    assert tiny["perplexity"] == pytest.approx(math.exp(tiny["loss"]))
    assert tiny["interval"][0] < tiny["loss"] < tiny["interval"][1]


def test_by_position(world, mosaic):
    (row,) = mosaic("eval", "--ckpt", "tiny", "--by-position", "--json").json["results"]
    assert row["positions"] == list(range(8)) and len(row["loss_by_position"]) == 8
    table = mosaic("eval", "--ckpt", "tiny", "--by-position").out
    assert "Loss by position in the window" in table and "4-7" in table


@pytest.mark.parametrize(
    "spec",
    ["tiny", "tiny@8", "tiny@latest", "tiny@best", "runs/tiny", "runs/tiny@8", "runs/tiny/", LATEST, f"{LATEST}/"],
)
def test_a_model_may_be_named_in_many_ways(world, mosaic, spec):
    (row,) = mosaic("eval", "--ckpt", spec, "--json").json["results"]
    assert row["ckpt"] == spec and row["checkpoint"].rstrip("/") == LATEST


def test_a_run_in_a_folder_whose_name_has_the_sign(world, mosaic):
    shutil.copytree("runs/tiny", "other@6/tiny")
    (row,) = mosaic("eval", "--ckpt", str(world / "other@6" / "tiny"), "--json").json["results"]
    assert row["checkpoint"].endswith("other@6/tiny/checkpoints/step-00000008")


def test_the_best_checkpoint_is_the_default(world, mosaic):
    (world / "runs" / "tiny" / "checkpoints" / "best").write_text("step-00000006\n")
    (row,) = mosaic("eval", "--ckpt", "tiny", "--json").json["results"]
    assert row["checkpoint"].endswith("step-00000006")


@pytest.mark.parametrize("on", ["val", "text.txt"])
def test_the_result_does_not_depend_on_the_batch(world, mosaic, on):
    rows = [
        mosaic("eval", "--ckpt", "tiny", "--on", on, "--by-position", "--batch-tokens", size, "--json").json["results"][
            0
        ]
        for size in (1, 40, 100_000)
    ]
    assert rows[0]["tokens"] == rows[1]["tokens"] == rows[2]["tokens"]
    for row in rows[1:]:
        assert row["loss"] == pytest.approx(rows[0]["loss"], rel=1e-6)
        assert row["interval"] == pytest.approx(rows[0]["interval"], rel=1e-6)
        assert row["loss_by_position"] == pytest.approx(rows[0]["loss_by_position"], rel=1e-5)


def test_a_text_shorter_than_one_context(world, mosaic):
    (world / "short.txt").write_text("cat")
    (row,) = mosaic("eval", "--ckpt", "tiny", "--on", "short.txt", "--json").json["results"]
    assert row["tokens"] == 3 and row["interval"] is None and row["on"] == row["data_source"] == "short.txt"
    assert "±" not in next(
        line for line in mosaic("eval", "--ckpt", "tiny", "--on", "short.txt").out.splitlines() if "nats" in line
    )


def test_contexts_other_than_the_training_one(world, mosaic):
    rows = mosaic("eval", "--ckpt", "tiny", "--context", "4, 8,32", "--json").json["results"]
    assert [row["context"] for row in rows] == [4, 8, 32] and len({row["tokens"] for row in rows}) == 1


def test_a_context_longer_than_the_text(world, refused):
    error = refused(2, "eval", "--ckpt", "tiny", "--context", "8,99999999999")
    assert "99,999,999,999 tokens is longer than tiny's text" in error["message"] and "At most" in error["hint"]


@pytest.mark.parametrize(
    ("bounds", "code", "message"),
    [
        (["--max", "loss=20", "--min", "tokens=5"], 0, None),
        (["--max", "loss=0.5"], 3, "is above 0.5"),
        (["--min", "bits_per_byte=1e3"], 3, "is below 1000"),
        (["--max", "perplexity=0.1", "--min", "loss=99"], 3, "; "),
    ],
)
def test_a_bound_that_does_not_hold_is_exit_code_3(world, mosaic, refused, bounds, code, message):
    result = mosaic("eval", "--ckpt", "tiny", *bounds)
    assert result.code == code and "perplexity" in result.out, "the table is shown in any case"
    if code:
        assert message in result.err
        error = refused(3, "eval", "--ckpt", "tiny", *bounds)
        assert "tiny: " in error["message"] and message in error["message"] and error["where"] == "--min/--max"


def test_a_figure_is_drawn(world, mosaic):
    result = mosaic("eval", "--ckpt", "tiny", "--ckpt", "gpt", "--by-position", "--figure", "out/a.svg", "--json")
    assert result.code == 0 and len(result.json["results"]) == 2
    assert "<svg" in (world / "out" / "a.svg").read_text()


def test_the_crossing_of_two_models(world, mosaic, refused):
    (world / "short.txt").write_text("cat")
    pair = ("--ckpt", "gpt", "--ckpt", "tiny", "--on", "text.txt", "--crossing")
    result = mosaic("eval", *pair, "--figure", "out/ood", "--json")
    found, (first, second) = result.json["crossing"], result.json["results"]
    assert (found["of"], found["over"], found["windows"]) == ("tiny", "gpt", first["tokens"] // 8)
    assert len(second["positions"]) == 8 and 0 <= found["share"] <= 1
    assert (found["position"] is None) == (found["interval"] == [None, None])
    assert "<svg" in (world / "out" / "ood.svg").read_text() and (world / "out" / "ood.png").stat().st_size > 1000
    assert "From which position on tiny is below gpt" in mosaic("eval", *pair).out
    for flags, message in (
        (("--ckpt", "tiny", "--crossing"), "between two models, not 1"),
        ((*pair, "--context", "4,8"), "windows of one length"),
        ((*pair[:4], "--on", "short.txt", "--crossing"), "shorter than one window"),
        ((*pair[:4], "--on", "recall", "--crossing"), "recall has problems and positions of its own"),
    ):
        assert message in refused(2, "eval", *flags)["message"]


def test_models_that_read_other_tokens_have_no_crossing(world, mosaic, refused):
    (world / "other.txt").write_text((world / "text.txt").read_text()[::-1])
    other = ("-s", "data.files=[other.txt]", "-s", "data.dir=data/other", "--steps", 1, "--run", "other")
    assert mosaic("train", "tiny.yaml", *other).code == 0
    error = refused(2, "eval", "--ckpt", "tiny", "--ckpt", "other", "--crossing")
    assert "different validation splits" in error["message"] and "--on FILE" in error["hint"]
    assert mosaic("eval", "--ckpt", "tiny", "--ckpt", "other", "--crossing", "--on", "text.txt").code == 0


def test_a_wide_table_shows_every_figure(world, mosaic, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    specs = [f"runs/{name}/checkpoints/step-0000000{step}" for name in ("tiny", "gpt") for step in (6, 8)]
    arguments = [part for spec in specs for part in ("--ckpt", spec)]
    table = mosaic("eval", *arguments).out
    rows = mosaic("eval", *arguments, "--json").json["results"]
    assert all(f"{row['loss']:.4f}" in table and row["ckpt"] in table for row in rows) and "…" not in table


def test_recall_is_asked_of_stories(world, mosaic):
    (world / "letters.txt").write_text("".join(map(chr, range(32, 127))) * 40 + "\n" * 90)
    tiny = ("-s", "data.files=[letters.txt]", "-s", "data.dir=data/letters", "--steps", 2)
    assert mosaic("train", "tiny.yaml", *tiny, "--run", "letters").code == 0
    (row,) = mosaic("eval", "--ckpt", "letters", "--on", "recall", "--json").json["results"]
    assert row["on"] == "recall" and 0 <= row["accuracy"] <= 1 and row["recalls"] > 1000
    assert set(row["by_form"]) == {"mention", "retell", "reply", "question"}
    assert sum(span["n"] for span in row["by_distance"]) == row["recalls"]


def test_far_recall_is_asked_at_every_distance(world, mosaic, monkeypatch):
    monkeypatch.setattr("mosaic_cli.commands.far_recall_table.STORIES", 1)
    monkeypatch.setattr("mosaic_cli.commands.far_recall_table.DISTANCES", (400, 500, 600, 700, 800, 900))
    (world / "letters.txt").write_text("".join(map(chr, range(32, 127))) * 40 + "\n" * 90)
    tiny = ("-s", "data.files=[letters.txt]", "-s", "data.dir=data/letters", "--steps", 2)
    assert mosaic("train", "tiny.yaml", *tiny, "--run", "letters").code == 0
    result = mosaic("eval", "--ckpt", "letters", "--on", "recall-far", "--json")
    (row,) = result.json["results"]
    assert [one["asked"] for one in row["by_distance"]][4:] == [800, 900] and row["context"] == 8
    assert row["accuracy_128"] == row["by_distance"][0]["mean"] and 0 < row["chance"] <= 1
    assert "about 800 tokens" in mosaic("eval", "--ckpt", "letters", "--on", "recall-far").out


def test_recall_is_asked_after_other_stories(world, mosaic, refused, monkeypatch):
    monkeypatch.setattr("mosaic_cli.commands.recall_after_table.STORIES", 1)
    monkeypatch.setattr("mosaic_cli.commands.recall_after_table.LENGTHS", (0, 1, 2, 3, 2000))
    (world / "letters.txt").write_text("".join(map(chr, range(32, 127))) * 40 + "\n" * 90)
    tiny = ("-s", "data.files=[letters.txt]", "-s", "data.dir=data/letters", "--steps", 2)
    assert mosaic("train", "tiny.yaml", *tiny, "--run", "letters").code == 0
    (row,) = mosaic("eval", "--ckpt", "letters", "--on", "recall-after", "--json").json["results"]
    assert row["alone"] == row["clear_512"] == row["by_length"][0]["clear"]["mean"] and row["clash_512"] is None
    assert [one["before"] for one in row["by_length"]] == [0, 1, 2, 3, 2000] and row["context"] == 8
    assert "after 2,000 tokens, another spoke of it" in mosaic("eval", "--ckpt", "letters", "--on", "recall-after").out
    twin = ("-s", "model.kind=transformer", "--run", "letters-gpt")
    assert mosaic("train", "tiny.yaml", *tiny, *twin).code == 0
    error = refused(2, "eval", "--ckpt", "letters-gpt", "--on", "recall-after")
    assert "no recall lies within the context of letters-gpt" in error["message"] and "context_length" in error["hint"]


def test_loss_beyond_the_training_length(world, mosaic, refused):
    pair = ("eval", "--ckpt", "tiny", "--ckpt", "gpt", "--on", "length")
    result = mosaic(*pair, "--figure", "out/length", "--json")
    tiny, gpt = result.json["results"]
    assert tiny["window"] > tiny["context"] == gpt["window"] == 8 and tiny["loss"] > 0
    assert tiny["by_band"][2]["ratio"] == pytest.approx(1, rel=1e-5) and tiny["by_band"][2]["to"] == 7
    assert tiny["ratio_2"] == tiny["by_band"][3]["ratio"] and gpt["ratio_2"] is None
    assert "<svg" in (world / "out" / "length.svg").read_text() and (world / "out" / "length.png").stat().st_size > 1000
    assert "positions 8 to 15" in mosaic(*pair).out
    assert "gpt has no ratio_2" in refused(3, *pair, "--max", "ratio_2=9")["message"]
    assert "Leave out" in refused(2, *pair, "--by-position")["hint"]


@pytest.mark.parametrize("flags", [("--by-position",), ("--context", "8"), ("--min", "loss=1")])
def test_what_recall_does_not_have(world, mosaic, flags):
    assert mosaic("eval", "--ckpt", "tiny", "--on", "recall", *flags).code == 2
