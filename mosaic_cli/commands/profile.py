"""`mosaic train --profile N`: where a step's time goes."""

from typing import TYPE_CHECKING

from mosaic_cli.commands import display
from mosaic_cli.errors import UsageError

if TYPE_CHECKING:
    from mosaic_cli.device import Placement
    from mosaic_cli.recipe import Recipe


def check_profile(recipe: "Recipe") -> None:
    """Raises UsageError where a step cannot be told apart by parts."""
    if recipe.train.compile:
        raise UsageError(
            "a compiled step has no parts: the compiler merges them",
            where="--profile",
            hint="Profile it as it is written: leave out --compile, or --set train.compile=false.",
        )


def show_profile(recipe: "Recipe", placement: "Placement", steps: int, json: bool) -> None:
    """Train for some steps on the recipe's data, print where the time went, and keep nothing."""
    from mosaic_cli.training.profile import profile_training
    from mosaic_cli.training.setup import new_model, training_batches

    batches, vocab_size = training_batches(recipe)
    profile = profile_training(new_model(recipe, vocab_size, placement), batches, recipe.train, placement, steps)
    if json:
        parts = [
            {
                "part": part.part,
                "forward_seconds": part.forward,
                "backward_seconds": part.backward,
                "share": part.total / profile.step_seconds,
            }
            for part in profile.parts
        ]
        seconds = {"step_seconds": profile.step_seconds, "plain_step_seconds": profile.plain_seconds}
        display.print_json(
            "mosaic.train-profile/1", {"steps": steps, "on": placement.reason, **seconds, "parts": parts}
        )
        return
    times = [(part.part, part.forward, part.backward, part.total) for part in profile.parts]
    total = ("all", *(sum(column) for column in list(zip(*times, strict=True))[1:]))
    display.print_table(
        f"A step's time: {recipe.model.kind}, {placement.reason}",
        ["part", "forward ms", "backward ms", "together", "share"],
        [
            (part, *(f"{1e3 * seconds:.2f}" for seconds in row), f"{row[-1] / profile.step_seconds:.1%}")
            for part, *row in [*times, total]
        ],
        caption=f"Mean of {steps} steps. A step takes {1e3 * profile.step_seconds:.1f} ms while it is profiled, "
        f"{1e3 * profile.plain_seconds:.1f} ms otherwise (median). A part holds what the parts named after it do not; "
        "'other' is what no part holds.",
    )
