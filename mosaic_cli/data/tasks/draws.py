"""Random numbers that are the same on every machine and with every version of numpy.

numpy promises that only of the raw stream of a bit generator (NEP 19), not of what its `Generator` makes of it.
"""

import numpy as np


class Draws:
    """Draws of one problem: the key says which, so that any problem can be made without those before it."""

    def __init__(self, *key: int):
        self._bits = np.random.PCG64(list(key))

    def uniform(self, count: int) -> np.ndarray:
        """Numbers in [0, 1), an array (count,)."""
        return (self._bits.random_raw(count) >> np.uint64(11)) * 2.0**-53

    def integer(self, low: int, high: int) -> int:
        """One of low .. high, both included."""
        return low + int(self.uniform(1)[0] * (high - low + 1))

    def order(self, count: int) -> list[int]:
        """0 .. count - 1 in random order."""
        return np.argsort(self.uniform(count)).tolist()

    def chosen(self, items: str, count: int) -> list[str]:
        """`count` different items in random order."""
        return [items[index] for index in self.order(len(items))[:count]]
