"""`mosaic train --dry-run`: what a run would be and cost."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display

if TYPE_CHECKING:
    from mosaic_cli.recipe import LoadedRecipe


def show_dry_run(loaded: "LoadedRecipe", json: bool) -> None:
    """Print the resolved recipe with each value's origin, and the run's size and expected time."""
    from mosaic_cli.training.cost import TIMED_STEPS

    cost = _cost(loaded)
    rows = [(key, value, loaded.origin(key)) for key, value in _flat(loaded)]
    how = f"Time from {TIMED_STEPS} steps of one batch{', not compiled' if loaded.recipe.train.compile else ''}. "
    timed = "" if cost["seconds"] is None else how
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
            ("time, validations not counted", _time(cost["seconds"])),
            ("on", cost["placement"]),
        ],
        caption=f"{timed}The vocabulary size is {cost['vocab_source']}.",
    )


def _cost(loaded: "LoadedRecipe") -> dict[str, object]:
    from mosaic_cli.core.model import flops_per_token, parameters_of
    from mosaic_cli.training.cost import STATE_BYTES, expected_vocab, sample_batch, step_seconds
    from mosaic_cli.training.setup import training_placement

    recipe = loaded.recipe
    placement = training_placement(recipe)
    vocab_size, vocab_source = expected_vocab(recipe)
    config = recipe.model.with_vocab(vocab_size)
    parameters = parameters_of(config)
    batch = sample_batch(recipe, vocab_size)
    checkpoint_bytes = 3 * 4 * parameters  # weights and AdamW's two averages in float32
    a_step = step_seconds(recipe, vocab_size, batch, placement)
    return {
        "parameters": parameters,
        "flops_per_step": 3 * batch.asked * flops_per_token(config),
        "tokens": batch.asked * recipe.train.max_steps,
        "state_bytes": STATE_BYTES * parameters,
        "disk_bytes": (recipe.train.keep_checkpoints + 1) * checkpoint_bytes,
        "seconds": None if a_step is None else a_step * recipe.train.max_steps,
        "placement": placement.reason,
        "vocab_source": vocab_source,
    }


def _time(seconds: float | None) -> str:
    return "not measured: more than this machine's memory" if seconds is None else display.format_seconds(seconds)


def _flat(loaded: "LoadedRecipe") -> list[tuple[str, object]]:
    values = loaded.recipe.model_dump(mode="json")
    sections = [(s, keys) for s, keys in values.items() if isinstance(keys, dict)]
    return [(f"{section}.{key}", value) for section, keys in sections for key, value in keys.items()]
