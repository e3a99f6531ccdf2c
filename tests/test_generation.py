"""Sampling filters, stop texts, and that writing does not depend on how it is asked for."""

import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model
from mosaic_cli.device import choose_placement
from mosaic_cli.errors import UsageError
from mosaic_cli.generation import Sampling, Writer, filtered_probabilities, generate, sample

PLACEMENT = choose_placement("cpu", "float32")
LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


class Letters:
    """A tokenizer of one letter a token; 0 ends the text."""

    end_of_text = 0

    def encode(self, text):
        return [ord(letter) - 96 for letter in text]

    def encode_prompt(self, text):
        return self.encode(text) or [self.end_of_text]

    def stream(self):
        class Stream:
            def push(self, token):
                return chr(token + 96)

        return Stream()


def _model(kind="mosaic", context_length=8):
    return build_model(
        ModelConfig(kind=kind, num_layers=1, num_heads=2, d_model=8, context_length=context_length, vocab_size=5)
    ).eval()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1, top_k=2), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1, top_k=99), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=1, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(temperature=1, top_p=0.6), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=1, min_p=0.35), [0.625, 0.375, 0, 0]),
        (Sampling(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ],
)
def test_filters(sampling, expected):
    assert filtered_probabilities(LOGITS, sampling)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_draws_follow_the_distribution():
    generator = torch.Generator().manual_seed(0)
    draws = sample(LOGITS.expand(20_000, -1), Sampling(temperature=1), generator)
    shares = torch.bincount(draws, minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)


def test_temperature_zero_takes_the_likeliest():
    assert sample(LOGITS, Sampling(temperature=0), torch.Generator()).tolist() == [0]


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": -0.1}])
def test_impossible_sampling_is_refused(bad):
    with pytest.raises(UsageError):
        Sampling(**bad)


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_greedy_writing_is_what_full_forwards_choose(kind):
    model, text = _model(kind, context_length=30), [1, 2, 3]
    written = [
        tokens[0] for tokens in generate(model, text, PLACEMENT, max_new_tokens=9, sampling=Sampling(temperature=0))
    ]
    for token in written:
        assert token == model(torch.tensor([text])).argmax(-1)[0, -1]
        text = [*text, token]


def test_a_seed_fixes_the_text_and_leaves_the_global_generator_alone():
    model, before = _model(), torch.get_rng_state()
    runs = [list(generate(model, [1], PLACEMENT, num_samples=3, max_new_tokens=12, seed=s)) for s in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]
    assert torch.equal(before, torch.get_rng_state())


def test_a_mosaic_writes_past_its_context_and_a_transformer_says_it_cannot():
    assert len(list(generate(_model(), [1], PLACEMENT, max_new_tokens=40))) == 40
    with pytest.raises(UsageError, match="do not fit the transformer's context of 8") as caught:
        list(generate(_model("transformer"), [1, 2, 3], PLACEMENT, max_new_tokens=40))
    assert "At most 6 new tokens" in caught.value.hint
    assert len(list(generate(_model("transformer"), [1, 2, 3], PLACEMENT, max_new_tokens=6))) == 6


def _scripted(monkeypatch, tokens, **options):
    """A writer whose model draws the given tokens."""
    monkeypatch.setattr("mosaic_cli.generation.generate", lambda *a, **k: ([token] for token in tokens))
    writer = Writer(None, Letters(), "x", PLACEMENT, **options)
    pieces = [piece for (piece,) in writer]
    return pieces, writer.samples()[0]


def test_a_stop_text_ends_the_sample_and_is_left_out(monkeypatch):
    pieces, sample_ = _scripted(monkeypatch, [1, 2, 1, 2, 3, 4], stop=("abc",))
    assert "".join(pieces) == sample_.text == "ab" and sample_.stop_reason == "stop" and sample_.tokens == 5
    assert pieces[0] == "", "what may begin a stop text is held back"


def test_the_end_of_text_ends_the_sample(monkeypatch):
    _, sample_ = _scripted(monkeypatch, [1, 0, 2])
    assert (sample_.text, sample_.stop_reason, sample_.tokens) == ("a", "end_of_text", 2)


def test_held_text_comes_out_at_the_end(monkeypatch):
    _, sample_ = _scripted(monkeypatch, [1, 2], stop=("abc",))
    assert (sample_.text, sample_.stop_reason) == ("ab", "length")


def test_an_empty_prompt_begins_a_document():
    writer = Writer(_model(), Letters(), "", PLACEMENT, max_new_tokens=3, num_samples=2)
    pieces = list(writer)
    assert writer.prompt_ids == [0] and len(writer.samples()) == 2
    assert ["".join(column) for column in zip(*pieces, strict=True)] == [s.text for s in writer.samples()]


def test_compiling_steps_that_are_not_recorded_is_refused():
    with pytest.raises(UsageError, match="only recorded steps"):
        next(generate(_model(), [1], PLACEMENT, compiled=True))
