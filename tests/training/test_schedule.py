"""The learning rate as a function of the step."""

import pytest

from mosaic_cli.recipe import TrainSection
from mosaic_cli.training.schedule import learning_rate

TRAIN = TrainSection(max_steps=100, warmup_steps=10, learning_rate=1.0, min_lr=0.1)


def test_it_rises_then_falls_to_the_minimum():
    rates = [learning_rate(step, TRAIN) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_half_way_down_is_the_mean():
    train = TRAIN.model_copy(update={"max_steps": 111})
    assert learning_rate(60, train) == pytest.approx(0.55)


def test_steps_beyond_the_end_and_runs_of_one_step_are_defined():
    assert learning_rate(10_000, TRAIN) == pytest.approx(0.1)
    assert learning_rate(0, TRAIN.model_copy(update={"max_steps": 1, "warmup_steps": 0})) == 1.0
