"""What training will cost: time of a step, and what a batch is like before the data is there."""

import time

import numpy as np

from mosaic_cli.core.model import parameters_of
from mosaic_cli.data.batches import Batch
from mosaic_cli.data.rows import RowBatches, Rows, open_data
from mosaic_cli.data.shards import Manifest
from mosaic_cli.device import Placement, memory_bytes
from mosaic_cli.recipe import Recipe
from mosaic_cli.training.loop import backward
from mosaic_cli.training.optimizer import make_optimizer, update
from mosaic_cli.training.setup import new_model

TIMED_STEPS = 3
STATE_BYTES = 16  # of a parameter: weight, gradient and AdamW's two averages in float32


def expected_vocab(recipe: Recipe) -> tuple[int, str]:
    """Size of the vocabulary, and in words where that number comes from."""
    if recipe.data_dir.exists():
        return Manifest.load(recipe.data_dir).vocab_size, "the prepared data's"
    known = {"byte": 257, "gpt2": 50257, "bpe": recipe.data.vocab_size}
    if recipe.data.tokenizer in known:
        return known[recipe.data.tokenizer], "the recipe's"
    return recipe.data.vocab_size, f"a guess: {recipe.data_dir} is not prepared yet"


def sample_batch(recipe: Recipe, vocab_size: int) -> Batch:
    """Random windows; where rows are prepared, which are of any length, the first batch of them."""
    context_length, batch_size = recipe.model.context_length, recipe.train.batch_size
    if recipe.data_dir.exists():
        data = open_data(recipe.data_dir, "train", verify=False)
        if isinstance(data, Rows):
            return next(RowBatches(data, context_length, batch_size, recipe.train.seed))
    return Batch.of_windows(np.random.default_rng(0).integers(0, vocab_size, (batch_size, context_length + 1)))


def step_seconds(recipe: Recipe, vocab_size: int, batch: Batch, placement: Placement) -> float | None:
    """Median wall time of a step of the recipe's model, optimizer and clipping included; None where weights, gradients
    and AdamW's averages are more than the device's memory."""
    if STATE_BYTES * parameters_of(recipe.model.with_vocab(vocab_size)) >= memory_bytes(placement.device):
        return None
    model, train = new_model(recipe, vocab_size, placement), recipe.train
    optimizer = make_optimizer(model, train)
    seconds = []
    for number in range(TIMED_STEPS + 1):  # the first warms up
        started = time.perf_counter()
        model.begin_step(train.seed, number)
        backward(model, batch, train, placement)
        update(model, optimizer, train, train.min_lr).wait()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[TIMED_STEPS // 2]
