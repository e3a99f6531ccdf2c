"""The paper as loops: slow, in float64, in the order of the equations. Everything fast is tested against this file.

One sequence at a time; the names of the weights are those of `Mosaic.state_dict()`. Sources: arXiv 2405.06394
("v1") and, where it is named, arXiv 2507.03285 ("v2").
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mosaic_cli.core.config import ModelConfig


def leaky_average(x: Tensor, rate: Tensor) -> Tensor:
    """k_bar_T = x_T + exp(-rate_h) k_bar_{T-1}; x (T, H, D), rate (H,) -> (T, H, D)."""
    average, averages = torch.zeros_like(x[0]), []
    for x_t in x:
        average = x_t + torch.exp(-rate)[:, None] * average
        averages.append(average)
    return torch.stack(averages)


def gated_average(x: Tensor, log_gate: Tensor, rate: Tensor) -> Tensor:
    """k_bar_T = g_T x_T + exp(-rate_T) k_bar_{T-1} (v2); x (T, H, D), log_gate and rate (T, H) -> (T, H, D)."""
    average, averages = torch.zeros_like(x[0]), []
    for x_t, log_gate_t, rate_t in zip(x, log_gate, rate, strict=True):
        average = torch.exp(log_gate_t)[:, None] * x_t + torch.exp(-rate_t)[:, None] * average
        averages.append(average)
    return torch.stack(averages)


def peeked_values(content: Tensor, gamma: Tensor, alpha: Tensor) -> Tensor:
    """v_t = alpha v_bar_t / |v_bar_t|, v_bar_t = gamma c_t + (1 - gamma) c_{t+1}; (T, H, D) -> (T-1, H, D)."""
    values = []
    for t in range(len(content) - 1):
        v_bar = gamma[:, None] * content[t] + (1 - gamma)[:, None] * content[t + 1]
        values.append(alpha[:, None] * v_bar / v_bar.norm(dim=-1, keepdim=True))
    return torch.stack(values) if values else content[:0]


def kernel_regression(query: Tensor, keys: Tensor, values: Tensor, beta: Tensor) -> Tensor:
    """f(k) = sum_i softmax_i(beta k.k_i) v_i over any number of pairs, their order irrelevant; none gives zero.

    query (D,), keys and values (S, D), beta a scalar -> (D,).
    """
    if len(keys) == 0:
        return torch.zeros_like(query)
    weights = torch.softmax(torch.stack([beta * query.dot(key) for key in keys]), dim=0)
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def adaptive_bandwidth(floor: Tensor, growth: Tensor, power: Tensor, pairs: int) -> Tensor:
    """beta = beta_1 n^a + beta_0 for n pairs, beta_0 = exp(min(floor, 10)), beta_1 = exp(min(growth, 10)),
    a = min(|power|, 1) (v2); all (H,)."""
    return torch.exp(growth.clamp(max=10)) * pairs ** power.abs().clamp(max=1) + torch.exp(floor.clamp(max=10))


def strict_past_read(
    keys: Tensor, values: Tensor, beta: Callable[[int], Tensor], delay: int = 1, window: int | None = None
) -> Tensor:
    """y_T = f(k_T) over the pairs (k_t, v_t), t <= T - delay; keys (T, H, D), values (T-1, H, D) -> (T, H, D).

    `beta` gives the inverse bandwidths (H,) of a memory of n pairs. With a `window`, only t >= T - window (v2).
    """
    reads = []
    for T in range(len(keys)):
        seen = slice(0 if window is None else max(0, T - window), max(0, T - delay + 1))
        k, v, betas = keys[seen], values[seen], beta(len(keys[seen]))
        reads.append([kernel_regression(keys[T, h], k[:, h], v[:, h], betas[h]) for h in range(keys.shape[1])])
    return torch.stack([torch.stack(heads) for heads in reads])


def slot_read(queries: Tensor, keys: Tensor, values: Tensor, beta: Tensor) -> Tensor:
    """The same over M learned pairs per head; queries (T, H, D), keys and values (H, M, D), beta (H,) -> (T, H, D)."""
    return torch.stack(
        [
            torch.stack([kernel_regression(query[h], keys[h], values[h], beta[h]) for h in range(len(beta))])
            for query in queries
        ]
    )


def extract_keys(x: Tensor, weights: dict[str, Tensor], prefix: str, config: ModelConfig) -> Tensor:
    """k_T = k_bar_T / |k_bar_T|, unit length, or k_bar_T itself without `normalised_keys`; x (T, C) -> (T, H, D)."""
    keys = (x @ weights[f"{prefix}.project.weight"].T).view(len(x), config.num_heads, -1)
    if config.key_extractor == "leaky":
        keys = leaky_average(keys, (10 * weights[f"{prefix}.leak"]).abs())
    if config.key_extractor == "gated":
        log_gate, rate = x @ weights[f"{prefix}.gate.weight"].T, (x @ weights[f"{prefix}.decay.weight"].T).abs()
        keys = gated_average(keys, log_gate, rate)
    return keys / keys.norm(dim=-1, keepdim=True) if config.normalised_keys else keys


def bandwidth(weights: dict[str, Tensor], prefix: str, config: ModelConfig) -> Callable[[int], Tensor]:
    """The inverse bandwidths (H,) of a memory, as a function of the pairs in it."""
    if config.bandwidth == "adaptive":
        scalars = [weights[f"{prefix}.bandwidth_{name}"] for name in ("floor", "growth", "power")]
        return lambda pairs: adaptive_bandwidth(*scalars, pairs)
    return lambda pairs: torch.exp(2 * (10 * weights[f"{prefix}.bandwidth"]).clamp(max=5))


def layer_norm(x: Tensor, weight: Tensor) -> Tensor:
    """LayerNorm without bias; x (T, C)."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return weight * centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + 1e-5)


