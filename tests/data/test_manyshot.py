"""Many-shot rows: labels mean what they should, and what is held out was never trained on."""

from mosaic_cli.data.tasks import manyshot
from mosaic_cli.data.tasks.draws import Draws
from mosaic_cli.data.tasks.manyshot import ACTIONS, CLASSES, ENDS, LABEL_WORDS, MODES, OTHER_WORDS, TASK, THINGS
from mosaic_cli.data.tasks.registry import task_tokenizer

TRAINING, VALIDATION, TEST = 0, 1, 2


def _requests(text):
    """The words of each request, and its label."""
    pairs = [part.split(" : ") for part in text.removesuffix(f" {ENDS}").split(f" {ENDS} ")]
    return [(request.split(), tuple(label.split())) for request, label in pairs]


def test_a_word_is_the_cue_of_one_class_or_none():
    cues = [word for words in (*ACTIONS.values(), *THINGS.values()) for word in words]
    assert len(set(cues)) == len(cues)
    assert all(set(request.split()) & set(cues) == set() for request in manyshot.REQUESTS)
    assert not set(LABEL_WORDS) & set(OTHER_WORDS)


def test_semantic_labels_are_what_the_words_say():
    for index in range(20):
        requests = _requests(manyshot.write(Draws(3, index), TRAINING, "semantic", 24).text)
        assert len(requests) == 24 and len({label for _, label in requests}) <= CLASSES
        for words, (action, thing) in requests:
            assert sum(word in ACTIONS[action] for word in words) == sum(word in THINGS[thing] for word in words) == 1


def test_anonymous_labels_stand_for_one_class_in_a_row_and_for_others_in_the_next():
    meanings = []
    for index in range(20):
        row = manyshot.write(Draws(3, index), TRAINING, "anonymous", 24)
        meaning = {}
        for words, label in _requests(row.text):
            cues = [name for table in (ACTIONS, THINGS) for name in table for word in words if word in table[name]]
            assert meaning.setdefault(label, cues) == cues
        assert len({tuple(cues) for cues in meaning.values()}) == len(meaning)
        meanings.append(meaning)
    assert len({tuple(one[label]) for one in meanings for label in one if label == ("0", "7")}) != 1


def test_shots_say_where_labels_stand_and_what_came_before():
    for mode in MODES:
        (row,) = manyshot.testing_problems(mode, 1)
        words, labels = row.text.split(), [label for _, label in _requests(row.text)]
        for number, (shot, label) in enumerate(zip(row.shots, labels, strict=True)):
            assert tuple(words[shot.position : shot.position + 2]) == label
            assert shot.seen == labels[:number].count(label) and shot.labels == len(set(labels[:number]))


def test_held_out_classes_are_new_pairs_of_what_training_has():
    known = [set(manyshot.classes(stream)) for stream in (TRAINING, VALIDATION, TEST)]
    assert sum(map(len, known)) == len(set.union(*known)) == len(ACTIONS) * len(THINGS)
    for split in known:
        assert {action for action, _ in split} == set(ACTIONS) and {thing for _, thing in split} == set(THINGS)


def test_rows_fit_and_are_asked_for_their_labels_alone():
    tokenizer = task_tokenizer("manyshot")
    rows = list(TASK.training(60, 0))
    assert rows[:20] == list(TASK.training(20, 0)) != list(TASK.training(20, 1))
    ignored = set(tokenizer.encode(TASK.ignored))
    for text in rows + list(TASK.validation())[:20]:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.split()) <= TASK.longest and tokenizer.decode(ids) == text
        asked = [word for word, id in zip(text.split(), ids, strict=True) if id not in ignored]
        assert asked == [word for _, label in _requests(text) for word in label]


def test_rows_are_the_same_on_every_machine():
    expected = "it is time to share our novel : LEND BOOK | please order my pasta : BUY PIZZA |"
    assert manyshot.write(Draws(5), TEST, "semantic", 2).text == expected
