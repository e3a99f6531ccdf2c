"""Extractors: from the residual stream to the keys and values that memories store (v1, key and value extractors)."""

import torch
from torch import Tensor, nn

from mosaic_cli.core import kernels, leaky, ops
from mosaic_cli.core.cache import GatedKeyState, KeyState, ValueState
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.gated import gated_average, next_average, true_average
from mosaic_cli.core.linear import Linear


class KeyExtractor(nn.Module):
    """k_T = normalised leaky average of W_phi x. Keys asked with and keys stored are the same thing.

    For `loops`, which read a prompt, see `linear.linear`.
    """

    loops = False

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.project = Linear(config.d_model, config.d_model)  # W_phi
        self.leak = nn.Parameter(torch.empty(config.num_heads))  # rho = |10 leak|
        self.num_heads = config.num_heads
        self.normalised = config.normalised_keys

    def forward(self, x: Tensor, state: KeyState | None = None, projected: Tensor | None = None) -> Tensor:
        """Keys (B, H, T, D), of unit length unless the configuration says otherwise, for x (B, T, C).

        With a state, x continues what the state has seen. `projected` is W_phi x (B, T, C), where it is there already.
        """
        projected = self.project(x) if projected is None else projected
        if state is not None and state.average is not None and x.shape[1] == 1:  # decoding: one multiply-add
            averages = torch.addcmul(ops.split_heads(projected, self.num_heads), state.decay, state.average)
        else:
            projected, rate = projected.unflatten(-1, (self.num_heads, -1)), ops.leak_rate(self.leak)
            if state is None and self.normalised:
                return leaky.leaky_keys(projected, rate)
            before = None if state is None or state.average is None else state.average[:, :, 0]
            fresh = before is None and self.normalised and not torch.is_grad_enabled()
            if fresh and kernels.loops_serve(projected, self.loops):
                from mosaic_cli.core.kernels import cpu

                keys, state.average = cpu.keys_and_average(ops.wide(projected), ops.wide(rate))
                return keys
            averages = leaky.leaky_average(projected, rate, before)
        if state is not None:
            state.average = ops.newest(averages)
        return ops.normalise(averages) if self.normalised else averages

    def make_state(self) -> KeyState:
        """The state before the first token."""
        return KeyState(decay=torch.exp(-ops.leak_rate(self.leak)).view(-1, 1, 1))


class GatedKeyExtractor(nn.Module):
    """k_T = normalised average of W_phi x with a gate exp(W_g x_T) and a decay exp(-|W_l x_T|) per head (v2)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.project = Linear(config.d_model, config.d_model)  # W_phi
        self.gate = Linear(config.d_model, config.num_heads)  # W_g
        self.decay = Linear(config.d_model, config.num_heads)  # W_l
        self.num_heads = config.num_heads
        self.normalised = config.normalised_keys

    def forward(self, x: Tensor, state: GatedKeyState | None = None, projected: Tensor | None = None) -> Tensor:
        """Keys (B, H, T, D) for x (B, T, C). With a state, x continues what the state has seen. `projected` is W_phi x
        (B, T, C), where it is there already."""
        projected = self.project(x) if projected is None else projected
        if state is None and self.normalised and kernels.loops_serve(x):
            from mosaic_cli.core.kernels import cpu

            heads, gate, decay = self._terms(x, projected)
            return cpu.keys(heads, ops.wide(gate), ops.wide(decay))
        if state is None and self.normalised and kernels.serves(x) and not torch.compiler.is_compiling():
            from mosaic_cli.core.kernels import gated

            heads, gate, decay = self._terms(x, projected)
            return gated.gated_keys(heads, gate, -decay)[0]
        before = None if state is None else state.newest
        if before is not None and x.shape[1] == 1:  # decoding
            average, scale = next_average(*self._terms_of_one(x, projected), before)
        else:
            average, scale = gated_average(*self._terms(x, projected), before)
        if state is not None:
            state.newest = ops.newest(average), ops.newest(scale)
        return ops.normalise(average) if self.normalised else true_average(average, scale)

    def _terms(self, x: Tensor, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """W_phi x (B, T, H, D), the logarithm of the gates and the rates of decay (B, T, H)."""
        return projected.unflatten(-1, (self.num_heads, -1)), self.gate(x), self.decay(x).abs()

    def _terms_of_one(self, x: Tensor, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of one token, each with the dimensions of keys: (B, H, 1, D) and (B, H, 1, 1)."""
        terms = projected, self.gate(x), self.decay(x).abs()
        return tuple(ops.split_heads(term, self.num_heads) for term in terms)

    def make_state(self) -> GatedKeyState:
        """The state before the first token."""
        return GatedKeyState()


class LinearKeyExtractor(nn.Module):
    """k_T = W_phi x_T, normalised: keys of one token each, v1 without the leaky average."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.project = Linear(config.d_model, config.d_model)  # W_phi
        self.num_heads = config.num_heads
        self.normalised = config.normalised_keys

    def forward(self, x: Tensor, state: None = None, projected: Tensor | None = None) -> Tensor:
        """Keys (B, H, T, D) for x (B, T, C). `projected` is W_phi x (B, T, C), where it is there already."""
        keys = ops.split_heads(self.project(x) if projected is None else projected, self.num_heads)
        return ops.normalise(keys) if self.normalised else keys

    def make_state(self) -> None:
        """Nothing is carried from token to token."""


def make_key_extractor(config: ModelConfig) -> nn.Module:
    """The key extractor that the configuration names."""
    extractors = {"leaky": KeyExtractor, "gated": GatedKeyExtractor, "linear": LinearKeyExtractor}
    return extractors[config.key_extractor](config)


class ValueExtractor(nn.Module):
    """v_t peeks one step ahead: it mixes W_psi x_t and W_psi x_{t+1}. So T tokens make T - 1 values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.project = Linear(config.d_model, config.d_model)  # W_psi
        self.num_heads = config.num_heads
        if config.peek:
            self.peek = nn.Parameter(torch.empty(config.num_heads))  # gamma
        else:  # the value is the token's own, and is still stored when the next one comes
            self.register_buffer("peek", torch.ones(config.num_heads), persistent=False)
        self.scale = nn.Parameter(torch.empty(config.num_heads))  # theta of alpha
        self.form = {"free": ops.value_scale, "at_least_one": ops.value_scale_at_least_one}[config.value_scale]

    def forward(self, x: Tensor, state: ValueState | None = None, projected: Tensor | None = None) -> Tensor:
        """Values in the dtype of the projection, for x (B, T, C): (B, H, T - 1, D), the newest token's being unknown.

        With a state, x continues what the state has seen, and the value that waited for x is the first: (B, H, T, D).
        `projected` is W_psi x (B, T, C), where it is there already.
        """
        projected = self.project(x) if projected is None else projected
        content = ops.split_heads(projected, self.num_heads)  # (B, H, T, D)
        if state is None:
            return ops.peeked_values(content, self.peek, self.alpha()).to(content.dtype)
        now, ahead = ops.after_pending(state.pending, content)
        state.pending = ops.newest(content)
        return ops.peeked_value(now, ahead, state.gamma, state.alpha).to(content.dtype)

    def make_state(self) -> ValueState:
        """The state before the first token."""
        gamma, alpha = (ops.wide(scalar).view(-1, 1, 1) for scalar in (self.peek, self.alpha()))
        return ValueState(gamma, alpha)

    def alpha(self) -> Tensor:
        """The length of values (H,)."""
        return self.form(self.scale)
