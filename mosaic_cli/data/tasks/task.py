"""What a built-in task is: problems as texts, and which of their characters a model is asked for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

HELD_OUT_SEED = 20_240_506  # of problems that no run is trained on
NUM_VALIDATION = 500  # problems: enough to choose a checkpoint on, few enough to read often


@dataclass(frozen=True)
class Task:
    """A generator of problems, one text each, in characters of a small alphabet or in words of a small vocabulary."""

    alphabet: str | tuple[str, ...]
    """The tokens: characters, or words, between which a text has spaces."""
    longest: int
    """Tokens that a training or validation problem may have."""
    ignored: str
    """A text of the tokens that are never asked for."""
    after: str | None
    """Where given, only what comes later than the first token behind it is asked for."""
    training: Callable[[int, int], Iterable[str]]
    """(count, seed) -> the problems of a training set; a larger count begins with the same ones."""
    validation: Callable[[], Iterable[str]]
    """The problems of the validation split, the same for every training set."""
