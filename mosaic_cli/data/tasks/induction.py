"""Induction (arXiv 2209.11895): a random string, then a stretch of it again, of which the first character is the cue.

No character stands twice in the string, so what follows a repeated one is known.
"""

from mosaic_cli.data.tasks.associations import MARK, SYMBOLS, Answer, Association, AssociationTask
from mosaic_cli.data.tasks.draws import Draws


def write(draws: Draws, length: int) -> Association:
    """A string of `length`, the mark, a cue, and the length // 2 characters that followed it."""
    string = draws.chosen(SYMBOLS, length)
    copied = length // 2
    cue = draws.integer(0, length - 1 - copied)
    first = length + 2  # the mark and the cue stand before the first answer
    answers = [Answer(first + n, cue + 1 + n, length - 1 - n) for n in range(copied)]
    return Association("".join([*string, MARK, *string[cue : cue + 1 + copied]]), tuple(answers))


INDUCTION = AssociationTask(write, SYMBOLS + MARK, ignored="")
