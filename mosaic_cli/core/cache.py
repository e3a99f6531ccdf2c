"""What decoding keeps: the stored pairs of each memory, its running average, and the pair that waits for a token.

The per-head scalars that stay while decoding are kept as well: computing them anew costs more than a memory's read.
"""

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
        start, count = self.length, keys.shape[2]
        end = start + count
        self._keys = self._with_room(self._keys, keys, end)
        self._values = self._with_room(self._values, values, end)
        self._keys.narrow(2, start, count).copy_(keys)
        self._values.narrow(2, start, count).copy_(values)
        self.length = end
        return self._keys.narrow(2, 0, end), self._values.narrow(2, 0, end)

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
class KeyState:
    """What a key extractor carries from token to token: lambda (H, 1, 1), which stays, and the leaky average."""

    decay: Tensor
    average: Tensor | None = None  # (B, H, D)


@dataclass
class ValueState:
    """What a value extractor carries on: alpha (H,), which stays, and the content of the newest token."""

    alpha: Tensor
    pending: Tensor | None = None  # (B, H, 1, D)


@dataclass
class ContextualCache:
    """State of one contextual memory: the scalars of its read, which stay, and the pairs stored so far.

    The newest token's pair is pending: its value needs the token after it.
    """

    keys: KeyState
    values: ValueState
    scalars: tuple[Tensor, ...]
    pairs: GrowingPairs = field(default_factory=GrowingPairs)
    pending_key: Tensor | None = None  # (B, H, 1, D)


@dataclass
class PersistentCache:
    """State of one persistent memory: only that of its keys; the scalars of its read stay."""

    keys: KeyState
    scalars: tuple[Tensor, ...]


@dataclass
class MemoryCache:
    """All that a mosaic remembers of a text: one pair of caches per block. `length` counts the tokens read."""

    contextual: list[ContextualCache]
    persistent: list[PersistentCache]
    length: int = 0


class AttentionCache:
    """What the baseline keeps: keys and values of every layer. `length` counts the tokens read."""

    def __init__(self, num_layers: int):
        self.length = 0
        self.layers = [GrowingPairs() for _ in range(num_layers)]
