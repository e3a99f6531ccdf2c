"""lm-eval runs a small local task on our models, and its figures are those of `mosaic eval`."""

import json
import math
import sys

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'mosaic-cli[lm-eval]'")

from functools import partial

import lm_eval.tasks
from lm_eval.api.instance import Instance

from mosaic_cli import lm_eval as ours
from mosaic_cli.errors import DataError, UsageError

TASK = """
task: local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/docs.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}]
"""
FIRST, TEXTS = "Mia took", ["the egg", "Tom hid", "a cat s"]  # 8 characters, then 7 each: see the test


@pytest.fixture
def command(world, monkeypatch, capsys):
    """Runs lm-eval's command line with our model in it; only the index of its own tasks, a long list, is left out."""
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", world / "cache")
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes seconds

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["lm_eval", *map(str, arguments)])
        capsys.readouterr()
        return ours.main(), capsys.readouterr()

    return call


def _requests(*arguments):
    return [Instance("loglikelihood", {}, pair, 0) for pair in arguments]


@pytest.mark.parametrize("ckpt", ["tiny", "gpt"])
def test_lm_eval_agrees_with_mosaic_eval(ckpt, world, command, mosaic):
    """`mosaic eval` reads windows of 8 tokens of all documents in a row. The first document fills one, so each other
    window is an end-of-text token and a document of 7, which predict the document and, last, the next end of text."""
    for name, texts in (("all", [FIRST, *TEXTS]), ("first", [FIRST]), ("docs", TEXTS)):
        (world / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    nats = []
    for name, windows in (("all", 1 + len(TEXTS)), ("first", 1)):
        (result,) = mosaic("eval", "--ckpt", ckpt, "--on", f"{name}.jsonl", "--by-position", "--json").json["results"]
        assert result["context"] == 8 and result["tokens"] == 8 * windows
        nats.append(windows * sum(result["loss_by_position"][:-1]))
    expected = (nats[0] - nats[1]) / (7 * len(TEXTS)) / math.log(2)

    (world / "local.yaml").write_text(TASK.format(folder=world))
    code, said = command("--model", "mosaic", "--model_args", f"ckpt={ckpt}", "--device", "cpu", "--tasks",
                         "local.yaml", "--batch_size", "2", "--output_path", "out.json")  # fmt: skip
    assert code == 0 and "bits_per_byte" in said.out
    (path,) = world.glob("out*.json")
    assert json.loads(path.read_text())["results"]["local"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("ckpt", "limit"), [("tiny", None), ("tiny", 8), ("gpt", None)])
def test_a_mosaic_reads_on_and_a_transformer_in_windows(ckpt, limit, world):
    model = ours.MosaicLM(ckpt, "cpu", max_length=limit)
    text = "Mia saw the kite.\nTom hid the egg.\n"
    ids = [model.eot_token_id, *model.tok_encode(text)]
    if model.max_length is None:
        parts = [(None, ids[:1], ids[1:])]
    else:
        assert model.max_length == 8
        parts = [(None, ids[start : start + 1], ids[start + 1 : start + 9]) for start in range(0, len(ids) - 9, 8)]
        last = len(ids) - 1 - 8 * len(parts)  # the last window is full too, but only its new tokens count
        parts.append((None, ids[-9:-last], ids[-last:]))
    expected = sum(score for score, _ in model._loglikelihood_tokens(parts, disable_tqdm=True))
    assert model.loglikelihood_rolling(_requests((text,))) == pytest.approx([expected], rel=1e-6)


def test_what_does_not_fit_a_transformer_is_refused(world):
    transformer = ours.MosaicLM("gpt", "cpu")
    with pytest.raises(UsageError, match="longer than the 8"):
        transformer.loglikelihood(_requests(("Mia", " saw the kite")))
    with pytest.raises(UsageError, match="reads 1 to 8 tokens"):
        ours.MosaicLM("gpt", "cpu", max_length=9)


def test_writing_is_that_of_mosaic_generate(world, mosaic):
    model = ours.MosaicLM("tiny", "cpu", batch_size="auto")
    written = mosaic("generate", "--ckpt", "tiny", "Mia", "--temperature", "0", "--max-new-tokens", 6, "--json").json
    assert model.generate_until(_requests(("Mia", {"max_gen_toks": 6}))) == [written["samples"][0]["text"]]
    stop = written["samples"][0]["text"][2]
    (stopped,) = model.generate_until(_requests(("Mia", {"until": stop, "max_gen_toks": 6})))
    assert stopped == written["samples"][0]["text"].partition(stop)[0]
    asked = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 30}
    assert len(set(model.generate_until(_requests(*[("Mia", asked)] * 2)))) == 2
    transformer = ours.MosaicLM("gpt", "cpu")  # reads 8: 3 new tokens leave room for the prompt's last 6
    both = transformer.generate_until(_requests(*[(text, {"max_gen_toks": 3}) for text in ("Mia saw the", "aw the")]))
    assert both[0] == both[1]
    with pytest.raises(UsageError, match="no room for the prompt"):
        transformer.generate_until(_requests(("Mia", {"max_gen_toks": 9})))
    with pytest.raises(UsageError, match="knows no num_beams"):
        model.generate_until(_requests(("Mia", {"num_beams": 4})))


def test_our_errors_are_told_as_everywhere(world, command):
    (world / "docs.jsonl").write_text('{"text": "Zürich"}\n')
    (world / "local.yaml").write_text(TASK.format(folder=world))
    code, said = command("--model", "mosaic", "--model_args", "ckpt=nobody", "--tasks", "local.yaml")
    assert code == UsageError.exit_code and "error: no run 'nobody'\n" in said.err
    code, said = command("--model", "mosaic", "--model_args", "ckpt=tiny", "--tasks", "local.yaml")
    assert code == DataError.exit_code and "'Z'" in said.err
