"""Training: a loop that yields what happened, one step at a time, and can be stopped and taken up exactly."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import LanguageModel, training_loss
from mosaic_cli.data.batches import Batch, Tokens
from mosaic_cli.data.rows import Rows, batches_of
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement
from mosaic_cli.errors import DataError, MosaicError, UsageError
from mosaic_cli.evaluation.language import LanguageResult, evaluate_language
from mosaic_cli.generation import Writer
from mosaic_cli.recipe import TrainSection
from mosaic_cli.runs.checkpoint import TrainingState, checkpoint_name, load_training_state, save_checkpoint
from mosaic_cli.runs.directory import Run
from mosaic_cli.training.optimizer import Figures, check_finite, make_optimizer, update
from mosaic_cli.training.schedule import learning_rate


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did."""

    step: int
    """Steps done, this one among them."""
    loss: float
    """Training loss of this step's batch, nats per token."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens: int
    """Tokens trained to predict since the run began."""
    seconds: float
    """Wall time of this step, without validation and saving; if it began earlier, from when the one before was done."""
    validation: LanguageResult | None = None
    """Present after a validation."""
    is_best: bool = False
    """Whether that validation is the best so far."""
    sample: str | None = None
    """What the model writes after the recipe's prompt; present after a validation."""
    saved: bool = False
    """Whether a checkpoint was written after this step."""


@dataclass(frozen=True)
class _Begun:
    """A step that the host has begun, and that the device may still be at."""

    step: int
    tokens: int
    learning_rate: float
    figures: Figures
    started: float


