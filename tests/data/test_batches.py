"""The stream of windows: every token once an epoch, and exact resume."""

import numpy as np
import pytest

from mosaic_cli.data.batches import WindowBatches
from mosaic_cli.errors import DataError


def _windows(batch):
    """Inputs and the last target: the windows that the batch was made of."""
    assert (batch.inputs[:, 1:] == batch.targets[:, :-1]).all()
    return np.concatenate([batch.inputs, batch.targets[:, -1:]], axis=1)


def test_an_epoch_visits_every_window_once(array_tokens):
    batches = WindowBatches(array_tokens(range(103)), context_length=10, batch_size=3, seed=0)
    offset, order = batches.offset, batches.order
    windows = np.concatenate([_windows(next(batches)) for _ in range(len(order) // 3)])
    assert sorted(windows[:, 0]) == [offset + 10 * i for i in range(len(order))][: len(windows)]
    assert (windows == windows[:, :1] + np.arange(11)).all(), "inputs and targets are neighbours in the text"


def test_epochs_differ_in_order_and_offset(array_tokens):
    batches = WindowBatches(array_tokens(range(1000)), 10, 1, seed=0)
    seen = set()
    for epoch in range(8):
        batches._start_epoch(epoch, 0)
        seen.add((batches.offset, tuple(batches.order[:5])))
    assert len(seen) == 8 and len({offset for offset, _ in seen}) > 2


@pytest.mark.parametrize("before", [0, 1, 7, 40])
def test_a_stream_taken_up_goes_on_exactly(array_tokens, before):
    tokens = array_tokens(range(64))
    one, other = (WindowBatches(tokens, 5, 4, seed=3) for _ in range(2))
    for _ in range(before):
        next(one)
    other.load_state_dict(one.state_dict())
    for _ in range(20):
        np.testing.assert_array_equal(next(one), next(other))


def test_seeds_give_other_orders(array_tokens):
    tokens = array_tokens(range(500))
    assert not np.array_equal(next(WindowBatches(tokens, 5, 8, 1)).inputs, next(WindowBatches(tokens, 5, 8, 2)).inputs)


def test_a_text_of_exactly_one_window_serves(array_tokens):
    batches = WindowBatches(array_tokens(range(6)), 5, 2, 0)
    assert _windows(next(batches)).tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_a_text_shorter_than_a_window_is_refused(array_tokens):
    with pytest.raises(DataError, match="has 5 tokens, but one window needs 6"):
        WindowBatches(array_tokens(range(5)), 5, 1, 0)
