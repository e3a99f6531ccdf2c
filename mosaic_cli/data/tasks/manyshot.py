"""Many-shot classification in context: short requests, each followed by the label of its class.

A class is an action and a thing: `please drop my trip` is of the class of cancelling a flight. Its label is two tokens,
and either *semantic*, `CANCEL FLIGHT`, or *anonymous*, two digits that mean this class in this row alone. A row draws
its classes, their labels and the order of its requests. The classes of validation and of test rows are pairs that no
training row has, though each action and each thing has been seen: so a semantic label can be put together from what was
learned, and an anonymous one only be looked up in the row. The set-up is that of arXiv 2507.03285 in kind.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mosaic_cli.data.tasks.draws import Draws
from mosaic_cli.data.tasks.task import HELD_OUT_SEED, NUM_VALIDATION, Task

ASKS, ENDS = ":", "|"  # before a label and after it
CLASSES = 8  # of a row
TRAINING_SHOTS = (4, 24)  # requests of a training row, at least and at most
TEST_SHOTS = 96
MODES = ("semantic", "anonymous")
DIGITS = tuple("0123456789")

_ACTIONS = """
CANCEL cancel drop stop abandon
BUY buy order purchase get
CHANGE change alter edit adjust
FIND find locate spot trace
SEND send post mail ship
REPAIR repair fix mend restore
SELL sell trade auction offload
LEND lend loan rent share
CLEAN clean wash scrub polish
PAINT paint colour decorate varnish
PACK pack wrap box bundle
CHECK check inspect examine test
"""
_THINGS = """
FLIGHT flight plane trip
CAR car truck van
PIZZA pizza pasta soup
COAT coat jacket scarf
BOOK book novel diary
PIANO piano guitar violin
TABLE table desk bench
WATCH watch clock alarm
PLANT plant tree shrub
DOG dog puppy hound
HOUSE house cabin flat
PHONE phone tablet laptop
BOAT boat canoe raft
LAMP lamp lantern torch
RING ring necklace bracelet
BIKE bike scooter tricycle
"""
_REQUESTS = """
please {do} my {thing}
can you {do} the {thing}
i want to {do} a {thing} today
how do i {do} this {thing}
help me {do} the old {thing}
it is time to {do} our {thing}
you should {do} that {thing} now
could someone {do} the {thing} for me
"""


def _table(text: str) -> dict[str, tuple[str, ...]]:
    """The label's word -> the words that a request may use for it."""
    rows = (line.split() for line in text.split("\n") if line)
    return {row[0]: tuple(row[1:]) for row in rows}


ACTIONS, THINGS = _table(_ACTIONS), _table(_THINGS)
REQUESTS = tuple(_REQUESTS.strip().split("\n"))
LABEL_WORDS = (*ACTIONS, *THINGS, *DIGITS)
_USED = {word for words in (*ACTIONS.values(), *THINGS.values()) for word in words}
_FILLING = {word for request in REQUESTS for word in request.split() if "{" not in word}
OTHER_WORDS = (*sorted(_USED | _FILLING), ASKS, ENDS)
_TRAINING, _VALIDATION, _TEST = 0, 1, 2  # streams of rows, and of the classes that they are about
# every fourth pair is for validation, every fourth for testing, and in each every action and thing comes about alike
_SPLIT = (_TRAINING, _TRAINING, _VALIDATION, _TEST)

Class = tuple[str, str]


@dataclass(frozen=True)
class Shot:
    """One request of a row.

    position: the token in which its label begins. seen: how often its class came before. labels: how many labels the
    row has shown before.
    """

    position: int
    seen: int
    labels: int


@dataclass(frozen=True)
class ManyShot:
    """A row: requests and labels, a token a word."""

    text: str
    shots: tuple[Shot, ...]


def classes(stream: int) -> list[Class]:
    """The pairs of action and thing that rows of a stream are about."""
    pairs = [(a, t, action, thing) for a, action in enumerate(ACTIONS) for t, thing in enumerate(THINGS)]
    return [(action, thing) for a, t, action, thing in pairs if _SPLIT[(a + t) % len(_SPLIT)] == stream]


def write(draws: Draws, stream: int, mode: str, shots: int) -> ManyShot:
    """A row of `shots` requests about classes of a stream, each drawn by itself."""
    known = classes(stream)
    chosen = [known[index] for index in _different(draws, len(known))]
    numbers = [divmod(index, 10) for index in _different(draws, 100)]
    labels = chosen if mode == "semantic" else [(DIGITS[tens], DIGITS[ones]) for tens, ones in numbers]
    words: list[str] = []
    found: list[Shot] = []
    seen = [0] * CLASSES
    for _ in range(shots):
        which = draws.integer(0, CLASSES - 1)
        words += [*_request(draws, *chosen[which]), ASKS]
        found.append(Shot(len(words), seen[which], sum(count > 0 for count in seen)))
        words += [*labels[which], ENDS]
        seen[which] += 1
    return ManyShot(" ".join(words), tuple(found))


def testing_problems(mode: str, count: int) -> list[ManyShot]:
    """Rows of `TEST_SHOTS` requests, about classes that no training or validation row has."""
    return [write(Draws(HELD_OUT_SEED, _TEST, MODES.index(mode), row), _TEST, mode, TEST_SHOTS) for row in range(count)]


def _request(draws: Draws, action: str, thing: str) -> list[str]:
    words = {"do": _one(draws, ACTIONS[action]), "thing": _one(draws, THINGS[thing])}
    return _one(draws, REQUESTS).format(**words).split()


def _one(draws: Draws, options: tuple[str, ...]) -> str:
    return options[draws.integer(0, len(options) - 1)]


def _different(draws: Draws, count: int) -> list[int]:
    """`CLASSES` different numbers below `count`."""
    return draws.uniform(count).argsort()[:CLASSES].tolist()


def _mixed(count: int, seed: int, stream: int) -> Iterator[str]:
    """Rows of either mode, of as many requests as training has."""
    for row in range(count):
        draws = Draws(seed, stream, row)
        mode = MODES[draws.integer(0, len(MODES) - 1)]
        yield write(draws, stream, mode, draws.integer(*TRAINING_SHOTS)).text


TASK = Task(
    alphabet=(*LABEL_WORDS, *OTHER_WORDS),
    longest=TRAINING_SHOTS[1] * (max(len(request.split()) for request in REQUESTS) + 4),
    ignored=" ".join(OTHER_WORDS),
    after=None,
    training=lambda count, seed: _mixed(count, seed, _TRAINING),
    validation=lambda: _mixed(NUM_VALIDATION, HELD_OUT_SEED, _VALIDATION),
)
