"""What decoding keeps: the stored pairs of each memory, its running average, and the pair that waits for a token.

The per-head scalars that stay while decoding are kept as well: computing them anew costs more than a memory's read.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mosaic_cli.core import kernels, ops
from mosaic_cli.core.ops import AttendOne


class GrowingPairs:
    """Keys and values (B, H, S, D) in buffers that double when full, so adding a pair costs O(1) on average.

    Args:
        capacity: pairs for which there is room at first.
        loops: whether single queries may read large buffers by `quantised`, which keeps a copy of them.
    """

    attend_one: AttendOne | None = None

    def __init__(self, capacity: int = 256, loops: bool = False):
        self.length = 0
        self._initial, self._loops = capacity, loops
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store n more pairs (B, H, n, D) and return views of all pairs stored so far."""
        start, count = self.length, keys.shape[2]
        end, before = start + count, self._keys
        self._keys = self._with_room(self._keys, keys, end)
        self._values = self._with_room(self._values, values, end)
        self._keys.narrow(2, start, count).copy_(keys)
        self._values.narrow(2, start, count).copy_(values)
        self.length = end
        if self._loops and self._keys is not before:
            self.attend_one = self._quantised()
        return self._keys.narrow(2, 0, end), self._values.narrow(2, 0, end)

    def _quantised(self) -> AttendOne | None:
        if not all(kernels.quantised_serve(buffer) for buffer in (self._keys, self._values)):
            return None
        from mosaic_cli.core.kernels import quantised

        return quantised.QuantisedPairs(self._keys, self._values).attend

    def repeat(self, count: int) -> "GrowingPairs":
        """A copy of the pairs of a single text (B = 1) for each of `count` texts that go on from it."""
        copy = GrowingPairs(self._initial, self._loops)
        if self._keys is not None:
            copy.append(*(_repeat(tensor[:, :, : self.length], count) for tensor in (self._keys, self._values)))
        return copy

    def stored(self, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Views of all keys and values stored so far; where there may be none, `like` (B, H, ., D) says of which kind
        they would be."""
        if self._keys is None:
            return like[:, :, :0], like[:, :, :0]
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def _with_room(self, buffer: Tensor | None, like: Tensor, end: int) -> Tensor:
        capacity = self._initial if buffer is None else buffer.shape[2]
        if buffer is not None and end <= capacity:
            return buffer
        while capacity < end:
            capacity *= 2
        larger = _room(like, capacity)
        if buffer is not None:
            larger[:, :, : self.length] = buffer[:, :, : self.length]
        return larger


class FixedPairs:
    """Keys and values (B, H, S, D) in buffers that stay where they are, for a step that is recorded and replayed.

    Args:
        keys, values: (B, H, n, D), stored so far. Of a mosaic there is a key more: the newest one waits in its place.
        newest, newest_key: places of the newest pair and key (1,), integers on the device: whoever owns the step raises
            them.
    """

    def __init__(self, keys: Tensor, values: Tensor, newest: Tensor, newest_key: Tensor):
        self.newest, self.newest_key = newest, newest_key
        self._keys, self._values = keys, values

    @staticmethod
    def capacity_for(keys: int) -> int:
        """The room to make for so many keys."""
        return max(256, 1 << (keys - 1).bit_length())

    def make_room(self, capacity: int) -> None:
        """Have room for so many keys and values, in other memory."""
        before = self._keys, self._values
        self._keys, self._values = (_room(tensor, capacity) for tensor in before)
        for larger, tensor in zip((self._keys, self._values), before, strict=True):
            larger[:, :, : tensor.shape[2]] = tensor

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put the newest key and value (B, H, 1, D) in their places; returns the buffers, of which the rest is not yet
        there."""
        self._keys.index_copy_(2, self.newest_key, keys)
        self._values.index_copy_(2, self.newest, values)
        return self._keys, self._values

    def attend_one(self, queries: Tensor, scale: Tensor | float, _: int) -> Tensor:
        """See `AttendOne`: of the pairs up to the newest one, however many the buffers have room for."""
        from mosaic_cli.core.kernels import decoding

        return decoding.attend_stored(queries, self._keys, self._values, scale, self.newest)


class WindowPairs:
    """The newest `window` keys and values (B, H, ., D) and no more, in a ring: a new pair takes the oldest one's place.

    Pair number j of the text lies at place j % window. A memory does not depend on the order of its pairs, so a single
    query reads the ring as it lies.
    """

    attend_one: AttendOne | None = None

    def __init__(self, window: int):
        self.length = 0  # pairs of the text so far
        self._window = window
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store n more pairs (B, H, n, D); returns those that n queries may read, all that were stored among them.

        For one pair they come in the order of the ring, for several in that of the text.
        """
        if self._keys is None:
            self._keys, self._values = (_room(tensor, self._window) for tensor in (keys, values))
        kept, start, count = min(self.length, self._window), self.length, keys.shape[2]
        self.length += count
        if count == 1:
            place = start % self._window
            self._keys[:, :, place], self._values[:, :, place] = keys[:, :, 0], values[:, :, 0]
            kept = min(self.length, self._window)
            return self._keys[:, :, :kept], self._values[:, :, :kept]
        stored = torch.arange(start - kept, start, device=keys.device) % self._window
        whole = [torch.cat([r[:, :, stored], t], 2) for r, t in ((self._keys, keys), (self._values, values))]
        newest = min(count, self._window)
        places = torch.arange(self.length - newest, self.length, device=keys.device) % self._window
        self._keys[:, :, places], self._values[:, :, places] = (
            tensor[:, :, count + kept - newest :] for tensor in whole
        )
        return whole[0], whole[1]

    def repeat(self, count: int) -> "WindowPairs":
        """A copy of the pairs of a single text (B = 1) for each of `count` texts that go on from it."""
        copy = WindowPairs(self._window)
        copy.length = self.length
        if self._keys is not None:
            copy._keys, copy._values = (_repeat(ring, count).clone() for ring in (self._keys, self._values))
        return copy


def _room(like: Tensor, capacity: int) -> Tensor:
    """Uninitialised (B, H, capacity, D) for more keys or values like (B, H, ., D)."""
    B, H, _, D = like.shape
    return torch.empty(B, H, capacity, D, dtype=like.dtype, device=like.device)


def _repeat(tensor: Tensor | None, count: int) -> Tensor | None:
    return None if tensor is None else tensor.expand(count, *tensor.shape[1:])


def _repeat_state(state, count: int):
    """The same for what has a `repeat` of its own; a memory without a state has None."""
    return None if state is None else state.repeat(count)


@dataclass
class KeyState:
    """What a key extractor carries from token to token: lambda (H, 1, 1), which stays, and the leaky average."""

    decay: Tensor
    average: Tensor | None = None  # (B, H, 1, D)

    def repeat(self, count: int) -> "KeyState":
        """The same for each of `count` texts."""
        return replace(self, average=_repeat(self.average, count))


@dataclass
class GatedKeyState:
    """What a gated key extractor carries on: its newest average (B, H, 1, D) and the scale taken out of it
    (B, H, 1, 1), see `gated.gated_average`."""

    newest: tuple[Tensor, Tensor] | None = None

    def repeat(self, count: int) -> "GatedKeyState":
        """The same for each of `count` texts."""
        return GatedKeyState(self.newest and tuple(_repeat(tensor, count) for tensor in self.newest))


@dataclass
class ValueState:
    """What a value extractor carries on: gamma and alpha (H, 1, 1), which stay, and the content of the newest token."""

    gamma: Tensor
    alpha: Tensor
    pending: Tensor | None = None  # (B, H, 1, D)


@dataclass
class ContextualCache:
    """State of one contextual memory: the scalars of its read, which stay, and the pairs stored so far.

    The newest token's pair is pending: its value needs the token after it.
    """

    keys: KeyState | GatedKeyState | None
    values: ValueState
    scalars: tuple[Tensor, ...]
    pairs: GrowingPairs | FixedPairs | WindowPairs = field(default_factory=GrowingPairs)
    pending_key: Tensor | None = None  # (B, H, 1, D)

    def store(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store the pairs that the newest tokens complete, given their keys (B, H, n, D) and the values that end before
        the newest; returns queries, one for each value, and the keys and values that they may read."""
        if isinstance(self.pairs, FixedPairs):
            return keys, *self.pairs.append(keys.to(values.dtype), values)
        stored, queries = ops.after_pending(self.pending_key, keys)
        self.pending_key = ops.newest(keys)
        return queries, *self.pairs.append(stored.to(values.dtype), values)

    def repeat(self, count: int) -> "ContextualCache":
        """A copy for each of `count` texts."""
        return replace(
            self,
            keys=_repeat_state(self.keys, count),
            values=replace(self.values, pending=_repeat(self.values.pending, count)),
            pairs=self.pairs.repeat(count),
            pending_key=_repeat(self.pending_key, count),
        )


@dataclass
class WindowedCache:
    """State of contextual memories that stand side by side, in the order of their names."""

    memories: list[ContextualCache]

    def repeat(self, count: int) -> "WindowedCache":
        """A copy for each of `count` texts."""
        return WindowedCache([memory.repeat(count) for memory in self.memories])


@dataclass
class PersistentCache:
    """State of one persistent memory: only that of its keys; the scalars of its read stay."""

    keys: KeyState | GatedKeyState | None
    scalars: tuple[Tensor, ...]

    def repeat(self, count: int) -> "PersistentCache":
        """The same for each of `count` texts."""
        return replace(self, keys=_repeat_state(self.keys, count))


@dataclass
class MemoryCache:
    """All that a mosaic remembers of a text: one pair of caches per block. `length` counts the tokens read."""

    contextual: list[ContextualCache | WindowedCache]
    persistent: list[PersistentCache | None]
    length: int = 0

    def repeat(self, count: int) -> "MemoryCache":
        """A copy of what a single text (B = 1) left behind, for each of `count` texts that go on from it."""
        contextual = [cache.repeat(count) for cache in self.contextual]
        return MemoryCache(contextual, [_repeat_state(cache, count) for cache in self.persistent], self.length)

    def fix(self, *newest: Tensor) -> list[FixedPairs]:
        """Keep the pairs of all memories in `FixedPairs` from now on, with the same places of the newest for all."""
        for cache in self.contextual:
            keys, values = cache.pairs.stored(like=cache.values.pending)
            cache.pairs = FixedPairs(torch.cat([keys, cache.pending_key.to(keys.dtype)], dim=2), values, *newest)
            cache.pending_key = None
        return [cache.pairs for cache in self.contextual]


@dataclass
class AttentionCache:
    """What the baseline keeps: keys and values of every layer. `length` counts the tokens read."""

    layers: list[GrowingPairs | FixedPairs]
    length: int = 0
    newest: Tensor | None = None
    """Position (1,) of the newest token on the device, where a recorded step needs it there."""

    def repeat(self, count: int) -> "AttentionCache":
        """A copy of what a single text (B = 1) left behind, for each of `count` texts that go on from it."""
        return AttentionCache([layer.repeat(count) for layer in self.layers], self.length)

    def fix(self, *newest: Tensor) -> list[FixedPairs]:
        """Keep the pairs of all layers in `FixedPairs` from now on, with the same places of the newest for all."""
        self.newest, _ = newest
        self.layers = [FixedPairs(*layer.stored(), *newest) for layer in self.layers]
        return self.layers
