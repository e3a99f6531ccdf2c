"""Models small enough to check by loops, with every scalar drawn so that no two heads are alike."""

import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model

VOCABULARY = 17


def tiny_model(kind: str = "mosaic", sharp: bool = False, seed: int = 0, **changes: object):
    """A model in float32 and evaluation mode. `sharp`: inverse bandwidths near e^10, so weights are nearly one-hot."""
    torch.manual_seed(seed)
    shape = {"num_layers": 3, "num_heads": 2, "d_model": 12, "context_length": 80, "vocab_size": VOCABULARY} | changes
    model = build_model(ModelConfig(kind=kind, **shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bandwidth"):
                parameter.uniform_(0.4, 0.6) if sharp else parameter.uniform_(0.0, 0.2)
            elif name.endswith(("leak", "scale")):
                parameter.uniform_(-0.1, 0.1)
            elif "bandwidth_" in name:
                parameter.uniform_(0.2, 0.8)
            elif kind == "transformer":
                parameter.mul_(60 if sharp else 5)  # GPT-2's starting values are too small to retrieve anything by
    return model


def tiny_tokens(T: int, seed: int = 1) -> list[int]:
    """T tokens of the tiny vocabulary."""
    return torch.randint(0, VOCABULARY, (T,), generator=torch.Generator().manual_seed(seed)).tolist()
