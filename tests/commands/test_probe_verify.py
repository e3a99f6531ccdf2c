"""`mosaic probe verify`: what is promised of its object, what it prints, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from mosaic_cli.commands.manual import JSON_OBJECTS
from mosaic_cli.data.recalls import TokenStory
from mosaic_cli.probes import verify as module

STORIES = """
model: {num_layers: 1, num_heads: 2, d_model: 8, num_slots: 4, context_length: 16, dropout: 0.0}
data: {source: builtin, builtin: stories, num_documents: 80, tokenizer: bpe, vocab_size: 1200, val_fraction: 0.2,
       dir: data/stories}
train: {max_steps: 2, batch_size: 2, micro_batch_size: 2, warmup_steps: 1, eval_interval: 2, save_interval: 2,
        dtype: float32, device: cpu}
"""
PROMISED = {
    *("completeness_error", "plain_logit_error", "source_top1", "source_top3", "source_top10", "costliest_in_top3"),
    *("deletion_efficacy", "source_deletion_efficacy", "deletion_specificity"),
    *("edit_efficacy", "edit_generalisation", "edit_specificity"),
    *("comprehensiveness", "sufficiency", "rank_correlation"),
}
OF_CONTROLS = {
    *("source_top1", "source_top3", "source_top10", "costliest_in_top3", "deletion_efficacy", "deletion_specificity"),
    *("comprehensiveness", "sufficiency", "rank_correlation"),
}
ESTIMATE = {"mean", "low", "high", "n"}


@pytest.fixture(scope="module")
def _story_world(tmp_path_factory):
    """A run on stories for each kind, after two steps: it knows the words, and answers nothing."""
    from mosaic_cli import app

    world = tmp_path_factory.mktemp("stories")
    (world / "stories.yaml").write_text(STORIES)
    (world / "gpt.yaml").write_text("extends: stories.yaml\nmodel: {kind: transformer}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        for name in ("stories", "gpt"):
            patch.setattr("sys.argv", ["mosaic", "train", f"{name}.yaml"])
            assert app.run() == 0
    return world


@pytest.fixture
def stories(_story_world, workdir):
    shutil.copytree(_story_world, workdir, dirs_exist_ok=True)
    return workdir


@pytest.fixture
def right(monkeypatch):
    """Every prompt's answer becomes what the model says: as if it recalled everything right."""
    plain = module.held_out_prompts

    def prompts(model, *arguments):
        for prompt in plain(model, *arguments):
            with torch.no_grad():
                said = int(model(torch.tensor([prompt.tokens]))[0, -1].argmax())
            tokens = [*prompt.tokens, said, *prompt.story.tokens[prompt.recall.answer + 1 :]]
            yield replace(prompt, story=TokenStory(prompt.story.story, tokens, prompt.story.recalls))

    monkeypatch.setattr(module, "held_out_prompts", prompts)
    monkeypatch.setattr(module, "_likeness", lambda story, recall: (recall.recall.kind, False))


def _verify(mosaic, *arguments):
    return mosaic("probe", "verify", "--ckpt", "stories", "--prompts", 2, *arguments)


def test_json_holds_what_is_promised(stories, mosaic, right):
    result = _verify(mosaic, "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.probe.verify/1"
    found = result.json
    assert found["samples"] == 2 and found["answered"]["mean"] == 1
    for name in PROMISED:
        assert found[name].keys() == ESTIMATE
    for name in PROMISED - {"edit_generalisation"}:
        assert found[name]["n"] == 2 and found[name]["low"] is not None
    assert found["controls"].keys() == {"random", "recency", "raw_weight"}
    for control in found["controls"].values():
        assert control.keys() == OF_CONTROLS and all(one["n"] == 2 for one in control.values())
    assert found["by_form"].keys() == {"mention", "retell", "reply", "question"}
    for row in found["by_form"].values():
        assert row.keys() >= OF_CONTROLS and all(one.keys() == ESTIMATE for one in row.values())
    assert found["completeness_error"]["high"] < 1e-4 and found["plain_logit_error"]["high"] == 0
    assert json.loads((stories / "runs/stories/probes/verify/verify.json").read_text()) == found


def test_every_documented_key_is_there_and_no_other(stories, mosaic, right):
    found = _verify(mosaic, "--json").json
    documented = JSON_OBJECTS["probe verify"][1]
    assert {key.split(".")[0].removesuffix("[]") for key in documented} | {"schema"} == found.keys()
    assert {key.split("[].")[1] for key in documented if key.startswith("layers[]")} == found["layers"][0].keys()


def test_what_is_printed(stories, mosaic, right):
    result = _verify(mosaic, "--out", "elsewhere")
    assert result.code == 0 and "\x1b" not in result.out
    assert (stories / "elsewhere/verify.json").is_file() and not (stories / "runs/stories/probes").exists()
    for word in ("2 held-out prompts", "completeness error", "random", "recency", "raw_weight", "reply", "harmonic"):
        assert word in result.out


def test_the_same_stories_give_the_same_figures_and_another_seed_others(stories, mosaic, right):
    first, second = (_verify(mosaic, "--json").json for _ in range(2))
    other = _verify(mosaic, "--json", "--seed", 1).json
    assert first == second != other


def test_a_model_that_answers_nothing_is_told_so(stories, mosaic, monkeypatch):
    monkeypatch.setattr(module.Prompt, "answer", property(lambda self: 0))  # end-of-text, which no one says here
    found = _verify(mosaic, "--json").json
    assert found["answered"] == {"mean": 0, "low": 0, "high": pytest.approx(0.6576, abs=1e-4), "n": 2}
    nothing = {"mean": None, "low": None, "high": None, "n": 0}
    assert found["source_top1"] == found["edit_efficacy"] == found["controls"]["random"]["source_top1"] == nothing
    assert found["layers"] == [] and found["edit_harmonic_mean"] is None
    result = _verify(mosaic)
    assert result.code == 0 and "answered none of them" in result.out


def test_a_transformer_needs_room_for_a_story(stories, refused):
    error = refused(2, "probe", "verify", "--ckpt", "gpt", "--prompts", 2)
    assert "16 tokens that the transformer reads" in error["message"] and "context_length" in error["hint"]


def test_a_tokenizer_without_the_stories_letters_is_refused(world, refused):
    error = refused(2, "probe", "verify", "--ckpt", "tiny", "--prompts", 2)
    assert "cannot read the built-in stories: the character" in error["message"] and "quickstart" in error["hint"]


def test_the_help_ends_with_an_example(mosaic):
    assert "Example: mosaic probe verify --ckpt" in " ".join(mosaic("probe", "verify", "-h").out.split())
