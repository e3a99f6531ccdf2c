"""The shape of a model: small, typed, checked when it is made. Loads no torch, so recipes can use it cheaply."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from mosaic_cli.errors import UsageError

PRESETS = {
    "v1": {
        "key_extractor": "leaky",
        "bandwidth": "fixed",
        "value_scale": "free",
        "windows": "full",
        "persistent": "slots",
        "init": "paper",
    },
    "v2": {
        "key_extractor": "gated",
        "bandwidth": "adaptive",
        "value_scale": "at_least_one",
        "windows": "short+long",
        "persistent": "swiglu",
        "init": "truncated",
    },
}
MATRICES = {"swiglu": 3, "mlp": 2}
"""Matrices of d_model x feedforward_dim in each kind of feed-forward layer."""
POSITIVE = (
    "num_layers",
    "num_heads",
    "d_model",
    "num_slots",
    "context_length",
    "short_window",
    "long_delay",
    "feedforward_dim",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides a model's architecture and starting values.

    Raises:
        UsageError: a value is out of range, or values do not fit together; `where` names the key.
    """

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid", "use_attribute_docstrings": True}

    kind: Literal["mosaic", "transformer"] = "mosaic"
    """`mosaic`, or `transformer` for the GPT baseline of exactly the same number of block weights."""
    preset: Literal["v1", "v2"] = "v1"
    """The paper that a mosaic follows where a key is left out: `v1` is arXiv 2405.06394, `v2` arXiv 2507.03285. It
    decides `key_extractor`, `bandwidth`, `value_scale`, `windows`, `persistent` and `init`."""
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
    init: Literal["paper", "gpt2", "truncated"] | None = None
    """Starting values of a mosaic: `paper` (std 1/sqrt(fan_in), logits / sqrt(d_model); default of v1), `gpt2` (std
    0.02, logits unscaled), as in the authors' second code, or `truncated` (truncated normal, smaller in higher blocks;
    default of v2, which learns to look up far later from `gpt2`: a recipe that names that start needs `init: null`
    beside `preset: v2`). The baseline always starts as GPT-2 does."""
    key_extractor: Literal["leaky", "gated", "linear"] | None = None
    """What keys are made of: `leaky`, a leaky average (v1); `gated`, an average whose gate and decay depend on the
    token (v2); or `linear`, each key of its own token alone, which is v1 without the leaky average. The baseline takes
    from it the number of weights to equal."""
    normalised_keys: bool = True
    """Whether keys have length 1. Without, a kernel compares them by their inner product as they are. Not for the
    baseline."""
    peek: bool = True
    """Whether a value mixes the next token into its own. Without, gamma is 1. Not for the baseline."""
    bandwidth: Literal["fixed", "adaptive"] | None = None
    """The kernels' inverse bandwidth: `fixed`, one number per head (v1); or `adaptive`, growing with the number of
    pairs in memory (v2). The baseline does not read it."""
    value_scale: Literal["free", "at_least_one"] | None = None
    """Length alpha of stored values, per head: `free`, exp(10 theta) from e^-0.5 (v1); or `at_least_one`,
    exp(min(|theta|, 15)) from 1 (v2). The baseline does not read it."""
    learn_bandwidth: bool = True
    """Whether the kernels' inverse bandwidths are learned, or stay where they start (beta = e^2 in v1). Not for the
    baseline."""
    windows: Literal["full", "short+long", "short", "long"] | None = None
    """Which pairs of the text contextual memories read: `full`, one memory of all earlier pairs (v1); `short+long`, a
    short-term memory of the newest pairs and a long-term memory of the older ones, with parameters of their own (v2);
    or one of these alone. The baseline takes from it the number of weights to equal."""
    short_window: int | None = None
    """Pairs that a short-term memory holds; default 256."""
    long_delay: int | None = None
    """A long-term memory reads pairs that are at least so many tokens old; default 64."""
    max_long_delay: int | None = None
    """While training, that number is drawn anew at each step, from `long_delay` to this; default 256, or `long_delay`
    where that is more. Must be less than `context_length`."""
    persistent: Literal["slots", "swiglu", "mlp"] | None = None
    """What persistent memory is: `slots`, learned pairs (v1); `swiglu`, a feed-forward layer with a gate (v2); or
    `mlp`, two matrices with a GELU between them. The baseline takes from it the number of weights to equal."""
    feedforward_dim: int | None = None
    """Hidden units of a `swiglu` or `mlp`; default as many as make it hold the weights of `num_slots` slots."""
    vocab_size: int = 0
    """Entries of the embedding. Comes from the tokenizer; leave it out of a recipe."""

    def __post_init__(self):
        self._fill_in()
        for name in POSITIVE:
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
        """Give every key that was left out the value that follows from the others."""
        for name, value in PRESETS[self.preset].items():
            self._default(name, value)
        self._default("num_slots", int(3.5 * self.d_model))
        if "short" in self.windows:
            self._default("short_window", 256)
        if "long" in self.windows:
            self._default("long_delay", 64)
            self._default("max_long_delay", max(256, self.long_delay))
        if self.persistent != "slots":
            size = 2 * (self.d_model + self.num_slots)  # times d_model: the weights of slots with their W_phi and W_o
            self._default("feedforward_dim", round(size / MATRICES[self.persistent]))

    def _default(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _check_fit(self) -> None:
        """Refuse what would be ignored, and what cannot work."""
        for name, key, values in (
            ("feedforward_dim", "persistent", ("swiglu", "mlp")),
            ("short_window", "windows", ("short+long", "short")),
            ("long_delay", "windows", ("short+long", "long")),
            ("max_long_delay", "windows", ("short+long", "long")),
        ):
            if getattr(self, name) is not None and getattr(self, key) not in values:
                raise UsageError(
                    f"{name} is given, but {key} is {getattr(self, key)}, which has no use for it",
                    where=f"model.{name}",
                    hint=f"Leave it out, or set {key} to {' or '.join(values)}.",
                )
        if self.max_long_delay is not None and not self.long_delay <= self.max_long_delay < self.context_length:
            raise UsageError(
                f"max_long_delay is {self.max_long_delay}, but must be at least long_delay, {self.long_delay}, and "
                f"less than context_length, {self.context_length}: a long-term memory would stay empty",
                where="model.max_long_delay",
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
    def longest_text(self) -> int | None:
        """Tokens that a text may have: a transformer's context; a mosaic reads on without end."""
        return self.context_length if self.kind == "transformer" else None

    @property
    def head_dim(self) -> int:
        """Width D of one head."""
        return self.d_model // self.num_heads

    @property
    def block_weights(self) -> int:
        """Weights of a mosaic's block, in matrices and slots; norms and scalars per head not counted."""
        C = self.d_model
        gates = 2 * self.num_heads * C if self.key_extractor == "gated" else 0
        contextual = len(self.memories) * (3 * C * C + gates)
        if self.persistent == "slots":
            return contextual + 2 * C * (C + self.num_slots) + gates
        return contextual + MATRICES[self.persistent] * C * self.feedforward_dim

    @property
    def memories(self) -> tuple[str, ...]:
        """Names of a block's contextual memories, by the window that each reads."""
        return tuple(self.windows.split("+"))

    @property
    def hidden_dim(self) -> int:
        """Hidden units of the baseline's MLP, chosen so that both kinds of block hold as many weights."""
        C = self.d_model
        return (self.block_weights - 4 * C * C) // (2 * C)

    def with_vocab(self, vocab_size: int) -> "ModelConfig":
        """The same shape over another vocabulary."""
        return replace(self, vocab_size=vocab_size)
