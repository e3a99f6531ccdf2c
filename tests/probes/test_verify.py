"""What verify measures of a prompt: sources, rankings, deletions and edits, on tiny models made to answer right."""

import math
import random
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_model

from mosaic_cli.data.recalls import TokenStory
from mosaic_cli.data.stories import write_story
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import NonFiniteError, UsageError
from mosaic_cli.probes import verify as module
from mosaic_cli.probes.edits import Memories
from mosaic_cli.probes.reading import read_text
from mosaic_cli.probes.verdict import BY_RANKING, ERRORS, FIGURES, summarise
from mosaic_cli.probes.verify import FORMS, RANKINGS, Prompt, examine, held_out_prompts, verify

KINDS = ["mosaic", "transformer"]


@pytest.fixture(scope="module")
def words():
    """A tokenizer that has the stories' words whole."""
    return Tokenizer.train([write_story(7, index).text for index in range(150)], 2000)


@pytest.fixture(scope="module")
def answers(words):
    return module._other_answers(words)


def _model(words, kind="mosaic", **changes):
    shape = {"num_layers": 2, "num_heads": 2, "context_length": 400, "vocab_size": words.vocab_size} | changes
    return tiny_model(kind, **shape)


def _prompts(model, words, count=4, seed=0):
    return list(held_out_prompts(model, words, count, seed))


@torch.no_grad()
def _made_right(model, prompt: Prompt) -> Prompt:
    """The prompt with what the model says in the place of the answer."""
    said = int(model(torch.tensor([prompt.tokens]))[0, -1].argmax())
    tokens = list(prompt.story.tokens)
    tokens[prompt.recall.answer] = said
    return replace(prompt, story=TokenStory(prompt.story.story, tokens, prompt.story.recalls))


# ---- prompts


@pytest.mark.parametrize("kind", KINDS)
def test_holders_store_the_answer(words, kind):
    model = _model(words, kind)
    for prompt in _prompts(model, words, 12):
        assert prompt.tokens == prompt.story.tokens[: len(prompt.tokens)] and prompt.tokens[0] == words.end_of_text
        assert prompt.answer == prompt.story.tokens[len(prompt.tokens)]
        assert len(prompt.holders) == len(prompt.recall.sources)
        span = prompt.recall.recall.answer
        wanted = prompt.story.story.text[span.start : span.end].lower()
        for holder in prompt.holders:
            stored_at = holder + 1 if kind == "mosaic" else holder
            assert holder >= 0 and stored_at < len(prompt.tokens)
            assert wanted.startswith(words.token_text(prompt.tokens[stored_at]).strip().lower())


def test_replacing_a_holder_is_replacing_the_word_at_the_source(words):
    """The pair that edits call by the holder's number is the one whose value the source's token made."""
    for kind in KINDS:
        model = _model(words, kind)
        (prompt,) = _prompts(model, words, 1)
        changed = list(prompt.tokens)
        changed[prompt.recall.source] = 5
        (before, after) = (read_text(model, tokens).layers[0].pairs.values for tokens in (prompt.tokens, changed))
        moved = (before != after).any(-1).any(0).nonzero().flatten().tolist()
        assert prompt.holders[0] in moved and moved[0] == prompt.holders[0]


def test_prompts_are_the_same_each_time_and_new_with_each_seed(words):
    model = _model(words)
    first = _prompts(model, words, 8)
    assert first == _prompts(model, words, 8)
    texts = {prompt.story.story.text for prompt in first}
    assert len(texts) == 8 and not texts & {prompt.story.story.text for prompt in _prompts(model, words, 8, seed=1)}


def test_forms_come_in_turn(words):
    for number, prompt in enumerate(_prompts(_model(words), words, 24)):
        due = FORMS[number % 4]
        had = {recall.recall.form for recall in prompt.story.recalls}
        assert prompt.recall.recall.form == due or due not in had


# ---- a prompt examined


