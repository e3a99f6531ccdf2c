"""From a recipe and prepared data to a trainer that is ready to step."""

import time
from pathlib import Path
from typing import NamedTuple

import torch

from mosaic_cli.core.model import LanguageModel, build_model, count_parameters
from mosaic_cli.data.batches import WindowBatches
from mosaic_cli.data.rows import RowBatches, Rows, batches_of, open_data
from mosaic_cli.data.shards import SPLITS, Manifest, TokenShards
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement, choose_placement, keep_freed_memory, machine_words
from mosaic_cli.errors import UsageError
from mosaic_cli.recipe import LoadedRecipe, Recipe, load_recipe
from mosaic_cli.runs.directory import Run, create_run, locate_run, refuse_existing
from mosaic_cli.training.loop import Trainer, check_compilable

MAY_CHANGE_ON_RESUME = {  # the others would make the resumed run another run
    "train.max_steps",
    "train.eval_interval",
    "train.eval_tokens",
    "train.save_interval",
    "train.keep_checkpoints",
    "train.log_interval",
    "train.sample_prompt",
    "train.sample_tokens",
    "train.device",
    "train.compile",
    "data.dir",
    "data.files",
    "data.if_unreachable",
}
LEAVES_RESULTS = MAY_CHANGE_ON_RESUME - {"train.max_steps", "train.eval_interval", "train.eval_tokens"}
"""Keys that do not change what a finished run is worth: neither its weights nor which checkpoint is its best."""


def training_placement(recipe: Recipe) -> Placement:
    """Where the recipe trains.

    Raises:
        UsageError: that device is not here, or the model cannot be compiled for it as the recipe asks.
    """
    placement = choose_placement(recipe.train.device, recipe.train.dtype)
    if recipe.train.compile:
        check_compilable(recipe.model, placement)
    return placement


def new_model(recipe: Recipe, vocab_size: int, placement: Placement) -> LanguageModel:
    """The recipe's model, to be trained, with the starting values that its seed gives, on the placement's device."""
    if placement.device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(recipe.train.seed)
    return build_model(recipe.model.with_vocab(vocab_size)).to(placement.device)


def training_batches(recipe: Recipe) -> tuple[WindowBatches | RowBatches, int]:
    """The recipe's training batches from the first on, and the size of their vocabulary. The data must be prepared.

    Raises:
        DataError: the data is damaged, or too short for one window.
    """
    data, train = _open_data(recipe.data_dir), recipe.train
    batches = batches_of(data.tokens["train"], recipe.model.context_length, train.batch_size, train.seed)
    return batches, data.tokenizer.vocab_size


def begin(recipe: Recipe, run_name: str, placement: Placement) -> Trainer:
    """Create a run and its trainer at step 0. The recipe's data must be prepared.

    Raises:
        UsageError: the run exists.
        DataError: the data is damaged, or too short for one window.
    """
    refuse_existing(locate_run(run_name))
    data = _open_data(recipe.data_dir)
    manifest = data.manifest
    trainer = _trainer(locate_run(run_name), recipe, data, placement)
    trainer.run.path.mkdir(parents=True, exist_ok=True)
    # before run.json, which makes it a run: a kill leaves no half of one
    data.tokenizer.save(trainer.run.tokenizer_path)
    create_run(
        run_name,
        recipe,
        device=str(placement.device),
        dtype=str(placement.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        machine=machine_words(placement.device),
        kind=recipe.model.kind,
        parameters=count_parameters(trainer.model),
        data_dir=str(recipe.data_dir),
        data_fingerprint=manifest.fingerprint,
        data_source=manifest.source.used,
        fallback_reason=manifest.source.fallback_reason,
        seconds=0.0,
    )
    return trainer


def take_up(run: Run, asked: LoadedRecipe | None, placement: Placement) -> Trainer:
    """The trainer of an existing run, at its latest checkpoint (or at step 0 when it has none).

    Args:
        asked: the recipe the user gave along, if any; it may differ only in what leaves past steps valid.

    Raises:
        UsageError: the recipe differs from the run's in a key that may not change, or ends before the run's step.
        DataError: the data is not what the run was trained on.
        CheckpointError: the checkpoint is damaged.
    """
    begun_with = load_recipe(run.recipe_path).recipe
    recipe = begun_with if asked is None else _changed(begun_with, asked, run)
    data = _open_data(recipe.data_dir)
    if data.manifest.fingerprint != run.info()["data_fingerprint"]:
        raise UsageError(
            "the prepared data is not what the run was trained on",
            where=recipe.data_dir,
            hint="Prepare it again as the run's recipe says, or begin a new run.",
        )
    trainer = _trainer(run, recipe, data, placement)
    step = trainer.resume()
    if step > recipe.train.max_steps:
        raise UsageError(
            f"the run is at step {step} already, beyond train.max_steps {recipe.train.max_steps}",
            where=run.path,
            hint=f"Train on with --steps above {step}, or use it as it is.",
        )
    if not run.tokenizer_path.exists():
        data.tokenizer.save(run.tokenizer_path)
    if recipe != begun_with:
        run.write("recipe.yaml", recipe.to_yaml())
    run.update_info(
        status="running",
        error=None,
        diverged=False,
        data_dir=str(recipe.data_dir),
        resumed=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )
    return trainer


def data_differences(recipe: Recipe) -> list[str]:
    """How prepared data differs from what the recipe says it should be made of: a line a key, none where it agrees."""
    asked = recipe.data.model_dump(mode="json")
    made_with = Manifest.load(recipe.data_dir).settings
    return [
        f"{key} was {made_with[key]!r}, the recipe says {asked[key]!r}"
        for key in made_with
        if asked.get(key) != made_with[key]
    ]


class _Data(NamedTuple):
    manifest: Manifest
    tokenizer: Tokenizer
    tokens: dict[str, TokenShards | Rows]


def _open_data(folder: Path) -> _Data:
    tokens = {split: open_data(folder, split) for split in SPLITS}  # checks every file, the tokenizer's too
    return _Data(Manifest.load(folder), Tokenizer.load(folder / "tokenizer.json"), tokens)


def _trainer(run: Run, recipe: Recipe, data: _Data, placement: Placement) -> Trainer:
    model = new_model(recipe, data.tokenizer.vocab_size, placement)
    num_val_bytes = data.manifest.val.bytes if data.manifest.rows is None else None
    return Trainer(run, model, data.tokens, data.tokenizer, recipe.train, placement, num_val_bytes=num_val_bytes)


def _changed(own: Recipe, asked: LoadedRecipe, run: Run) -> Recipe:
    """The run's recipe with the permitted changes of `asked` taken over."""
    before, after = flat(own), flat(asked.recipe)
    for key, value in after.items():
        if before[key] != value and key != "name" and key not in MAY_CHANGE_ON_RESUME:
            raise UsageError(
                f"{key} is {value!r}, but the run was begun with {before[key]!r}",
                where=f"{asked.origin(key)}: {key}",
                hint=f"Leave it as it was, or begin another run instead of resuming {run.name}.",
            )
    return asked.recipe.model_copy(update={"name": own.name})


def flat(recipe: Recipe) -> dict[str, object]:
    """A recipe as dotted key -> value."""
    values = recipe.model_dump(mode="json")
    flat = {"name": values.pop("name")}
    return flat | {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}