def pair_memory(
    x: Tensor, weights: dict[str, Tensor], prefix: str, config: ModelConfig, delay: int = 1, window: int | None = None
) -> Tensor:
    """The reads of one contextual memory, heads side by side; x (T, C) -> (T, C)."""
    keys = extract_keys(x, weights, f"{prefix}.keys", config)
    gamma = weights[f"{prefix}.values.peek"] if config.peek else torch.ones(config.num_heads, dtype=x.dtype)
    scale = weights[f"{prefix}.values.scale"]
    alpha = torch.exp(10 * scale) if config.value_scale == "free" else torch.exp(scale.abs().clamp(max=15))
    content = (x @ weights[f"{prefix}.values.project.weight"].T).view(len(x), config.num_heads, -1)
    values = peeked_values(content, gamma, alpha)
    return strict_past_read(keys, values, bandwidth(weights, f"{prefix}.read", config), delay, window).flatten(1)


def contextual_memory(x: Tensor, weights: dict[str, Tensor], prefix: str, config: ModelConfig) -> Tensor:
    """A block's contextual memories, W_o concat_h y_T before dropout; x (T, C) -> (T, C)."""
    if config.windows == "full":
        reads = [pair_memory(x, weights, prefix, config)]
    else:
        windows = {"short": (1, config.short_window), "long": (config.long_delay, None)}
        reads = [pair_memory(x, weights, f"{prefix}.{name}", config, *windows[name]) for name in config.memories]
    return torch.cat(reads, dim=1) @ weights[f"{prefix}.output.weight"].T


def persistent_memory(x: Tensor, weights: dict[str, Tensor], prefix: str, config: ModelConfig) -> Tensor:
    """A persistent memory's output before dropout; x (T, C) -> (T, C)."""
    if config.persistent != "slots":
        return feedforward(x, weights, prefix, config)
    keys = extract_keys(x, weights, f"{prefix}.keys", config)
    beta = bandwidth(weights, f"{prefix}.read", config)(config.num_slots)
    alpha = torch.exp(10 * weights[f"{prefix}.read.scale"])
    reads = slot_read(keys, weights[f"{prefix}.slot_keys"], weights[f"{prefix}.slot_values"], beta)
    return (alpha[:, None] * reads).flatten(1) @ weights[f"{prefix}.output.weight"].T


def feedforward(x: Tensor, weights: dict[str, Tensor], prefix: str, config: ModelConfig) -> Tensor:
    """W_2 GELU(W_1 x), or for SwiGLU W_2 (SiLU(W_1 x) * W_3 x); x (T, C) -> (T, C)."""
    hidden = x @ weights[f"{prefix}.project.weight"].T
    if config.persistent == "mlp":
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    else:
        hidden = hidden / (1 + torch.exp(-hidden)) * (x @ weights[f"{prefix}.gated.weight"].T)
    return hidden @ weights[f"{prefix}.output.weight"].T


def mosaic_logits(tokens: Tensor, weights: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """Logits of the language model for one sequence; tokens (T,) -> (T, V) in float64."""
    weights = {name: weight.double() for name, weight in weights.items()}
    x = weights["embedding.weight"][tokens]
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        normed = layer_norm(x, weights[f"{block}.contextual_norm.weight"])
        x = x + contextual_memory(normed, weights, f"{block}.contextual", config)
        normed = layer_norm(x, weights[f"{block}.persistent_norm.weight"])
        x = x + persistent_memory(normed, weights, f"{block}.persistent", config)
    logits = layer_norm(x, weights["norm.weight"]) @ weights["embedding.weight"].T
    return logits / math.sqrt(config.d_model) if config.init == "paper" else logits