@pytest.mark.parametrize("kind", KINDS)
def test_every_figure_of_an_answered_prompt(words, answers, kind, monkeypatch):
    monkeypatch.setattr(module, "_likeness", lambda story, recall: (recall.recall.kind, False))  # of the real answer
    model = _model(words, kind)
    prompt = _made_right(model, _prompts(model, words, 1)[0])
    finding = examine(model, words, prompt, answers, random.Random(1))
    assert (finding.form, finding.kind) == (prompt.recall.recall.form, prompt.recall.recall.kind)
    assert finding.figures["answered"] == 1 and finding.figures["plain_logit_error"] == 0
    assert finding.figures["completeness_error"] < 1e-4
    assert finding.figures.keys() >= {*ERRORS, *FIGURES} - {"edit_generalisation"}
    assert finding.rank.keys() == set(RANKINGS)
    for row in finding.rank.values():
        assert row.keys() == set(BY_RANKING) and all(math.isfinite(value) for value in row.values())
        assert row["source_top1"] <= row["source_top3"] <= row["source_top10"]
        assert 0 <= row["deletion_specificity"] <= 1
    assert len(finding.layers) == 2 and all(total <= 0 for _, total in finding.layers)
    again = examine(model, words, prompt, answers, random.Random(1))
    assert again == finding


def test_a_prompt_that_is_not_answered_has_errors_alone(words, answers):
    model = _model(words)
    finding = examine(model, words, _prompts(model, words, 1)[0], answers, random.Random(1))
    assert finding.figures.keys() == {*ERRORS, "answered"} and finding.figures["answered"] == 0
    assert not finding.rank and not finding.layers


def test_a_ranking_by_the_effects_themselves_is_perfect(words, answers, monkeypatch):
    """With one layer and one head, the costliest pair and the order are found when effects are the ranking."""
    model = _model(words, num_layers=1, num_heads=1)
    prompt = _made_right(model, _prompts(model, words, 1)[0])
    reading = read_text(model, prompt.tokens)
    measured = module.single_deletions(model, reading, prompt.answer)
    scores = dict.fromkeys(RANKINGS, -measured)
    monkeypatch.setattr(module, "_scores", lambda *_: scores)
    finding = examine(model, words, prompt, answers, random.Random(1))
    for row in finding.rank.values():
        assert row["costliest_in_top3"] == 1 and row["rank_correlation"] == pytest.approx(1)
    order = measured.flatten().argsort()
    for count in (1, 3, 10):
        expected = bool(set(order[:count].tolist()) & set(prompt.holders))
        assert finding.figures[f"source_top{count}"] == expected
    assert finding.layers[0][1] == measured.min().item()


def test_letters_leave_no_other_answer_to_edit_in():
    letters = Tokenizer.of_bytes()
    model = tiny_model(num_layers=1, num_heads=1, vocab_size=letters.vocab_size)
    (prompt,) = held_out_prompts(model, letters, 1)
    prompt = _made_right(model, prompt)
    finding = module.Finding("reply", "place")
    whole = read_text(model, prompt.story.tokens)
    module._judge_edits(model, letters, prompt, whole, module._other_answers(letters), finding, random.Random(1))
    assert not finding.figures


def test_specificity_leaves_the_fact_s_own_recalls_out(words):
    model = _model(words)
    prompt = next(p for p in _prompts(model, words, 12) if len({r.source for r in p.story.recalls}) > 1)
    whole = read_text(model, prompt.story.tokens)
    tokens, recall = prompt.story.tokens, prompt.recall
    assert module._kept(whole.logits, whole, prompt) == 1
    own = [r.answer - 1 for r in prompt.story.recalls if r.source == recall.source]
    other = next(r.answer - 1 for r in prompt.story.recalls if r.source != recall.source and r.answer > recall.source)
    judged = len(tokens) - 1 - recall.source - len(own)

    def changed(*places):
        logits = whole.logits.clone()
        logits[list(places)] *= -1
        return module._kept(logits, whole, prompt)

    assert changed(*own, *range(recall.source), len(tokens) - 1) == 1
    assert changed(other) == pytest.approx(1 - 1 / judged)


# ---- sentences


