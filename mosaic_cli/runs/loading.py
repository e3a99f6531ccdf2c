"""From a `--ckpt` argument to a model that can be used."""

from dataclasses import dataclass
from pathlib import Path

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.data.batches import Tokens
from mosaic_cli.data.rows import Rows, open_data
from mosaic_cli.data.shards import Manifest, open_split
from mosaic_cli.data.text import tokens_of_file
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import Placement, keep_freed_memory
from mosaic_cli.errors import CheckpointError, UsageError
from mosaic_cli.runs.checkpoint import load_model
from mosaic_cli.runs.directory import Run, find_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint's model with the tokenizer and run it belongs to."""

    spec: str
    """What the user wrote after `--ckpt`."""
    run: Run
    checkpoint: Path
    model: LanguageModel
    tokenizer: Tokenizer


def load_trained(spec: str, placement: Placement) -> TrainedModel:
    """Load a model for use, on the placement's device and in evaluation mode.

    Raises:
        UsageError: no such run or checkpoint.
        CheckpointError: it is damaged, or its tokenizer is not the one it was trained with.
    """
    run, checkpoint = find_checkpoint(spec)
    if run is None:
        raise CheckpointError(
            "the checkpoint lies outside of a run, so its tokenizer is not known",
            where=checkpoint,
            hint="Keep it at RUN/checkpoints/step-XXXXXXXX beside RUN/tokenizer.json.",
        )
    if placement.device.type == "cpu":
        keep_freed_memory()
    model, config = load_model(checkpoint, placement.device)
    tokenizer = Tokenizer.load(run.tokenizer_path)
    if tokenizer.fingerprint != config["tokenizer"]:
        raise CheckpointError(
            "the run's tokenizer.json is not the one its checkpoint was trained with",
            where=run.tokenizer_path,
            hint="Put the run's own tokenizer.json back.",
        )
    return TrainedModel(spec, run, checkpoint, model, tokenizer)


def open_text(
    trained: TrainedModel, on: str, text_field: str = "text", rows_too: bool = False
) -> tuple[Tokens | Rows, int | None]:
    """The text to look at a model with, in its own tokens: what the user wrote after `--on`.

    Args:
        on: `val` for the validation split of the run's data; or a text, jsonl or parquet file.
        text_field: field of a record that holds the text.
        rows_too: whether rows can be used, which are no text.

    Returns:
        The tokens, and the bytes of text they stand for; of rows, None.

    Raises:
        UsageError: no such file or data; or the data is not the run's any more, or consists of rows.
        DataError: it cannot be read.
    """
    if on != "val":
        return tokens_of_file(on, trained.tokenizer, text_field)
    folder = Path(trained.run.info()["data_dir"])
    manifest = Manifest.load(folder)
    if manifest.tokenizer.fingerprint != trained.tokenizer.fingerprint:
        raise UsageError(
            f"{folder} was prepared with another tokenizer than {trained.spec} was trained with",
            where=folder,
            hint="Prepare the data as the run's recipe says, or evaluate on a file: --on FILE",
        )
    if manifest.fingerprint != trained.run.info()["data_fingerprint"]:
        raise UsageError(
            f"the prepared data is not what {trained.spec} was trained on",
            where=folder,
            hint="Prepare it again as the run's recipe says, or name a file: --on FILE",
        )
    if manifest.rows is None:
        return open_split(folder, "val"), manifest.val.bytes
    if not rows_too:
        raise UsageError(
            f"{trained.spec} was trained on problems, each read by itself: there is no text to look at",
            where="--on val",
            hint="Name a text: --on FILE",
        )
    return open_data(folder, "val"), None
