"""What is measured: this project's two models and the peers a user would take instead, behind one interface.

The peers come from the registry (`pip install 'mosaic-cli[bench]'`), with as many weights as the project's
transformer, fused attention, no dropout and their own key-value caches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model, training_loss


@dataclass(frozen=True)
class Size:
    """A model's shape, as keys of `ModelConfig`, and the batch it is trained with."""

    shape: dict[str, int]
    batch: int


SIZES = {
    "tiny": Size(
        {
            "num_layers": 4,
            "num_heads": 4,
            "d_model": 128,
            "num_slots": 448,
            "context_length": 64,
            "vocab_size": 66,
        },
        batch=12,
    ),
    "small": Size(
        {
            "num_layers": 4,
            "num_heads": 4,
            "d_model": 256,
            "num_slots": 896,
            "context_length": 512,
            "vocab_size": 8192,
        },
        batch=8,
    ),
    "124m": Size(
        {
            "num_layers": 12,
            "num_heads": 12,
            "d_model": 768,
            "num_slots": 2688,
            "context_length": 512,
            "vocab_size": 50257,
        },
        batch=1,
    ),
}


@dataclass(frozen=True)
class System:
    """A language model: its mean loss on (tokens, targets), and how it reads on with its cache.

    `read(tokens (B, T), cache or None)` returns logits (B, V) of the last position, and the cache. `config` is the
    shape by which its work is counted.
    """

    config: ModelConfig
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    read: Callable[[Tensor, Any], tuple[Tensor, Any]]


def build(name: str, shape: dict[str, int], device: torch.device) -> System:
    """The system of that name in the shape of a `Size`, with weights drawn from one seed.

    Raises:
        ImportError: a peer that is not installed.
    """
    torch.manual_seed(0)
    return BUILDERS[name](shape, device)


def _mosaic(shape: dict[str, int], device: torch.device) -> System:
    return _ours(ModelConfig(init="gpt2", **shape), device)


def _mosaic_v2(shape: dict[str, int], device: torch.device) -> System:
    """v2 with a feed-forward layer so much smaller that its two contextual memories leave the block's weights equal,
    and with shorter memories where the window is no longer than what the paper's longest delay is."""
    T, slots = shape["context_length"], shape["num_slots"] - 3 * shape["d_model"] // 2
    memories = {} if T > 256 else {"short_window": T // 2, "long_delay": T // 8, "max_long_delay": T // 2}
    return _ours(ModelConfig(preset="v2", **shape | memories | {"num_slots": slots}), device)


def _transformer(shape: dict[str, int], device: torch.device) -> System:
    return _ours(ModelConfig(kind="transformer", **shape), device)


def _ours(config: ModelConfig, device: torch.device) -> System:
    model = build_model(config).to(device)

    def read(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        cache = model.make_cache() if cache is None else cache
        return model.head(model.hidden(tokens, cache)[:, -1]), cache

    return System(config, model, lambda x, targets: training_loss(model, x, targets) / targets.numel(), read)


def _gpt2(shape: dict[str, int], device: torch.device) -> System:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = ModelConfig(kind="transformer", **shape)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.hidden_dim,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
    ).to(device)

    def read(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.past_key_values

    return System(config, model, lambda x, targets: _loss(model(x, use_cache=False).logits, targets), read)


def _x_transformers(shape: dict[str, int], device: torch.device) -> System:
    from x_transformers import Decoder, TransformerWrapper

    config = ModelConfig(kind="transformer", **shape)
    layers = Decoder(
        dim=config.d_model,
        depth=config.num_layers,
        heads=config.num_heads,
        attn_dim_head=config.head_dim,
        attn_flash=True,
        ff_mult=config.hidden_dim / config.d_model,
        ff_no_bias=True,
    )
    model = TransformerWrapper(
        num_tokens=config.vocab_size,
        max_seq_len=config.context_length,
        attn_layers=layers,
        tie_embedding=True,
        input_not_include_cache=True,
    ).to(device)

    def read(tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        logits, cache = model(tokens, cache=cache, return_intermediates=True)
        return logits[:, -1], cache

    return System(config, model, lambda x, targets: _loss(model(x), targets), read)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


BUILDERS = {
    "mosaic": _mosaic,
    "mosaic v2": _mosaic_v2,
    "transformer": _transformer,
    "transformers GPT-2": _gpt2,
    "x-transformers": _x_transformers,
}
PACKAGES = {"transformers GPT-2": "transformers", "x-transformers": "x_transformers"}
