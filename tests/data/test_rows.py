"""Rows: whole problems, targets that count, trimmed parts, and a stream that is taken up exactly."""

import numpy as np
import pytest
from prepared import run

from mosaic_cli.data.batches import IGNORED, Batch, WindowBatches
from mosaic_cli.data.rows import RowBatches, Rows, batches_of, open_data
from mosaic_cli.data.shards import RowRule
from mosaic_cli.data.tasks import regbench
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.errors import UsageError

END = 9
X = IGNORED


def _rows(array_tokens, *rows, ignored=(), after=None, longest=8):
    ids = [token for row in rows for token in (*row, END)]
    return Rows(array_tokens(ids), RowRule(longest, list(ignored), after), END)


def test_a_batch_holds_whole_rows_and_what_is_asked(array_tokens):
    rows = _rows(array_tokens, [1, 2, 7, 3], [4, 5], ignored=[7])
    batch = rows.batch([0, 1])
    assert batch.inputs.tolist() == [[1, 2, 7], [4, 0, 0]]
    assert batch.targets.tolist() == [[2, X, 3], [5, X, X]]
    assert batch.asked == 3 and len(rows) == 2 and rows.length(0) == 4


def test_what_comes_before_the_mark_is_not_asked(array_tokens):
    rows = _rows(array_tokens, [1, 2, 8, 1, 2, 3, 8], after=8, ignored=[3])
    assert rows.batch([0]).targets.tolist() == [[X, X, X, 2, X, 8]], "nor the token right behind the mark"


def test_parts_are_trimmed_to_the_last_target_that_counts():
    targets = np.array([[1, X, X, X], [X, 2, X, X], [X, X, X, X], [3, 4, 5, X]])
    batch = Batch(np.arange(16).reshape(4, 4), targets)
    assert [part.inputs.tolist() for part in batch.parts(2)] == [[[0, 1], [4, 5]], [[8, 9, 10], [12, 13, 14]]]
    assert [len(part.inputs) for part in batch.parts(1)] == [1, 1, 1], "a part without any is left out"
    assert sum(part.asked for part in batch.parts(3)) == batch.asked


def test_an_epoch_visits_every_row_once_and_sorts_each_batch(array_tokens):
    rows = _rows(array_tokens, *([row] * (2 + row % 5) for row in range(8)))
    batches = RowBatches(rows, 7, 4, seed=0)
    for _ in range(3):
        epoch = [next(batches), next(batches)]
        assert sorted(np.concatenate([batch.inputs[:, 0] for batch in epoch]).tolist()) == list(range(8))
        for batch in epoch:
            lengths = (batch.targets != X).sum(axis=1)
            assert (np.diff(lengths) >= 0).all()


@pytest.mark.parametrize("before", [0, 3, 11])
def test_a_stream_taken_up_goes_on_exactly(array_tokens, before):
    rows = _rows(array_tokens, *([row, row] for row in range(7)))
    one, other = (RowBatches(rows, 7, 3, seed=5) for _ in range(2))
    for _ in range(before):
        next(one)
    other.load_state_dict(one.state_dict())
    for _ in range(10):
        np.testing.assert_array_equal(next(one).inputs, next(other).inputs)


def test_a_context_that_a_row_does_not_fit_is_refused(array_tokens):
    rows = _rows(array_tokens, [1, 2], longest=8)
    assert isinstance(batches_of(rows, 7, 1, 0), RowBatches)
    assert isinstance(batches_of(array_tokens(range(9)), 7, 1, 0), WindowBatches)
    with pytest.raises(UsageError, match="8 tokens, more than a context of 6") as caught:
        RowBatches(rows, 6, 1, 0)
    assert caught.value.hint == "Set it to 7 or more."


def test_rows_in_order_are_bounded_by_what_is_asked(array_tokens):
    rows = _rows(array_tokens, [1, 2, 3], [4, 5, 6, 7], [1, 7])
    for bound, expected in ((None, 3), (6, 3), (5, 2), (4, 1), (1, 1)):
        batches = list(rows.in_order(bound, batch_tokens=8))
        assert sum(len(batch.inputs) for batch in batches) == expected
        assert sum(batch.asked for batch in batches) == rows.asked_within(bound)
    assert [len(batch.inputs) for batch in rows.in_order(None, 1)] == [1, 1, 1]


def test_prepared_problems_are_read_back_as_rows(tmp_path):
    manifest = run(tmp_path / "out", source="builtin", builtin="regbench", num_documents=5, tokenizer="char", seed=2)
    assert manifest.rows == RowRule(949, [18]) and manifest.vocab_size == 20
    tokenizer, rows = Tokenizer.load(tmp_path / "out" / "tokenizer.json"), open_data(tmp_path / "out", "train")
    texts = [problem.text for problem in regbench.training_problems(5, seed=2)]
    assert [tokenizer.decode(rows.read(row)) for row in range(len(rows))] == texts
    assert (manifest.train.documents, manifest.val.documents) == (5, 500)
