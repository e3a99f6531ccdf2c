"""Tasks of association: a list is shown, then asked back. How long it is makes a problem hard."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mosaic_cli.data.tasks.draws import Draws
from mosaic_cli.data.tasks.task import HELD_OUT_SEED, NUM_VALIDATION, Task

MARK = "|"  # ends the list
SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"  # 64, as many as the longest list takes
TRAINING_SIZES = (4, 16)  # items of a list to train on: so few that a problem hardly comes twice, and at most
TEST_SIZES = (4, 8, 16, 32, 64)
_TRAINING, _VALIDATION, _TEST = 0, 1, 2  # streams of problems


@dataclass(frozen=True)
class Answer:
    """A character that is asked for: where it stands, where the list has it, and how many it could be by the list."""

    position: int
    source: int
    choices: int


@dataclass(frozen=True)
class Association:
    """A list, the mark, and answers."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class AssociationTask:
    """How problems with lists of a given number of items are written, and what of them is asked for."""

    write: Callable[[Draws, int], Association]
    alphabet: str
    ignored: str

    @property
    def task(self) -> Task:
        """What `prepare` makes of it: training and validation with lists of any of the training sizes."""
        return Task(
            alphabet=self.alphabet,
            longest=len(self.write(Draws(0), TRAINING_SIZES[1]).text),
            ignored=self.ignored,
            after=MARK,
            training=lambda count, seed: self._mixed(count, seed, _TRAINING),
            validation=lambda: self._mixed(NUM_VALIDATION, HELD_OUT_SEED, _VALIDATION),
        )

    def testing_problems(self, size: int, count: int) -> list[Association]:
        """Problems with lists of `size` items, equally long."""
        return [self.write(Draws(HELD_OUT_SEED, _TEST, size, index), size) for index in range(count)]

    def _mixed(self, count: int, seed: int, stream: int) -> Iterator[str]:
        for index in range(count):
            draws = Draws(seed, stream, index)
            yield self.write(draws, draws.integer(*TRAINING_SIZES)).text
