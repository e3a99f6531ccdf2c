"""Labels of requests, counted by hand on a model that is told what to say."""

import pytest
import torch
from torch import nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.data.tasks.manyshot import testing_problems as problems_of
from mosaic_cli.data.tasks.registry import task_tokenizer
from mosaic_cli.device import choose_placement
from mosaic_cli.evaluation.manyshot import evaluate_manyshot

CPU = choose_placement("cpu", "float32")
TOKENS = task_tokenizer("manyshot")
ROWS = problems_of("anonymous", 3)


class Oracle(nn.Module):
    """Says the token that really comes next, but a wrong second token of the label of the shots in `wrong`."""

    def __init__(self, wrong=(), kind="mosaic", context_length=300):
        super().__init__()
        size = TOKENS.vocab_size
        self.config = ModelConfig(
            kind=kind, num_layers=1, num_heads=1, d_model=1, context_length=context_length, vocab_size=size
        )
        self._wrong = wrong

    def forward(self, tokens):
        said = torch.zeros(*tokens.shape, dtype=torch.long)
        for line, row in zip(said, ROWS, strict=True):
            ids = TOKENS.encode(row.text)[1:]
            for shot in self._wrong:
                ids[row.shots[shot].position] = 0
            line[: len(ids)] = torch.tensor(ids[: len(line)])
        return nn.functional.one_hot(said, self.config.vocab_size).float()


def _result(model):
    *_, result = evaluate_manyshot(model, TOKENS, CPU, ROWS)
    return result


def test_a_model_that_knows_is_always_right():
    result = _result(Oracle())
    shown, new = result.accuracy(0, 95), result.accuracy(0, 95, shown=False)
    assert shown.mean == new.mean == 1 and shown.n == 3
    chances = [1 / shot.labels for row in ROWS for shot in row.shots[:24] if shot.seen]
    assert result.chance(0, 23) == pytest.approx(sum(chances) / len(chances)) and result.chance(0, 0) is None


def test_half_a_label_is_wrong_and_counts_at_its_number_of_shots():
    result = _result(Oracle(wrong=[40]))
    assert result.accuracy(0, 39).mean == result.accuracy(41, 95).mean == 1
    assert result.accuracy(40, 40).mean == 0


def test_a_transformer_is_asked_what_it_can_read():
    limit = ROWS[0].shots[9].position + 1  # its prediction of the second token is the last one that fits
    result = _result(Oracle(kind="transformer", context_length=limit))
    assert [right for _, right in result.rows[0]] == [True] * 10 + [None] * 86
    assert result.accuracy(24, 95).n == 0 and result.chance(24, 95) is None
