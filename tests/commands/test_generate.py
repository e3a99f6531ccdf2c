"""`mosaic generate`: where the prompt comes from, what is written, and that asking again gives the same."""

import pytest

from mosaic_cli.core import kernels, model

TINY = ("generate", "--ckpt", "tiny")


def test_json_holds_what_is_promised(world, mosaic):
    result = mosaic(*TINY, "the cat", "--max-new-tokens", 12, "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.generate/1"
    assert result.json.keys() >= {"samples", "prefill_tokens_per_second", "decode_tokens_per_second"}
    (sample,) = result.json["samples"]
    assert sample.keys() >= {"prompt", "text", "tokens", "stop_reason"} and sample["prompt"] == "the cat"
    assert sample["tokens"] <= 12 and sample["stop_reason"] in ("length", "end_of_text")
    assert "tokens/s" in result.err


def test_what_is_streamed_is_the_prompt_and_the_text(world, mosaic):
    arguments = (*TINY, "the", "--max-new-tokens", 30, "--seed", 3)
    (sample,) = mosaic(*arguments, "--json").json["samples"]
    assert mosaic(*arguments).out == "the" + sample["text"] + "\n"


def test_several_samples(world, mosaic):
    arguments = (*TINY, "the", "-n", 3, "--max-new-tokens", 20)
    result = mosaic(*arguments, "--json")
    samples = result.json["samples"]
    reasons = [sample["stop_reason"] for sample in samples]
    assert all(f"{reasons.count(reason)} {reason}" in result.err for reason in reasons)
    assert len(samples) == 3 and len({sample["text"] for sample in samples}) > 1
    out = mosaic(*arguments).out
    assert all(f"--- {number} of 3" in out for number in (1, 2, 3)) and all("the" + s["text"] in out for s in samples)


def test_greedy_writing_knows_no_chance(world, mosaic):
    texts = {
        mosaic(*TINY, "the", "--temperature", 0, "--max-new-tokens", 15, "--seed", seed, "-n", n, "--json").json[
            "samples"
        ][-1]["text"]
        for seed, n in ((1, 1), (2, 1), (3, 2))
    }
    assert len(texts) == 1


def test_a_seed_decides_the_text(world, mosaic):
    texts = [
        mosaic(*TINY, "the", "--max-new-tokens", 20, "--seed", seed, "--json").json["samples"][0]["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_much_to_write_is_written_by_loops(world, mosaic, monkeypatch):
    arguments = (*TINY, "the", "-n", 8, "--temperature", 0, "--max-new-tokens", 20)
    plain = mosaic(*arguments)
    monkeypatch.setattr(model, "WORTH_LOADING", 1)
    for limit in ("QUANTISED", "WEIGHTS"):
        monkeypatch.setattr(kernels, limit, 1)
    looped = mosaic(*arguments)
    assert looped.code == 0 and looped.out == plain.out
    assert "by loops" in looped.err and "by loops" not in plain.err


def test_a_stop_text_ends_it(world, mosaic):
    arguments = (*TINY, "the", "--seed", 3, "--max-new-tokens", 30)
    text = mosaic(*arguments, "--json").json["samples"][0]["text"]
    stop = text[4:6]
    (sample,) = mosaic(*arguments, "--stop", stop, "--stop", "zzz", "--json").json["samples"]
    assert sample["stop_reason"] == "stop" and sample["text"] == text[: text.index(stop)]


@pytest.mark.parametrize("prompt", ["the cat", "", "a\ncat"])
def test_the_prompt_may_come_from_three_places(world, mosaic, prompt):
    (world / "prompt.txt").write_text(prompt)
    end = ("--max-new-tokens", 8, "--json")
    given = mosaic(*TINY, prompt, *end).json["samples"]
    assert given[0]["prompt"] == prompt
    assert mosaic(*TINY, "--prompt-file", "prompt.txt", *end).json["samples"] == given
    assert mosaic(*TINY, *end, stdin=prompt.encode()).json["samples"] == given


def test_a_mosaic_reads_and_writes_past_its_context(world, mosaic):
    prompt = "the bird found the old hat"
    (sample,) = mosaic(*TINY, prompt, "--max-new-tokens", 50, "--stop", "\0", "--json").json["samples"]
    assert len(prompt) > 8 and (sample["tokens"] == 50 or sample["stop_reason"] == "end_of_text")


def test_a_transformer_writes_to_the_end_of_its_context(world, mosaic):
    result = mosaic("generate", "--ckpt", "gpt", "the", "--max-new-tokens", 6, "--json")
    assert result.code == 0 and result.json["samples"][0]["tokens"] <= 6


def test_a_prompt_that_does_not_fit_is_not_half_written(world, mosaic):
    result = mosaic("generate", "--ckpt", "gpt", "the bird found")
    assert (result.code, result.out) == (2, "") and "do not fit" in result.err


def _edited(world, text):
    (world / "some.yaml").write_text(text)
    return ("--edit", "some.yaml")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edited_memories_change_what_is_written(world, mosaic, dtype):
    arguments = (*TINY, "the bird", "--temperature", 0, "--max-new-tokens", 12, "--dtype", dtype)
    plain = mosaic(*arguments).out
    assert mosaic(*arguments, *_edited(world, "edits: [{scale: L*.H*.ctx.3, factor: 1}]")).out == plain
    other = _edited(world, "edits: [{scale: L*.H*.slot, factor: -9}, {replace: L0.H*.ctx.3, token: k}]")
    result = mosaic(*arguments, *other)
    assert result.code == 0 and result.out != plain
    assert mosaic(*arguments).out == plain


def test_several_samples_are_written_with_the_same_edits(world, mosaic):
    edit = _edited(world, "edits: [{scale: L*.H*.slot, factor: -9}]")
    arguments = (*TINY, "the bird", "--temperature", 0, "--max-new-tokens", 8, *edit)
    alone = mosaic(*arguments, "--json").json["samples"][0]["text"]
    assert [s["text"] for s in mosaic(*arguments, "-n", 2, "--json").json["samples"]] == [alone, alone]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edits: [{delete: L0.H0.ctx.7}]", "there is no memory L0.H0.ctx.7: of stored pairs there are 7"),
        ("edits: [{delete: L7.H0.ctx.1}]", "of layers there are 1"),
        ("edits: [{remove: L0.H0.ctx.1}]", "unknown key 'remove'"),
    ],
)
def test_edits_of_what_is_not_there_are_refused(world, refused, text, message):
    assert message in refused(2, *TINY, "the bird", *_edited(world, text))["message"]
