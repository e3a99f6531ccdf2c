"""Each way that v2 was not built is what its sentence says, and trains."""

import json

import pytest
import torch

from mosaic_cli.core.features import GatedKeyExtractor
from mosaic_cli.core.model import build_model, training_loss
from studies import choices
from tests.tiny_models import tiny_model

WINDOWS = {"short_window": 8, "long_delay": 2, "max_long_delay": 8}
SHAPE = {"preset": "v2", "num_layers": 2, "feedforward_dim": 16} | WINDOWS
TOKENS = torch.randint(0, 17, (3, 40), generator=torch.Generator().manual_seed(3))


def changed(name):
    model = tiny_model(**SHAPE)
    choices.CHOICES[name](model)
    return model


def delays(model):
    return [block.contextual.long.training_delay for block in model.blocks]


@pytest.mark.parametrize("name", choices.CHOICES)
def test_every_way_has_a_gradient_for_every_parameter(name):
    model = changed(name).train()
    model.begin_step(1, 0)
    training_loss(model, TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not without


@pytest.mark.parametrize("name", [name for name in choices.CHOICES if name not in ("as chosen", "alpha stays 1")])
def test_every_other_way_computes_something_else(name):
    model, ours = changed(name).train(), tiny_model(**SHAPE).train()
    for one in (model, ours):
        one.begin_step(1, 5)
    assert not torch.allclose(model(TOKENS), ours(TOKENS), atol=1e-6)


def test_m_per_layer_differs_between_layers():
    model = changed("m per layer")
    seen = []
    for step in range(20):
        model.begin_step(1, step)
        seen.append(delays(model))
    assert any(first != second for first, second in seen)
    assert {delay for pair in seen for delay in pair} <= set(range(2, 9))


def test_m_per_sequence_is_ours_with_a_delay_of_its_own():
    model, ours = changed("m per sequence").train(), tiny_model(**SHAPE).train()
    model.begin_step(1, 5)
    reads = model(TOKENS)
    for sequence, read in zip(TOKENS, reads, strict=True):
        fits = []
        for delay in range(2, 9):
            for block in ours.blocks:
                block.contextual.long.training_delay = delay
            fits.append(torch.allclose(ours(sequence[None])[0], read, atol=1e-5))
        assert sum(fits) == 1


def test_older_than_m_is_m_plus_one():
    model, ours = changed("older than m").train(), tiny_model(**SHAPE).train()
    for one in (model, ours):
        one.begin_step(1, 5)
    assert delays(model) == [delay + 1 for delay in delays(ours)]
    assert model.blocks[0].contextual.long.delay == ours.blocks[0].contextual.long.delay + 1


def test_the_count_of_the_text_is_the_position():
    model, ours = changed("n of the whole text"), tiny_model(**SHAPE)
    for block, own in zip(model.blocks, ours.blocks, strict=True):
        for name in ("short", "long"):
            memory, other = getattr(block.contextual, name), getattr(own.contextual, name)
            pairs = 40 - memory.delay
            scalars = memory.read.scalars()
            floor, growth, power = (scalar[:, None] for scalar in scalars)
            expected = floor + growth * torch.arange(memory.delay, 40) ** power
            torch.testing.assert_close(memory.read.beta(pairs, pairs, *scalars), expected)
            assert not torch.allclose(other.read.beta(pairs, pairs, *scalars), expected)


def test_shared_bandwidths_are_one_set():
    model = changed("bandwidths shared")
    short, long = model.blocks[0].contextual.short.read, model.blocks[0].contextual.long.read
    with torch.no_grad():
        short.bandwidth_floor.add_(1)
    assert all(torch.equal(one, other) for one, other in zip(short.bandwidths(), long.bandwidths(), strict=True))
    assert not any("long.read" in name for name, _ in model.named_parameters())


def test_gates_alike_within_a_head_are_gates_of_the_head():
    keys = tiny_model(**SHAPE).blocks[0].contextual.long.keys
    assert isinstance(keys, GatedKeyExtractor)
    by_feature = choices.FeatureGatedKeys(keys)
    with torch.no_grad():
        for own, other in ((by_feature.gate, keys.gate), (by_feature.decay, keys.decay)):
            own.weight.copy_(other.weight.repeat_interleave(6, dim=0))
    x = torch.randn(2, 90, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(by_feature(x), keys(x), rtol=1e-4, atol=1e-6)


def test_alpha_stays_where_it_starts():
    start = choices.load_recipe("quickstart", overrides=choices.SETTINGS).recipe.model.with_vocab(17)
    torch.manual_seed(0)
    model = build_model(start)
    choices.alpha_stays(model)
    model.train()
    training_loss(model, TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    values = model.blocks[0].contextual.long.values
    assert torch.equal(values.alpha(), torch.ones(4)) and torch.equal(values.scale.grad, torch.zeros(4))


def test_the_table_counts_seed_by_seed():
    ours = [{"loss": loss, "ratio": 1.0} for loss in (1.0, 1.2, 1.1)]
    other = [{"loss": one["loss"] + 0.1, "ratio": 1.5} for one in ours]
    rows = {"as chosen": ours, "m per layer": other}
    made_with = {"seeds": [1, 2, 3], "learning_rate": 6e-3, "machine": "a machine", "torch": "2"}
    text = choices.table(json.loads(json.dumps(made_with | {"rows": rows})))
    assert "| 1.100 |  | 1.000 |  |" in text
    assert "| 1.200 | +0.100 +- 0.000 | 1.500 | +0.500 +- 0.000 |" in text
