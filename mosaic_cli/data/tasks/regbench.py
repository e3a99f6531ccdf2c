"""RegBench: random regular languages, each shown by some of its strings, to be learned in context (arXiv 2401.12973).

Unlike there, no language comes twice, whatever its automaton looked like when it was drawn, and what is held out is
fixed by this file alone: neither the seed nor the number of training languages changes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from mosaic_cli.data.tasks.draws import Draws
from mosaic_cli.data.tasks.task import HELD_OUT_SEED, NUM_VALIDATION, Task

LETTERS = "abcdefghijklmnopqr"
SEPARATOR = "|"
STATES, LETTERS_USED, EDGES = (4, 12), (4, 18), (1, 3)  # at least and at most, of an automaton as it is drawn
STRINGS, STRING_LENGTH = (10, 19), (1, 49)  # of a problem
NUM_TEST = 500  # languages: the standard error of an accuracy of .93 is about .002
LONGEST = STRINGS[1] * STRING_LENGTH[1] + STRINGS[1] - 1  # characters of the longest problem
_TRAINING, _HELD_OUT = 0, 1  # streams of languages

Transitions = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True)
class Language:
    """The minimal automaton of a language that holds every prefix of its strings: all states accept, state 0 starts.

    `transitions[state]` is the (letter, next state) of each letter that may follow, in the order of letters. States are
    numbered in the order in which a search from the start first meets them, so equal languages are equal objects.
    """

    transitions: Transitions

    def next_letters(self, text: str) -> list[list[int]]:
        """For each character of a problem, the letters that may follow it; after a separator, those that may begin.

        Raises:
            ValueError: a character that cannot stand where it does.
        """
        allowed, state = [], 0
        for character in text:
            state = 0 if character == SEPARATOR else dict(self.transitions[state]).get(LETTERS.index(character))
            if state is None:
                raise ValueError(f"{text!r} is not of this language")
            allowed.append([letter for letter, _ in self.transitions[state]])
        return allowed

    def write(self, draws: Draws) -> str:
        """A problem: strings of the language, letters and lengths uniform."""
        lengths = _integers(draws.uniform(draws.integer(*STRINGS)), *STRING_LENGTH)
        choices = iter(draws.uniform(sum(lengths)).tolist())
        states: list[list[tuple]] = [[] for _ in self.transitions]
        for state, edges in zip(states, self.transitions, strict=True):
            state += [(LETTERS[letter], states[target]) for letter, target in edges]
        strings = []
        for length in lengths:
            state, string = states[0], []
            for choice in islice(choices, length):
                letter, state = state[int(choice * len(state))]
                string.append(letter)
            strings.append("".join(string))
        return SEPARATOR.join(strings)


@dataclass(frozen=True)
class Problem:
    """Strings of one language, a separator between each two."""

    language: Language
    text: str


def draw_language(draws: Draws) -> Language:
    """A random automaton, minimised: each state has 1 to 3 edges with different letters to different other states."""
    num_states, num_letters = draws.integer(*STATES), draws.integer(*LETTERS_USED)
    alphabet = np.argsort(draws.uniform(len(LETTERS)))[:num_letters]
    num_edges = _integers(draws.uniform(num_states), *EDGES)
    letters = alphabet[_orders(draws, num_states, num_letters)]  # (states, most edges)
    targets = _orders(draws, num_states, num_states - 1)
    targets = targets + (targets >= np.arange(num_states)[:, None])  # the others: a state has no edge to itself
    rows = zip(letters.tolist(), targets.tolist(), num_edges, strict=True)
    return minimal([list(zip(row[:n], to[:n], strict=True)) for row, to, n in rows])


def minimal(edges: list[list[tuple[int, int]]]) -> Language:
    """The language of an automaton that starts at state 0, all states accepting; `edges[state]` as (letter, state).

    States that allow the same continuations become one (Moore's refinement), and those that are not reached go.
    """
    edges = [sorted(row) for row in edges]
    classes, count = [0] * len(edges), 1
    while True:
        numbers: dict[tuple, int] = {}
        signatures = [tuple([(letter, classes[target]) for letter, target in row]) for row in edges]
        classes = [numbers.setdefault(signature, len(numbers)) for signature in signatures]
        if len(numbers) == count:
            break
        count = len(numbers)
    members = dict(zip(classes, edges, strict=True))
    order = {classes[0]: 0}
    queue = [classes[0]]
    for number in queue:  # grows while it is read
        for _, target in members[number]:
            if classes[target] not in order:
                order[classes[target]] = len(order)
                queue.append(classes[target])
    return Language(tuple(tuple((letter, order[classes[t]]) for letter, t in members[number]) for number in queue))


def training_problems(count: int, seed: int) -> Iterator[Problem]:
    """Problems of `count` different languages, none of them held out; a larger count begins with the same ones."""
    return _different(count, (seed, _TRAINING), {problem.language for problem in _held_out()})


def validation_problems() -> Iterator[Problem]:
    """Problems of the languages to validate on."""
    return iter(_held_out()[:NUM_VALIDATION])


def testing_problems() -> list[Problem]:
    """Problems of the languages to test on, different from all others."""
    return list(_held_out()[NUM_VALIDATION:])


@cache
def _held_out() -> tuple[Problem, ...]:
    return tuple(_different(NUM_VALIDATION + NUM_TEST, (HELD_OUT_SEED, _HELD_OUT), set()))


def _different(count: int, key: tuple[int, int], seen: set[Language]) -> Iterator[Problem]:
    """A problem of each of the first `count` languages of a stream that are not in `seen`, which takes them up."""
    candidate, found = 0, 0
    while found < count:
        draws = Draws(*key, candidate)
        candidate += 1
        language = draw_language(draws)
        if language not in seen:
            seen.add(language)
            found += 1
            yield Problem(language, language.write(draws))


def _orders(draws: Draws, rows: int, columns: int) -> np.ndarray:
    """In each row the first of a random order of the columns, as many as a state may have edges: (rows, most edges)."""
    return np.argsort(draws.uniform(rows * columns).reshape(rows, columns), axis=1)[:, : EDGES[1]]


def _integers(uniform: np.ndarray, low: int, high: int) -> list[int]:
    return [low + int(draw * (high - low + 1)) for draw in uniform.tolist()]


TASK = Task(
    alphabet=LETTERS + SEPARATOR,
    longest=LONGEST,
    ignored=SEPARATOR,
    after=None,
    training=lambda count, seed: (problem.text for problem in training_problems(count, seed)),
    validation=lambda: (problem.text for problem in validation_problems()),
)
