"""The shape of a model: small, typed, checked when it is made. Loads no torch, so recipes can use it cheaply."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mosaic_cli.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides a model's architecture and starting values.

    Raises:
        UsageError: a value is out of range, or values do not fit together; `where` names the key.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["mosaic", "transformer"] = "mosaic"
    """`mosaic`, or `transformer` for the GPT baseline of exactly the same number of block weights."""
    preset: Literal["v1"] = "v1"
    """The paper a mosaic follows: `v1` is arXiv 2405.06394. The baseline does not read it."""
    num_layers: int
    """Blocks. Each holds a contextual and a persistent memory (baseline: attention and an MLP)."""
    num_heads: int
    """Memories per layer of each kind; must divide `d_model`."""
    d_model: int
    """Width of the residual stream."""
    num_slots: int | None = None
    """Learned pairs per head in a persistent memory; default 3.5 * `d_model`, which makes a block 12 * `d_model`^2
    weights as in GPT-2. The baseline's MLP gets `num_slots + d_model / 2` hidden units: the same count."""
    context_length: int
    """Tokens in a training window. A mosaic reads on past it, the baseline cannot."""
    dropout: float = 0.0
    """Probability of dropping a retrieval weight and an output feature of each memory while training."""
    init: Literal["paper", "gpt2"] = "paper"
    """Starting values of a mosaic: `paper` (std 1/sqrt(fan_in), logits / sqrt(d_model)) or `gpt2` (std 0.02, logits
    unscaled), as in the authors' second code. The baseline always starts as GPT-2 does."""
    vocab_size: int = 0
    """Entries of the embedding. Comes from the tokenizer; leave it out of a recipe."""

    def __post_init__(self):
        if self.num_slots is None:
            object.__setattr__(self, "num_slots", int(3.5 * self.d_model))
        for name in ("num_layers", "num_heads", "d_model", "num_slots", "context_length"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1", where=f"model.{name}")
        if self.vocab_size < 0:
            raise UsageError(f"vocab_size is {self.vocab_size}, but cannot be negative", where="model.vocab_size")
        if self.d_model % self.num_heads:
            raise UsageError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}", where="model.num_heads"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}, but must lie in [0, 1)", where="model.dropout")

    @property
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.d_model // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Hidden units of the baseline's MLP, chosen so that both kinds of block hold 5 C^2 + 2 M C weights."""
        return self.num_slots + self.d_model // 2

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """The same shape over another vocabulary."""
        return replace(self, vocab_size=vocab_size)