class Trainer:
    """One run's model, optimizer and stream of batches.

    Args:
        run: where checkpoints and metrics go.
        model: on the placement's device, with its starting values.
        tokens: the train and val splits, both a text or both rows.
        tokenizer: that made the tokens.
        num_val_bytes: bytes of the val split's text, for bits per byte.

    Raises:
        UsageError: a sample prompt that the model cannot continue, or a model that cannot be compiled.
    """

    def __init__(
        self,
        run: Run,
        model: LanguageModel,
        tokens: dict[str, Tokens | Rows],
        tokenizer: Tokenizer,
        train: TrainSection,
        placement: Placement,
        *,
        num_val_bytes: int | None,
    ):
        self.run, self.model, self.train, self.placement = run, model, train, placement
        self.tokens, self.tokenizer, self.num_val_bytes = tokens, tokenizer, num_val_bytes
        self.optimizer = make_optimizer(model, train)
        self.batches = batches_of(tokens["train"], model.config.context_length, train.batch_size, train.seed)
        if train.compile:
            check_compilable(model.config, placement)
            # a long-term memory's delay changes from step to step: compiled once for all, not for each
            torch._dynamo.config.allow_unspec_int_on_nn_module = True
        self.loss = torch.compile(training_loss) if train.compile else training_loss
        self.state = TrainingState()
        self._ahead = placement.device.type == "cuda"  # begin a step before the last one is done: a GPU never waits
        self._done = 0.0  # when the last step was
        self.sample_tokens = self._sample_room() if train.sample_prompt is not None else 0
        torch.manual_seed(train.seed + 1)  # dropout; the weights were drawn from the seed itself

    def resume(self) -> int:
        """Go on from the run's latest checkpoint, or from the beginning when it has none; returns the step."""
        latest = self.run.pointer("latest")
        if latest is not None:
            self.state = load_training_state(latest, self.model, self.optimizer)
            self.batches.load_state_dict(self.state.data)
        if self.state.best_step is not None:  # a kill after `latest` was written left `best` behind
            best = self.run.checkpoints / checkpoint_name(self.state.best_step)
            if best.is_dir():
                self.run.point("best", best)
            else:  # what was best at an earlier checkpoint, from which the user goes on, was deleted since
                self.run.point_nowhere("best")
        self.run.forget_after(self.state.step)
        self.run.prune(self.train.keep_checkpoints)
        return self.state.step

    def steps(self, should_stop: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
        """Train to `max_steps`, yielding after each step; on `should_stop` the step is finished and saved.

        Validation happens every `eval_interval` steps and at the end, checkpoints every `save_interval`, at each new
        best, and at the end. The end's validation reads the whole split.

        Raises:
            NonFiniteError: a loss or gradient that is not finite; nothing of that step is saved.
            MosaicError: a gradient that is zero.
            CheckpointError: a checkpoint could not be saved.
        """
        pending = None
        while self.state.step < self.train.max_steps:
            begun = self._begin()
            if pending is not None:
                yield self._finish(pending)
            stopping = should_stop()
            # the last step before one that ends in a validation or a save is waited for too: both have their own time
            alone = stopping or self._ends(begun.step) or self._ends(begun.step + 1)
            pending = begun if self._ahead and not alone else None
            if pending is None:
                yield self._finish(begun, stopping)
            if stopping:
                return

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint of the present state and point `latest` (and `best`) to it."""
        self.state.data = self.batches.state_dict()
        path = save_checkpoint(self.run.checkpoints, self.model, self.optimizer, self.state, self.tokenizer.fingerprint)
        self.run.point("latest", path)
        if is_best:
            self.run.point("best", path)
        self.run.prune(self.train.keep_checkpoints)

    def _begin(self) -> _Begun:
        started = time.perf_counter()
        if not self.model.training:  # which takes a GPU's host a millisecond to say to all modules
            self.model.train()
        rate = learning_rate(self.state.step, self.train)
        self.model.begin_step(self.train.seed, self.state.step)
        loss = backward(self.model, batch := next(self.batches), self.train, self.placement, self.loss)
        figures = update(self.model, self.optimizer, self.train, rate, loss)
        self.state.step += 1
        self.state.tokens += batch.asked
        return _Begun(self.state.step, self.state.tokens, rate, figures, started)

    def _finish(self, begun: _Begun, stopping: bool = False) -> StepReport:
        """Wait for a step, validate, log and save where it is time to. Then no other step has begun."""
        try:
            loss, norm = begun.figures.wait()
        except MosaicError as error:
            self.state.step = begun.step - 1  # the next may have begun
            raise type(error)(f"step {begun.step}: {error.message}", where=error.where, hint=error.hint) from error
        done = time.perf_counter()
        seconds, self._done = done - max(begun.started, self._done), done
        validation, is_best = self._validate(begun.step)
        saved = is_best or stopping or self._due(self.train.save_interval, begun.step)
        sample = self._sample() if validation else None
        report = StepReport(
            begun.step, loss, begun.learning_rate, norm, begun.tokens, seconds, validation, is_best, sample, saved
        )
        self._log(report)
        if saved:
            self.save(is_best)
        return report

    def _validate(self, step: int) -> tuple[LanguageResult | None, bool]:
        at_end = step == self.train.max_steps
        if not (at_end or self._due(self.train.eval_interval, step)):
            return None, False
        *_, result = evaluate_language(
            self.model,
            self.tokens["val"],
            self.placement,
            num_bytes=self.num_val_bytes,
            max_tokens=None if at_end else self.train.eval_tokens,
        )
        check_finite(f"step {step}: validation loss {{:g}}", result.loss)
        # the whole split is read only at the end, so the best checkpoint is chosen on the part that all have in common
        part = self.train.eval_tokens
        loss = result.loss if part is None else result.loss_of_first(part)
        is_best = self.state.best_val_loss is None or loss < self.state.best_val_loss
        if is_best:
            self.state.best_step, self.state.best_val_loss = step, loss
        return result, is_best

    def _sample(self) -> str | None:
        prompt = self.train.sample_prompt
        if prompt is None:
            return None
        writer = Writer(
            self.model, self.tokenizer, prompt, self.placement, max_new_tokens=self.sample_tokens, seed=self.train.seed
        )
        return prompt + "".join(piece for (piece,) in writer)

    def _sample_room(self) -> int:
        """Length of the samples in tokens: a transformer's text ends where its positions do."""
        where = "train.sample_prompt"
        try:
            prompt_tokens = len(self.tokenizer.encode(self.train.sample_prompt)) or 1  # the end-of-text token begins
        except DataError as error:
            raise UsageError(error.message, where=where) from error
        if self.model.config.kind != "transformer":
            return self.train.sample_tokens
        room = self.model.config.context_length - prompt_tokens + 1
        if room < 1:
            raise UsageError(
                f"the sample prompt has {prompt_tokens} tokens, more than the transformer's context of "
                f"{self.model.config.context_length}",
                where=where,
                hint="Shorten it.",
            )
        return min(self.train.sample_tokens, room)

    def _ends(self, step: int) -> bool:
        return self._due(self.train.eval_interval, step) or self._due(self.train.save_interval, step)

    def _due(self, interval: int, step: int) -> bool:
        return step % interval == 0 or step == self.train.max_steps

    def _log(self, report: StepReport) -> None:
        if report.validation is None and not report.saved and not self._due(self.train.log_interval, report.step):
            return
        line = {
            "step": report.step,
            "tokens": report.tokens,
            "train_loss": report.loss,
            "learning_rate": report.learning_rate,
            "grad_norm": report.grad_norm,
            "step_seconds": report.seconds,
        }
        if report.validation is not None:
            line |= {"val_loss": report.validation.loss, "val_tokens": report.validation.tokens}
        if report.sample is not None:
            line["sample"] = report.sample
        self.run.log(**line)


def check_compilable(config: ModelConfig, placement: Placement) -> None:
    """Raises UsageError for what torch's compiler is known to fail at, before anything is done.

    That is a delay drawn anew at each step, on a CPU: PyTorch 2.11.0 and 2.13.0 stop at the second one (docs/log.md).
    """
    if config.max_long_delay is not None and placement.device.type == "cpu":
        raise UsageError(
            "a long-term memory whose delay changes from step to step cannot be compiled for a CPU",
            where="train.compile",
            hint="Leave it out: on a CPU a mosaic trains faster without.",
        )


def backward(
    model: LanguageModel,
    batch: Batch,
    train: TrainSection,
    placement: Placement,
    loss: Callable[[LanguageModel, Tensor, Tensor], Tensor] = training_loss,
) -> Tensor:
    """Add up the gradients of a batch's mean loss over its micro-batches; returns that loss (), in nats per token.

    `loss` is `training_loss` or what it was compiled to.
    """
    total = torch.zeros((), device=placement.device)
    for micro in batch.parts(train.micro_batch_size or train.batch_size):
        inputs, targets = (placement.move(array) for array in micro)
        with placement.autocast():
            part = loss(model, inputs, targets) / batch.asked
        part.backward()
        total += part.detach()
    return total
