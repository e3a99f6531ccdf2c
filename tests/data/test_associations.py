"""Lists asked back: what is asked is in the list, where the answer says."""

import pytest

from mosaic_cli.data.tasks.associations import MARK, SYMBOLS, TEST_SIZES, TRAINING_SIZES
from mosaic_cli.data.tasks.induction import INDUCTION
from mosaic_cli.data.tasks.mqar import MQAR, VALUES
from mosaic_cli.data.tasks.registry import ASSOCIATIONS

TASKS = pytest.mark.parametrize("task", ASSOCIATIONS.values(), ids=ASSOCIATIONS)


@TASKS
def test_every_answer_stands_in_the_list(task):
    for size in TEST_SIZES:
        problems = task.testing_problems(size, 3)
        assert len({len(problem.text) for problem in problems}) == 1 and problems[0] != problems[1]
        for problem in problems:
            mark = problem.text.index(MARK)
            for answer in problem.answers:
                assert answer.source < mark < answer.position
                assert problem.text[answer.source] == problem.text[answer.position]
                assert problem.text[answer.source - 1] == problem.text[answer.position - 1], "what it is known by"


@TASKS
def test_what_training_asks_for_is_what_the_answers_are(task):
    problem = task.testing_problems(6, 1)[0]
    mark = problem.text.index(MARK)
    asked = [at for at in range(mark + 2, len(problem.text)) if problem.text[at] not in task.task.ignored]
    assert asked == [answer.position for answer in problem.answers]


@TASKS
def test_training_has_lists_of_every_length_and_differs_from_what_is_held_out(task):
    training, validation = list(task.task.training(300, 0)), list(task.task.validation())
    tested = {problem.text for size in TEST_SIZES for problem in task.testing_problems(size, 20)}
    assert {text.index(MARK) for text in training} == {text.index(MARK) for text in validation}
    low, high = TRAINING_SIZES
    assert len({text.index(MARK) for text in training}) == high - low + 1
    assert max(map(len, training)) == task.task.longest
    assert not set(training) & (set(validation) | tested) and not set(validation) & tested
    assert list(task.task.training(20, 0)) == training[:20] != list(task.task.training(20, 1))
    assert set("".join(training)) <= set(task.task.alphabet)


def test_pairs_and_their_questions():
    problem = MQAR.testing_problems(8, 1)[0]
    shown, asked = problem.text.split(MARK)
    pairs = dict(zip(shown[::2], shown[1::2], strict=True))
    assert dict(zip(asked[::2], asked[1::2], strict=True)) == pairs and len(pairs) == len(set(pairs.values())) == 8
    assert set(pairs) <= set(SYMBOLS) and set(pairs.values()) <= set(VALUES)
    assert [answer.choices for answer in problem.answers] == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_stretch_is_copied():
    problem = INDUCTION.testing_problems(9, 1)[0]
    string, copy = problem.text.split(MARK)
    assert copy in string and len(copy) == 5 and len(set(string)) == 9
    assert [answer.choices for answer in problem.answers] == [8, 7, 6, 5]
