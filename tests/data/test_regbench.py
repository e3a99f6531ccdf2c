"""RegBench: the sampler: minimal automata, no language twice, the same problems everywhere."""

import hashlib
from itertools import islice

import pytest

from mosaic_cli.data.tasks import regbench
from mosaic_cli.data.tasks.draws import Draws
from mosaic_cli.data.tasks.regbench import LONGEST, Language, draw_language, minimal, training_problems

A, B, C = 0, 1, 2


def test_states_that_go_on_alike_become_one():
    # 0 -a-> 1, 0 -b-> 2; from 1 and 2 alike c leads back; 3 is never reached
    edges = [[(B, 2), (A, 1)], [(C, 0)], [(C, 0)], [(A, 0)]]
    assert minimal(edges) == Language((((A, 1), (B, 1)), ((C, 0),)))


def test_numbering_does_not_show_in_the_language():
    one = minimal([[(A, 1)], [(B, 2), (C, 0)], [(A, 0)]])
    other = minimal([[(A, 2)], [(A, 0)], [(C, 0), (B, 1)]])  # states 1 and 2 exchanged
    assert one == other and len(one.transitions) == 3


def test_a_language_of_every_string_of_a_letter_has_one_state():
    assert minimal([[(A, 1)], [(A, 2)], [(A, 0)]]) == Language((((A, 0),),))


def test_drawn_automata_are_as_specified():
    for index in range(100):
        language = draw_language(Draws(7, index))
        assert 1 <= len(language.transitions) <= 12
        assert len({letter for row in language.transitions for letter, _ in row}) <= 18
        for row in language.transitions:
            letters = [letter for letter, _ in row]
            assert 1 <= len(row) <= 3 and letters == sorted(set(letters))
        assert minimal([list(row) for row in language.transitions]) == language


def test_problems_are_strings_of_their_language():
    lengths, counts = [], []
    for problem in training_problems(100, seed=0):
        allowed = problem.language.next_letters(problem.text)
        assert all(allowed) and len(problem.text) <= LONGEST
        strings = problem.text.split("|")
        counts.append(len(strings))
        lengths += map(len, strings)
    assert (min(counts), max(counts)) == (10, 19) and (min(lengths), max(lengths)) == (1, 49)
    assert sum(lengths) / len(lengths) == pytest.approx(25, abs=1)


def test_what_may_follow_is_known_at_every_character():
    language = Language((((A, 1), (B, 0)), ((C, 0),)))
    assert language.next_letters("ac|b") == [[C], [A, B], [A, B], [A, B]]
    with pytest.raises(ValueError, match="not of this language"):
        language.next_letters("c")


def test_no_language_comes_twice_or_in_two_splits():
    problems = [*training_problems(300, seed=0), *regbench.validation_problems(), *regbench.testing_problems()]
    assert len({problem.language for problem in problems}) == 300 + 500 + 500


def test_a_larger_training_set_begins_with_the_smaller_and_seeds_differ():
    small, large = list(training_problems(20, seed=3)), list(islice(training_problems(60, seed=3), 20))
    assert small == large
    assert not {p.language for p in small} & {p.language for p in training_problems(20, seed=4)}


def test_problems_are_the_same_on_every_machine():
    text = "\n".join(problem.text for problem in [*training_problems(10, 0), *regbench.testing_problems()[:10]])
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "e40989bd012b674642f08fd34daba37fe678dcd575254b024b46af7263006dc0"
    )
