"""The training loop: gradients of the whole batch, what is reported, saved and kept, and when it refuses."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model, next_token_loss
from mosaic_cli.data.batches import Batch
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import choose_placement
from mosaic_cli.errors import MosaicError, NonFiniteError, UsageError
from mosaic_cli.recipe import TrainSection
from mosaic_cli.runs.directory import Run
from mosaic_cli.training.loop import Trainer, backward

PLACEMENT = choose_placement("cpu", "float32")
LETTERS = "abcdefg"
QUICK = {"batch_size": 2, "warmup_steps": 0, "log_interval": 1, "max_steps": 6, "eval_interval": 2, "save_interval": 2}


SHAPE = {"num_layers": 1, "num_heads": 2, "d_model": 8, "num_slots": 4, "context_length": 6, "vocab_size": 8}
V2 = {"preset": "v2", "short_window": 2, "long_delay": 1, "max_long_delay": 4, "dropout": 0.1}


def _model(kind="mosaic", **keys):
    torch.manual_seed(0)
    return build_model(ModelConfig(kind=kind, **SHAPE, **keys))


@pytest.fixture
def trainer(tmp_path, array_tokens):
    """Makes a trainer of a tiny model on random letters; keywords are keys of the train section."""

    def make(kind="mosaic", keys=None, **train):
        run = Run(tmp_path / "runs" / "one")
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        draws = np.random.default_rng(0)
        tokens = {"train": array_tokens(draws.integers(0, 7, 200)), "val": array_tokens(draws.integers(0, 7, 40))}
        return Trainer(
            run,
            _model(kind, **(keys or {})),
            tokens,
            Tokenizer.of_characters(LETTERS),
            TrainSection(**(QUICK | train)),
            PLACEMENT,
            num_val_bytes=40,
        )

    return make


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 6])
def test_accumulated_gradients_are_those_of_the_whole_batch(kind, micro_batch_size):
    windows = np.random.default_rng(0).integers(0, 8, (6, 7))
    whole, parts = _model(kind), _model(kind)
    batch = torch.from_numpy(windows)
    expected = next_token_loss(whole(batch[:, :-1]), batch[:, 1:])
    expected.backward()
    train = TrainSection(batch_size=6, micro_batch_size=micro_batch_size)
    assert backward(parts, Batch.of_windows(windows), train, PLACEMENT).item() == pytest.approx(
        expected.item(), rel=1e-6
    )
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_each_step_is_reported_and_logged(trainer):
    one = trainer(eval_interval=3, save_interval=4)
    reports = list(one.steps())
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.step for report in reports if report.validation] == [3, 6]
    assert [report.step for report in reports if report.saved] == [3, 4, 6]
    lines = one.run.metrics()
    assert [line["train_loss"] for line in lines] == [report.loss for report in reports]
    assert [line["tokens"] for line in lines] == [12 * step for step in range(1, 7)]
    assert all(line.keys() >= {"step", "learning_rate", "grad_norm", "step_seconds"} for line in lines)
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6]


def test_a_changing_delay_is_not_compiled_for_a_cpu(trainer):
    with pytest.raises(UsageError, match="cannot be compiled for a CPU") as caught:
        trainer(keys=V2, compile=True)
    assert caught.value.where == "train.compile"


def test_to_begin_a_step_before_the_last_is_done_changes_nothing(trainer):
    """As on a GPU, which computes a step while the host begins the next."""
    keys = {"dropout": 0.1}
    ways = []
    for ahead in (False, True):
        one = trainer(keys=keys, max_steps=9, eval_interval=4, save_interval=3)
        shutil.rmtree(one.run.path)
        one.run.checkpoints.mkdir(parents=True)
        one._ahead = ahead
        reports = [
            dataclasses.replace(report, seconds=0.0, validation=report.validation and report.validation.loss)
            for report in one.steps()
        ]
        files = {
            path.relative_to(one.run.path): path.read_bytes()
            for path in sorted(one.run.checkpoints.rglob("*"))
            if path.is_file()
        }
        ways.append((reports, [line | {"step_seconds": 0} for line in one.run.metrics()], files))
    assert [report.step for report in ways[1][0]] == list(range(1, 10))
    assert ways[0] == ways[1]


def test_a_step_that_fails_while_the_next_has_begun_is_named_and_nothing_after_it_is_kept(trainer):
    one = trainer(eval_interval=100, save_interval=2)
    one._ahead = True
    factors = iter([1.0, 1.0, math.nan, 1.0])
    one.loss = lambda model, tokens, targets: model(tokens).square().sum() * next(factors)
    with pytest.raises(NonFiniteError, match="step 3: loss nan"):
        list(one.steps())
    assert one.state.step == 2 and one.run.pointer("latest").name == "step-00000002"


def test_steps_between_log_intervals_are_left_out_unless_something_happened(trainer):
    one = trainer(log_interval=4, eval_interval=3, save_interval=5)
    list(one.steps())
    assert [line["step"] for line in one.run.metrics()] == [3, 4, 5, 6]


def test_the_newest_checkpoints_and_the_best_are_kept(trainer, monkeypatch):
    one = trainer(max_steps=10, keep_checkpoints=2, eval_tokens=12)
    losses = iter([2.0, 1.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr("mosaic_cli.evaluation.language.LanguageResult.loss_of_first", lambda *_: next(losses))
    best = [report.step for report in one.steps() if report.is_best]
    assert best == [2, 4]
    assert one.run.pointer("best").name == "step-00000004" and one.run.pointer("latest").name == "step-00000010"
    assert sorted(path.name for path in one.run.checkpoints.glob("*step-*")) == [
        "step-00000004",
        "step-00000008",
        "step-00000010",
    ]
    assert (one.state.best_step, one.state.best_val_loss) == (4, 1.0)


def test_the_rest_of_a_killed_save_is_cleared_away(trainer):
    one = trainer()
    left = one.run.checkpoints / ".step-00000001.tmp"
    left.mkdir()
    list(one.steps())
    assert not left.exists()


def test_a_kill_between_the_pointers_does_not_lose_the_best(trainer):
    one = trainer()
    list(one.steps())
    best = one.run.pointer("best")
    one.run.point("best", one.run.checkpoints / "step-00000002")
    trainer().resume()
    assert one.run.pointer("best") == best == one.run.checkpoints / f"step-{one.state.best_step:08d}"


def test_stopping_finishes_the_step_and_saves(trainer):
    one = trainer(save_interval=100, eval_interval=100)
    assert [(report.step, report.saved) for report in one.steps(lambda: one.state.step == 3)] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    again = trainer(save_interval=100, eval_interval=100)
    assert again.resume() == 3 and [report.step for report in again.steps()] == [4, 5, 6]


def test_taking_up_forgets_the_metrics_of_steps_to_be_done_again(trainer):
    one = trainer(save_interval=4, eval_interval=100)
    steps = one.steps()
    for _ in range(5):
        next(steps)
    one.run.metrics_path.open("a").write('{"step": 6, "tr')  # torn by a kill
    again = trainer(save_interval=4, eval_interval=100)
    assert again.resume() == 4 and [line["step"] for line in again.run.metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize("broken", ["nan", "inf"])
def test_a_loss_that_is_not_finite_names_the_step_and_changes_nothing(trainer, broken):
    one = trainer()
    steps = one.steps()
    next(steps)
    before = [parameter.clone() for parameter in one.model.parameters()]
    one.loss = lambda model, tokens, targets: model(tokens).sum() * 0 + float(broken)
    with pytest.raises(NonFiniteError, match=f"step 2: loss {broken}") as caught:
        next(steps)
    assert "learning_rate" in caught.value.hint
    assert all(torch.equal(a, b) for a, b in zip(before, one.model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_stops_the_run(trainer):
    one = trainer()
    one.loss = lambda model, tokens, targets: (model(tokens).sum() * 0).sqrt()
    with pytest.raises(NonFiniteError, match="step 1: loss 0, gradient norm nan"):
        list(one.steps())


def test_a_gradient_of_zero_stops_the_run(trainer):
    one = trainer()
    one.loss = lambda model, tokens, targets: model(tokens).sum() * 0
    with pytest.raises(MosaicError, match="step 1: all gradients are zero"):
        list(one.steps())
    assert one.run.pointer("latest") is None


def test_a_model_that_validates_to_nothing_finite_is_not_saved(trainer, monkeypatch):
    one = trainer()
    steps = one.steps()
    assert [next(steps).saved for _ in range(3)] == [False, True, False]
    monkeypatch.setattr("mosaic_cli.evaluation.language.LanguageResult.loss", property(lambda self: math.nan))
    with pytest.raises(NonFiniteError, match="step 4: validation loss nan"):
        next(steps)
    assert one.run.pointer("latest").name == one.run.pointer("best").name == "step-00000002"


def test_a_bounded_validation_chooses_the_best_on_what_all_have_in_common(trainer):
    one = trainer(eval_tokens=12)
    tokens = [report.validation.tokens for report in one.steps() if report.validation]
    assert tokens == [12, 12, 39], "the last one reads the whole split"


@pytest.mark.parametrize(("kind", "length"), [("mosaic", 20), ("transformer", 4)])
def test_samples_are_written_within_the_context(trainer, kind, length):
    one = trainer(kind, sample_prompt="abc", sample_tokens=20)
    samples = [report.sample for report in one.steps() if report.validation]
    assert len(samples) == 3 and all(sample.startswith("abc") and len(sample) <= 3 + length for sample in samples)
    assert [line["sample"] for line in one.run.metrics() if "sample" in line] == samples


def test_an_empty_sample_prompt_begins_a_document(trainer):
    one = trainer("transformer", sample_prompt="", sample_tokens=20)
    assert all(len(report.sample) <= 6 for report in one.steps() if report.validation)


@pytest.mark.parametrize(
    ("kind", "prompt", "message"),
    [
        ("mosaic", "a~", "the character '~'"),
        ("transformer", "abcabca", "has 7 tokens, more than the transformer's context of 6"),
    ],
)
def test_a_sample_prompt_that_cannot_be_continued_is_refused_at_once(trainer, kind, prompt, message):
    with pytest.raises(UsageError, match=message) as caught:
        trainer(kind, sample_prompt=prompt)
    assert caught.value.where == "train.sample_prompt"


def test_v2_is_taken_up_bitwise_with_the_delays_it_would_have_drawn(trainer):
    def train_to(step):
        one = trainer(keys=V2)
        one.resume()
        delays = {
            r.step: one.model.blocks[0].contextual.long.training_delay
            for r in one.steps(lambda: one.state.step == step)
        }
        return one, delays

    whole, delays = train_to(6)
    assert len(delays) == 6 and len(set(delays.values())) > 1
    shutil.rmtree(whole.run.checkpoints)
    whole.run.checkpoints.mkdir()
    _, first = train_to(3)
    cut, rest = train_to(6)
    assert first | rest == delays and list(rest) == [4, 5, 6]
    for (name, a), b in zip(whole.model.named_parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b), name
