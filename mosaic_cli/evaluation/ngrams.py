"""In-context n-gram models with back-off: what counting the text so far can do, without any training.

The letters that have followed the last n - 1 letters keep their share of all the times that these were read; the time
just read, and those where a string ended, have no letter to show, and their share is left over. It goes to the other
letters seen in the problem, as the model of order n - 1 weighs them. Strings are counted apart: nothing follows from
one to the next, and a string's beginning is a context like any other. These are the models of arXiv 2401.12973.
"""

from collections import Counter, defaultdict

import numpy as np

START = -1  # stands before a string, as often as a context is long


def ngram_predictions(text: str, order: int, letters: str) -> np.ndarray:
    """The distribution over `letters` after each character of a problem, (len(text), len(letters)).

    Args:
        text: letters, and any other characters as separators of strings.
        order: n, at least 2: the letters that a context and what follows it make up.

    A row is all zero before the first letter, and sums to less than one where every letter seen so far has followed
    the context.
    """
    index = {letter: number for number, letter in enumerate(letters)}
    reads: Counter[tuple] = Counter()  # how often each context of up to order - 1 letters was read
    follows: defaultdict[tuple, Counter[int]] = defaultdict(Counter)
    beginning = [START] * (order - 1)
    rows = np.zeros((len(text), len(letters)))
    string, before = beginning, _contexts(beginning)
    reads.update(before)
    for row, character in zip(rows, text, strict=True):
        letter = index.get(character)
        if letter is None:
            string = beginning
        else:
            for context in before:
                follows[context][letter] += 1
            string = [*string[1:], letter]
        before = _contexts(string)
        reads.update(before)
        for seen, share in _backed_off(before, reads, follows).items():
            row[seen] = share
    return rows


def _contexts(string: list[int]) -> list[tuple]:
    """What ends the string, from nothing up to all of it."""
    return [tuple(string[len(string) - length :]) for length in range(len(string) + 1)]


def _backed_off(contexts: list[tuple], reads: Counter, follows: dict[tuple, Counter]) -> dict[int, float]:
    """The share of each letter, by the longest context and, for letters that it does not know, the shorter ones."""
    known = [(context, follows[context]) for context in contexts if context in follows]
    if not known:
        return {}
    seen = known[0][1]
    total = seen.total()
    shares = {letter: count / total for letter, count in seen.items()}
    for context, followed in known[1:]:
        others = {letter: share for letter, share in shares.items() if letter not in followed}
        shares = {letter: count / reads[context] for letter, count in followed.items()}
        if others:
            factor = (1 - sum(shares.values())) / sum(others.values())
            shares |= {letter: share * factor for letter, share in others.items()}
    return shares
