"""RegBench's metrics on an automaton worked by hand, for models and for counting."""

import numpy as np
import pytest
import torch
from torch import nn

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.data.tasks import regbench
from mosaic_cli.data.tasks.regbench import LETTERS, Language, Problem
from mosaic_cli.data.tasks.registry import check_trained_on, task_tokenizer
from mosaic_cli.data.tokenizer import Tokenizer
from mosaic_cli.device import choose_placement
from mosaic_cli.errors import UsageError
from mosaic_cli.evaluation.ngrams import ngram_predictions
from mosaic_cli.evaluation.regbench import RegBenchResult, compare, evaluate_ngram, evaluate_regbench

CPU = choose_placement("cpu", "float32")
TOKENS = task_tokenizer("regbench")
A, B, C = 0, 1, 2
# from the start a or b; after a only c, which leads back; b leads back at once
HAND = Language((((A, 1), (B, 0)), ((C, 0),)))
PROBLEM = Problem(HAND, "ac|ba")


def _one_hot(*tokens):
    return np.eye(TOKENS.vocab_size)[list(tokens)]


def test_figures_worked_by_hand():
    # after a: c. after c, | and b: a or b. The last a is not read
    predicted = np.array([[0.2, 0, 0.8], [0.5, 0.5, 0], [0, 0, 1], [0.1, 0.6, 0.3]])
    right, distance = compare(predicted, HAND.next_letters(PROBLEM.text)[:4])
    assert right.tolist() == [True, True, False, True]
    assert distance == pytest.approx([0.2, 0, 1, (0.4 + 0.1 + 0.3) / 2])
    result = RegBenchResult()
    result.add(predicted, PROBLEM)
    assert result.accuracy.mean == 0.75 and result.tvd.mean == pytest.approx(1.6 / 4)
    assert result.accuracy.low is None, "one problem has no interval"


def test_probability_of_tokens_that_are_no_letters_counts_against_a_model():
    _, distance = compare(_one_hot(18, 19), [[A], [A, B]])
    assert distance.tolist() == [1, 1]


def test_positions_are_pooled_and_the_problem_is_the_unit():
    result = RegBenchResult(right=[3, 1], distance=[0.5, 0.5], positions=[4, 1])
    assert result.accuracy.mean == 0.8 and result.tvd.mean == 0.2 and result.accuracy.n == 2
    assert result.accuracy.low < 0.8 < result.accuracy.high


class Knowing(nn.Module):
    """Says what the automaton allows, each alike; of another kind it says `|`."""

    config = ModelConfig(num_layers=1, num_heads=1, d_model=1, context_length=1, vocab_size=20)

    def __init__(self, problems, knows=True):
        super().__init__()
        self.known = {problem.text[:-1]: problem for problem in problems}
        self.knows = knows

    def forward(self, tokens):
        logits = torch.full((*tokens.shape, 20), -1e4)
        for row, ids in zip(logits, tokens, strict=True):
            text = TOKENS.decode(ids)
            problem = next(problem for read, problem in self.known.items() if text.startswith(read))
            for position, allowed in enumerate(problem.language.next_letters(problem.text[:-1])):
                row[position, allowed if self.knows else 18] = 0
        return logits


@pytest.mark.parametrize(("knows", "accuracy", "tvd"), [(True, 1, 0), (False, 0, 1)])
def test_a_model_that_knows_and_one_that_does_not(knows, accuracy, tvd):
    problems = list(regbench.training_problems(10, seed=1))
    *_, result = evaluate_regbench(Knowing(problems, knows), TOKENS, CPU, problems)
    assert result.accuracy.mean == accuracy and result.tvd.mean == pytest.approx(tvd)
    assert sorted(result.positions) == sorted(len(problem.text) - 1 for problem in problems)


def test_a_model_of_other_tokens_is_refused():
    check_trained_on("regbench", TOKENS, "mine")
    with pytest.raises(UsageError, match="mine was not trained on regbench"):
        check_trained_on("regbench", Tokenizer.of_bytes(), "mine")


def test_bigrams_counted_by_hand():
    # "ab", "b" read: a was read once and b followed; b was read twice (the last time just now), nothing followed it
    rows = ngram_predictions("aab|b", 2, "abc")
    assert rows[0] == pytest.approx([1, 0, 0]), "a context that nothing followed leaves all to the letters seen"
    # a read twice, followed by a once: half, and no other letter has been seen
    assert rows[1] == pytest.approx([0.5, 0, 0])
    # b: nothing followed; letters seen are a a b
    assert rows[2] == pytest.approx([2 / 3, 1 / 3, 0])
    # a string begins: two did, the first with a; the rest goes to b
    assert rows[3] == pytest.approx([0.5, 0.5, 0])
    assert rows[4] == pytest.approx([0.5, 0.5, 0]), "seen are a a b b"


def test_trigrams_fall_back_on_bigrams():
    rows = ngram_predictions("abc|abbc", 3, "abc")
    # "bb": nothing followed it. After b: read 3 times, followed by c and b once each; the third part goes to a
    assert rows[6] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    # "ab" at the second string's start: read twice, followed by c once; the other half by the shorter context: after b
    # (read twice, c followed once) the rest falls to a and b as seen, 2 and 2
    assert rows[5] == pytest.approx([0.25, 0.25, 0.5])


def test_counting_is_as_good_as_published():
    """Accuracy .937 and TVD .265 of trigrams, .835 and .337 of bigrams (arXiv 2401.12973), within sampling error."""
    problems = regbench.testing_problems()[:60]
    for order, accuracy, tvd in ((2, 0.835, 0.337), (3, 0.937, 0.265)):
        *_, result = evaluate_ngram(order, problems)
        assert result.accuracy.mean == pytest.approx(accuracy, abs=0.04)
        assert result.tvd.mean == pytest.approx(tvd, abs=0.04)
    assert len(LETTERS) == 18