def test_another_form_asks_for_the_same_fact(words):
    found = 0
    for prompt in _prompts(_model(words), words, 60):
        text, asked = prompt.story.story.text, prompt.recall.recall
        rephrased = module._rephrased(words, prompt)
        if rephrased is None:
            continue
        found += 1
        tokens, expected = rephrased
        others = {prompt.story.tokens[r.answer] for r in prompt.story.recalls if r.source == prompt.recall.source}
        assert tokens[0] == words.end_of_text and expected in others
        assert tokens[: prompt.recall.source + 1] == prompt.story.tokens[: prompt.recall.source + 1]
        head, _, question = words.decode(tokens).rpartition("\n\n")
        assert text.startswith(head) and asked.source.end <= len(head) < text.find(question, len(head))
        thing = module._thing(text, asked.source.start)
        assert f" {thing}" in question and question[0] in '"' + question[0].upper()
    assert found > 25


@pytest.mark.parametrize(
    ("text", "source", "thing"),
    [
        ("One. Ben put the kite under the bridge.", "under", "kite"),
        ("One. Grandma gave the drum to Tom.", "Tom", "drum"),
        ("Mia saw the kite. Ana called it Pepper.", "Pepper", None),
        ("The end.\nBen painted the bell green.", "green", "bell"),
        ("He smiled. The clock belonged to Tim.", "Tim", "clock"),
    ],
)
def test_what_a_statement_is_about(text, source, thing):
    assert module._thing(text, text.index(source)) == thing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rained. Where was the kite? It was under", "Where was the kite? It was under"),
        ('He sat. "Where is the kite?" asked Ben. It was under', '"Where is the kite?" asked Ben. It was under'),
        ("All went.\nThe kite was under", "The kite was under"),
        ('"Yes." The kite was under', "The kite was under"),
        ("A kite! A kite was under", "A kite was under"),
    ],
)
def test_where_a_sentence_begins(text, expected):
    assert text[module._sentence_with(text, "kite", len(text)) :] == expected


# ---- ranks


def test_ranks_share_their_mean():
    assert module._ranks(torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0])).tolist() == [4, 1, 4, 2, 4]


def test_rank_correlation():
    a = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert module._spearman(a, a.exp()) == pytest.approx(1)
    assert module._spearman(a, -a) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)), d = 1, 1, 1, 1, 0
    assert module._spearman(a, torch.tensor([2.0, 1.0, 4.0, 3.0, 5.0])) == pytest.approx(0.8)
    # ranks 1.5 1.5 3 4 5 beside 1 2 3 4 5: covariance 9.5, variances 9.5 and 10
    assert module._spearman(torch.tensor([0.0, 0, 1, 2, 3]), a) == pytest.approx(math.sqrt(0.95))
    assert module._spearman(a, torch.ones(5)) is None and module._spearman(a[:1], a[:1]) is None


# ---- all together


def test_findings_come_one_at_a_time_and_are_the_same_again(words):
    model = _model(words)
    first, second = (list(verify(model, words, 3, seed=2)) for _ in range(2))
    assert first == second and summarise(first)["samples"] == 3


def test_a_transformer_must_have_room_for_the_stories(words):
    with pytest.raises(UsageError, match="of 4 stories only 0 fit into the 80 tokens"):
        next(verify(_model(words, "transformer", context_length=80), words, 2))
    lengths = sorted(len(prompt.story.tokens) for prompt in held_out_prompts(_model(words), words, 40))
    model = _model(words, "transformer", context_length=lengths[24])
    fitting = list(held_out_prompts(model, words, 20))
    assert len(fitting) == 20 and max(len(prompt.story.tokens) for prompt in fitting) <= lengths[24]


def test_a_tokenizer_without_the_stories_letters_is_refused():
    letters = Tokenizer.of_characters("abc")
    with pytest.raises(UsageError, match="cannot read the built-in stories: the character 'O'") as caught:
        next(verify(tiny_model(vocab_size=letters.vocab_size), letters, 1))
    assert "quickstart" in caught.value.hint


def test_a_model_beyond_all_numbers_is_told(words):
    model = _model(words)
    with torch.no_grad():
        model.norm.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError):
        next(verify(model, words, 1))


def test_pairs_are_named_as_edits_name_them(words):
    """A story's edits name pairs that the prompt has."""
    model = _model(words)
    for prompt in _prompts(model, words, 4):
        for holder in prompt.holders:
            Memories(None, None, "ctx", holder).check(model, len(prompt.tokens) - 1)
