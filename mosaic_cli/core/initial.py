"""The values that the parameters of a mosaic start from."""

import math

import torch
from torch import Tensor, nn

from mosaic_cli.core.config import ModelConfig

MATRICES = ("project", "output", "gate", "decay", "gated")


@torch.no_grad()
def draw_starting_values(embedding: Tensor, blocks: nn.ModuleList, config: ModelConfig) -> None:
    """Draw from torch's generator: as the authors' main code starts (`paper`), their nanoGPT derivative (`gpt2`), or
    the authors' second paper (`truncated`)."""
    _draw(embedding, 0.02 if config.init == "gpt2" else 1 / math.sqrt(config.d_model), config)
    for name, tensor in (*blocks.named_parameters(), *blocks.named_buffers()):
        kind = name.rsplit(".", 1)[-1] if not name.endswith(".weight") else name.split(".")[-2]
        if kind in MATRICES:
            _draw(tensor, _matrix_std(name, kind, tensor, config), config)
        elif kind in ("slot_keys", "slot_values"):
            nn.init.normal_(tensor, std=1 / math.sqrt(config.head_dim))
        elif kind == "leak":
            tensor.copy_(torch.linspace(0.5, 5, config.num_heads) / 10)  # lambda from 0.61 to 0.0067
        elif kind == "bandwidth":
            tensor.fill_(0.1 - _log_key_scale(name, config) / 20)  # beta = e^2 where keys have length 1
        elif kind in ("bandwidth_floor", "bandwidth_growth"):
            tensor.fill_(1.5 - _log_key_scale(name, config))
        elif kind == "bandwidth_power":
            tensor.fill_(1 / 3)
        elif kind == "scale":  # alpha = 1, or e^-0.5
            at_least_one = config.value_scale == "at_least_one" and "values" in name
            tensor.fill_(0.0 if at_least_one else -0.05)
        elif kind == "peek" and config.peek:
            nn.init.uniform_(tensor)


def _draw(matrix: Tensor, std: float, config: ModelConfig) -> None:
    if config.init == "truncated":
        nn.init.trunc_normal_(matrix, std=std, a=-3 * std, b=3 * std)
    else:
        nn.init.normal_(matrix, std=std)


def _matrix_std(name: str, kind: str, matrix: Tensor, config: ModelConfig) -> float:
    if config.init == "truncated":
        of_hidden = kind == "output" and "persistent" in name and config.persistent != "slots"
        width = config.feedforward_dim if of_hidden else config.d_model
        return 1 / math.sqrt(2 * width * (int(name.split(".")[0]) + 1))
    paper = config.init == "paper"
    depth = 1 if kind != "output" else math.sqrt(config.num_layers if paper else 2 * config.num_layers)
    return (1 / math.sqrt(matrix.shape[1]) if paper else 0.02) / depth


def _log_key_scale(name: str, config: ModelConfig) -> float:
    """Log of how much larger inner products of keys are at the start when keys are left as long as they are.

    W_phi LN x has about D entries of variance 1. Stored pairs have such keys on both sides, slots on one.
    """
    if config.normalised_keys:
        return 0.0
    return math.log(config.head_dim) * (0.5 if "persistent" in name else 1.0)
