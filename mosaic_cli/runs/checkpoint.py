"""Checkpoints: written beside and renamed, hashed, without pickle.

A checkpoint folder `step-00001000` holds config.json, model.safetensors, optimizer.safetensors and, written last,
state.json with the hashes of the others and of its own values. See docs/formats.md.
"""

import hashlib
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import LanguageModel, build_model
from mosaic_cli.errors import CheckpointError, UsageError
from mosaic_cli.files import dump_json, load_json, sha256, sync, write_atomically

FORMAT_VERSION = 1
HASHED = ("config.json", "model.safetensors", "optimizer.safetensors")


@dataclass
class TrainingState:
    """What a bitwise resume needs besides weights, optimizer averages and random generators."""

    step: int = 0
    tokens: int = 0
    data: dict[str, int] = field(default_factory=dict)
    best_step: int | None = None
    best_val_loss: float | None = None


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint taken after `step` optimizer steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, fingerprint: str
) -> Path:
    """Write `folder/step-XXXXXXXX`, complete or not at all.

    Args:
        folder: the run's `checkpoints`.
        fingerprint: of the tokenizer the model was trained with.

    Raises:
        CheckpointError: it could not be written (a full disk, say); earlier checkpoints are untouched.
    """
    final = folder / checkpoint_name(state.step)
    beside = folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        config = {"format_version": FORMAT_VERSION, "tokenizer": fingerprint, "model": asdict(model.config)}
        (beside / "config.json").write_text(dump_json(config), encoding="utf-8")
        save_file(dict(model.state_dict()), beside / "model.safetensors")
        save_file(_optimizer_tensors(model, optimizer), beside / "optimizer.safetensors")
        for name in HASHED:
            sync(beside / name)
        hashes = {name: sha256(beside / name) for name in HASHED}
        values = {"format_version": FORMAT_VERSION, **asdict(state)}
        hashes["state.json"] = _hash_values(values)
        write_atomically(beside / "state.json", dump_json({**values, "sha256": hashes}))
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {state.step} could not be saved: {error}",
            where=final,
            hint="Earlier checkpoints are intact. Free some disk space, then train with --resume.",
        ) from error
    return final


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The content of state.json, once every file has been found whole.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    state = load_json(path / "state.json", FORMAT_VERSION, CheckpointError, hint=_ANOTHER)
    hashes, own = state.pop("sha256", None), _hash_values(state)
    if not isinstance(hashes, dict) or hashes.get("state.json") != own:
        raise _damaged("state.json", path)
    for name in HASHED:
        if not (path / name).is_file():
            raise CheckpointError(f"{name} is missing", where=path, hint=_ANOTHER)
        if sha256(path / name) != hashes.get(name):
            raise _damaged(name, path)
    return state


_ANOTHER = (
    "Use another checkpoint of the run: --ckpt RUN@STEP; or write its folder's name into checkpoints/latest "
    "and train with --resume."
)


def _damaged(name: str, path: Path) -> CheckpointError:
    return CheckpointError(f"{name} is damaged: its content is not what was saved", where=path, hint=_ANOTHER)


def _hash_values(values: dict[str, Any]) -> str:
    """Hash of state.json's values, for state.json to carry itself."""
    return hashlib.sha256(dump_json(values).encode()).hexdigest()


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[LanguageModel, dict[str, Any]]:
    """The model of a checkpoint, in evaluation mode, and the checkpoint's config.json.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit this version.
    """
    verify_checkpoint(path)
    config = load_json(path / "config.json", FORMAT_VERSION, CheckpointError)
    try:
        model_config = ModelConfig(**config["model"])
        model = build_model(model_config)
        model.load_state_dict(load_file(path / "model.safetensors"))
    except (KeyError, TypeError, RuntimeError, SafetensorError, UsageError) as error:
        raise CheckpointError(f"the checkpoint does not fit: {error}", where=path) from error
    return model.to(device).eval(), config


def load_training_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Put weights, optimizer averages and torch's random generators back, and return the rest.

    Raises:
        CheckpointError: the checkpoint is damaged or is of another model.
    """
    state = verify_checkpoint(path)
    try:
        model.load_state_dict(load_file(path / "model.safetensors"))
        _restore_optimizer(model, optimizer, load_file(path / "optimizer.safetensors"))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint does not fit the recipe's model: {error}", where=path) from error
    return TrainingState(**{name: state[name] for name in TrainingState.__dataclass_fields__})


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"generator.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["generator.cuda"] = torch.cuda.get_rng_state()
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    return tensors


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        # AdamW keeps its step count in float32 on the parameter's device when fused
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
        }
    torch.set_rng_state(tensors["generator.cpu"])
    if torch.cuda.is_available() and "generator.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator.cuda"])
