"""The learning rate as a pure function of the step: nothing to save, so resume is exact."""

import math

from mosaic_cli.recipe import TrainSection


def learning_rate(step: int, train: TrainSection) -> float:
    """Learning rate of step 0, 1, ...: a linear rise over `warmup_steps`, then half a cosine down to `min_lr`.

    The first step has learning_rate / (warmup_steps + 1), the last exactly `min_lr`.
    """
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / (train.warmup_steps + 1)
    span = max(1, train.max_steps - 1 - train.warmup_steps)
    progress = min(1.0, (step - train.warmup_steps) / span)
    return train.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (train.learning_rate - train.min_lr)
