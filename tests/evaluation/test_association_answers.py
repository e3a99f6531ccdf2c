"""Answers to lists, counted by hand on a model that is told what to say."""

import pytest
import torch
from torch import nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.data.tasks.mqar import MQAR
from mosaic_cli.data.tasks.registry import task_tokenizer
from mosaic_cli.device import choose_placement
from mosaic_cli.evaluation.associations import ANSWERS, accuracy, accuracy_by_distance, evaluate_associations

CPU = choose_placement("cpu", "float32")
TOKENS = task_tokenizer("mqar")


class Oracle(nn.Module):
    """Says the token that really comes next, but a wrong one after the last key of each problem."""

    def __init__(self, kind="mosaic", context_length=64):
        super().__init__()
        self.config = ModelConfig(
            kind=kind, num_layers=1, num_heads=1, d_model=1, context_length=context_length, vocab_size=130
        )

    def forward(self, tokens):
        texts = [problem.text for size in (4, 32) for problem in MQAR.testing_problems(size, ANSWERS // size)]
        rows = []
        for ids in tokens.tolist():
            text = next(text for text in texts if text.startswith(TOKENS.decode(ids)))
            said = TOKENS.encode(text)[1:]
            said[-1] = (said[-1] + 1) % 129
            rows.append([*said, 0][: len(ids)])
        return nn.functional.one_hot(torch.tensor(rows), 130).float()


def test_one_wrong_answer_of_each_problem():
    (result,) = evaluate_associations(Oracle(), TOKENS, CPU, MQAR, (4,))
    whole = accuracy([result])
    assert (whole.n, whole.mean) == (ANSWERS, 0.75) and result.unread == 0
    assert result.chance == pytest.approx((1 / 4 + 1 / 3 + 1 / 2 + 1) / 4)
    spans = accuracy_by_distance([result])
    assert sum(row.n for row in spans.values()) == ANSWERS and all(low < high for low, high in spans)


def test_a_transformer_is_asked_what_it_can_read():
    small, large = evaluate_associations(Oracle("transformer", 16), TOKENS, CPU, MQAR, (4, 32))
    assert len(small.answers) == ANSWERS and small.unread == 0
    assert not large.answers and large.unread == ANSWERS and large.chance is None
    assert accuracy([large]).mean is None
