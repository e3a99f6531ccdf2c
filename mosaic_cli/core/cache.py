"""What decoding keeps: the stored pairs of each memory, its running average, and the pair that waits for a token."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


class GrowingPairs:
    """Keys and values (B, H, S, D) in buffers that double when full, so adding a pair costs O(1) on average."""

    def __init__(self, capacity: int = 256):
        self.length = 0
        self._initial = capacity
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store n more pairs (B, H, n, D) and return views of all pairs stored so far."""
        end = self.length + keys.shape[2]
        self._keys = self._with_room(self._keys, keys, end)
        self._values = self._with_room(self._values, values, end)
        self._keys[:, :, self.length : end] = keys
        self._values[:, :, self.length : end] = values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def _with_room(self, buffer: Tensor | None, like: Tensor, end: int) -> Tensor:
        capacity = self._initial if buffer is None else buffer.shape[2]
        if buffer is not None and end <= capacity:
            return buffer
        while capacity < end:
            capacity *= 2
        B, H, _, D = like.shape
        larger = torch.empty(B, H, capacity, D, dtype=like.dtype, device=like.device)
        if buffer is not None:
            larger[:, :, : self.length] = buffer[:, :, : self.length]
        return larger


@dataclass
class ContextualCache:
    """State of one contextual memory. The newest token's pair is pending: its value needs the token after it."""

    pairs: GrowingPairs = field(default_factory=GrowingPairs)
    average: Tensor | None = None  # (B, H, D) leaky average so far
    pending_key: Tensor | None = None  # (B, H, 1, D)
    pending_content: Tensor | None = None  # (B, H, 1, D)


@dataclass
class PersistentCache:
    """State of one persistent memory: only the leaky average (B, H, D) of its keys."""

    average: Tensor | None = None


class MemoryCache:
    """All that a mosaic remembers of a text: one pair of caches per block. `length` counts the tokens read."""

    def __init__(self, num_layers: int):
        self.length = 0
        self.contextual = [ContextualCache() for _ in range(num_layers)]
        self.persistent = [PersistentCache() for _ in range(num_layers)]


class AttentionCache:
    """What the baseline keeps: keys and values of every layer. `length` counts the tokens read."""

    def __init__(self, num_layers: int):
        self.length = 0
        self.layers = [GrowingPairs() for _ in range(num_layers)]
