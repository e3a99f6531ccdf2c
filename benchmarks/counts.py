"""What a workload must compute and move at the least; docs/performance.md derives these counts."""

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import flops_per_token

FLOAT_BYTES = 4


def flops(workload: str, config: ModelConfig, batch: int) -> int:
    """Floating-point operations of a training step, or of reading a prompt, on `batch` windows of the full context."""
    tokens = batch * config.context_length
    head = 2 * config.vocab_size * config.d_model
    if workload == "train":
        return 3 * tokens * flops_per_token(config)
    return tokens * (flops_per_token(config) - head) + batch * head  # the last position's logits only


def decoded_token_bytes(config: ModelConfig, stored: int, batch: int) -> int:
    """Bytes read for one token of each of `batch` texts of `stored` tokens: all weights once, each text's keys and
    values."""
    C, N = config.d_model, config.num_layers
    memories = config.memories if config.kind == "mosaic" else ("full",)
    pairs = sum(_held(memory, config, stored) for memory in memories)
    return FLOAT_BYTES * (N * config.block_weights + config.vocab_size * C + batch * N * 2 * C * pairs)


def _held(memory: str, config: ModelConfig, stored: int) -> int:
    """Pairs that a contextual memory reads."""
    if memory == "short":
        return min(stored, config.short_window)
    return max(0, stored - config.long_delay) if memory == "long" else stored
