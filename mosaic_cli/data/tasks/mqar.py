"""Multi-query associative recall (arXiv 2312.04927): pairs of a key and a value, then each key asked for its value.

A key and a value are characters of two alphabets. Keys are different, values too; the questions come in random order.
"""

from mosaic_cli.data.tasks.associations import MARK, SYMBOLS, Answer, Association, AssociationTask
from mosaic_cli.data.tasks.draws import Draws

VALUES = "".join(map(chr, range(0x410, 0x450)))  # 64 Cyrillic letters


def write(draws: Draws, pairs: int) -> Association:
    """`k1 v1 k2 v2 ... | k2 v2 k1 v1 ...`, without the spaces: 4 * pairs + 1 characters."""
    keys, values = draws.chosen(SYMBOLS, pairs), draws.chosen(VALUES, pairs)
    shown = "".join(key + value for key, value in zip(keys, values, strict=True))
    order = draws.order(pairs)
    asked = "".join(keys[item] + values[item] for item in order)
    first = len(shown) + 2  # the mark and a key stand before the first answer
    answers = [Answer(first + 2 * number, 2 * item + 1, pairs - number) for number, item in enumerate(order)]
    return Association(shown + MARK + asked, tuple(answers))


MQAR = AssociationTask(write, SYMBOLS + VALUES + MARK, ignored=SYMBOLS)
