"""`mosaic train --dry-run`: what a run would be and cost."""

import time
from typing import TYPE_CHECKING

from mosaic_cli.commands import display

if TYPE_CHECKING:
    from mosaic_cli.core.model import LanguageModel
    from mosaic_cli.data.batches import Batch
    from mosaic_cli.device import Placement
    from mosaic_cli.recipe import LoadedRecipe, Recipe, TrainSection

TIMED_STEPS = 3


def show_dry_run(loaded: "LoadedRecipe", json: bool) -> None:
    """Print the resolved recipe with each value's origin, and the run's size and expected time."""
    cost = _cost(loaded)
    rows = [(key, value, loaded.origin(key)) for key, value in _flat(loaded)]
    if json:
        display.print_json("mosaic.train-dry-run/1", {"recipe": [list(map(str, row)) for row in rows], **cost})
        return
    display.print_table("Recipe", ["key", "value", "from"], rows)
    display.print_table(
        "Cost",
        ["what", "amount"],
        [
            ("parameters", f"{cost['parameters']:,}"),
            ("floating-point operations a step", f"{cost['flops_per_step']:.3g}"),
            ("tokens in all", f"{cost['tokens']:,}"),
            ("memory for weights, gradients and AdamW", display.format_bytes(cost["state_bytes"])),
            ("disk for checkpoints", display.format_bytes(cost["disk_bytes"])),
            ("time, validations not counted", display.format_seconds(cost["seconds"])),
            ("on", cost["placement"]),
        ],
        caption=f"Time from {TIMED_STEPS} steps of one batch; the vocabulary size is {cost['vocab_source']}.",
    )


def _cost(loaded: "LoadedRecipe") -> dict[str, object]:
    from mosaic_cli.core.model import count_parameters, flops_per_token
    from mosaic_cli.device import choose_placement
    from mosaic_cli.training.setup import new_model

    recipe = loaded.recipe
    placement = choose_placement(recipe.train.device, recipe.train.dtype)
    vocab_size, vocab_source = _vocab_size(recipe)
    model = new_model(recipe, vocab_size, placement)
    parameters = count_parameters(model)
    batch = _batch(recipe, vocab_size)
    checkpoint_bytes = 3 * 4 * parameters  # weights and AdamW's two averages in float32
    return {
        "parameters": parameters,
        "flops_per_step": 3 * batch.asked * flops_per_token(model.config),
        "tokens": batch.asked * recipe.train.max_steps,
        "state_bytes": checkpoint_bytes + 4 * parameters,
        "disk_bytes": (recipe.train.keep_checkpoints + 1) * checkpoint_bytes,
        "seconds": _step_seconds(model, batch, recipe.train, placement) * recipe.train.max_steps,
        "placement": placement.reason,
        "vocab_source": vocab_source,
    }


def _vocab_size(recipe) -> tuple[int, str]:
    from mosaic_cli.data.shards import Manifest

    if recipe.data_dir.exists():
        return Manifest.load(recipe.data_dir).vocab_size, "the prepared data's"
    known = {"byte": 257, "gpt2": 50257, "bpe": recipe.data.vocab_size}
    if recipe.data.tokenizer in known:
        return known[recipe.data.tokenizer], "the recipe's"
    return recipe.data.vocab_size, f"a guess: {recipe.data_dir} is not prepared yet"


def _batch(recipe: "Recipe", vocab_size: int) -> "Batch":
    """Random windows; where rows are prepared, which are of any length, the first batch of them."""
    import numpy as np

    from mosaic_cli.data.batches import Batch
    from mosaic_cli.data.rows import RowBatches, Rows, open_data

    context_length, batch_size = recipe.model.context_length, recipe.train.batch_size
    if recipe.data_dir.exists():
        data = open_data(recipe.data_dir, "train", verify=False)
        if isinstance(data, Rows):
            return next(RowBatches(data, context_length, batch_size, recipe.train.seed))
    return Batch.of_windows(np.random.default_rng(0).integers(0, vocab_size, (batch_size, context_length + 1)))


def _step_seconds(model: "LanguageModel", batch: "Batch", train: "TrainSection", placement: "Placement") -> float:
    """Median wall time of a step, optimizer and clipping included."""
    from mosaic_cli.training.loop import backward
    from mosaic_cli.training.optimizer import make_optimizer, update

    optimizer = make_optimizer(model, train)
    seconds = []
    for _ in range(TIMED_STEPS + 1):  # the first warms up
        started = time.perf_counter()
        backward(model, batch, train, placement)
        update(model, optimizer, train, train.min_lr)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[TIMED_STEPS // 2]


def _flat(loaded: "LoadedRecipe") -> list[tuple[str, object]]:
    values = loaded.recipe.model_dump(mode="json")
    sections = [(s, keys) for s, keys in values.items() if isinstance(keys, dict)]
    return [(f"{section}.{key}", value) for section, keys in sections for key, value in keys.items()]
