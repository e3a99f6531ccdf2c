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
    """Learned pairs per head in a persistent memory; default 3.5 * `d_model`, which makes a block of v1 12 *
    `d_model`^2 weights as in GPT-2. The baseline's MLP gets as many hidden units as make its block hold as many
    weights as the mosaic's."""
    context_length: int
    """Tokens in a training window. A mosaic reads on past it, the baseline cannot."""
    dropout: float = 0.0
    """Probability of dropping a retrieval weight and an output feature of each memory while training."""
    init: Literal["paper", "gpt2"] = "paper"
    """Starting values of a mosaic: `paper` (std 1/sqrt(fan_in), logits / sqrt(d_model)) or `gpt2` (std 0.02, logits
    unscaled), as in the authors' second code. The baseline always starts as GPT-2 does."""
    key_extractor: Literal["leaky", "gated", "linear"] = "leaky"
    """What keys are made of: `leaky`, the leaky average of v1; `gated`, an average whose gate and decay depend on the
    token (v2); or `linear`, each key of its own token alone, which is v1 without the leaky average. The baseline takes
    from it the number of weights to equal."""
    normalised_keys: bool = True
    """Whether keys have length 1. Without, a kernel compares them by their inner product as they are. Not for the
    baseline."""
    peek: bool = True
    """Whether a value mixes the next token into its own. Without, gamma is 1. Not for the baseline."""
    bandwidth: Literal["fixed", "adaptive"] = "fixed"
    """The kernels' inverse bandwidth: `fixed`, one number per head (v1); or `adaptive`, growing with the number of
    pairs in memory (v2). The baseline does not read it."""
    value_scale: Literal["free", "at_least_one"] = "free"
    """Length alpha of stored values, per head: `free`, exp(10 theta) from e^-0.5 (v1); or `at_least_one`,
    exp(min(|theta|, 15)) from 1 (v2). The baseline does not read it."""
    learn_bandwidth: bool = True
    """Whether the kernels' inverse bandwidths are learned, or stay where they start (beta = e^2 in v1). Not for the
    baseline."""
    persistent: Literal["slots", "mlp"] = "slots"
    """What persistent memory is: `slots`, learned pairs (v1); or `mlp`, two matrices with a GELU between them. The
    baseline takes from it the number of weights to equal."""
    feedforward_dim: int | None = None
    """Hidden units of an `mlp`; default as many as make it hold the weights of `num_slots` slots."""
    vocab_size: int = 0
    """Entries of the embedding. Comes from the tokenizer; leave it out of a recipe."""

    def __post_init__(self):
        self._fill_in()
        for name in ("num_layers", "num_heads", "d_model", "num_slots", "context_length", "feedforward_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but must be at least 1", where=f"model.{name}")
        self._check_fit()
        if self.vocab_size < 0:
            raise UsageError(f"vocab_size is {self.vocab_size}, but cannot be negative", where="model.vocab_size")
        if self.d_model % self.num_heads:
            raise UsageError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}", where="model.num_heads"
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}, but must lie in [0, 1)", where="model.dropout")

    def _fill_in(self) -> None:
        """Give every value that was left out the one that follows from the others."""
        if self.num_slots is None:
            object.__setattr__(self, "num_slots", int(3.5 * self.d_model))
        if self.feedforward_dim is None and self.persistent != "slots":
            object.__setattr__(self, "feedforward_dim", self.d_model + self.num_slots)

    def _check_fit(self) -> None:
        """Refuse what would be ignored."""
        if self.feedforward_dim is not None and self.persistent == "slots":
            raise UsageError(
                "feedforward_dim is given, but persistent memory is slots, which have no hidden units",
                where="model.feedforward_dim",
                hint="Set num_slots, or persistent to mlp.",
            )
        if self.kind == "transformer" and self.hidden_dim < 1:
            raise UsageError(
                "the mosaic's block is smaller than a transformer's attention, so none can equal it",
                where="model.feedforward_dim",
            )
        for name in ("normalised_keys", "peek", "learn_bandwidth"):
            if self.kind == "transformer" and not getattr(self, name):
                raise UsageError(
                    f"{name} is false, but a transformer has nothing of the kind to take away",
                    where=f"model.{name}",
                    hint="Leave the key out: the baseline is the same without it.",
                )

    @property
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.d_model // self.num_heads

    @property
    def block_weights(self) -> int:
        """Weights of a mosaic's block, in matrices and slots; norms and scalars per head not counted."""
        C = self.d_model
        gates = 2 * self.num_heads * C if self.key_extractor == "gated" else 0
        slots = 2 * C * (C + self.num_slots) + gates
        return 3 * C * C + gates + (slots if self.persistent == "slots" else 2 * C * self.feedforward_dim)

    @property
    def hidden_dim(self) -> int:
        """Hidden units of the baseline's MLP, chosen so that both kinds of block hold as many weights."""
        C = self.d_model
        return (self.block_weights - 4 * C * C) // (2 * C)

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """The same shape over another vocabulary."""
        return replace(self, vocab_size=vocab_size)
