"""Models that depart from v1 in one or several keys: against the loops, and cached = full."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens

from mosaic_cli.core import reference
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model, count_parameters
from mosaic_cli.errors import UsageError

ABLATIONS = {
    "no peek": {"peek": False},
    "no leaky average": {"key_extractor": "linear"},
    "unnormalised keys": {"normalised_keys": False},
    "unnormalised and linear": {"normalised_keys": False, "key_extractor": "linear"},
    "constant bandwidth": {"learn_bandwidth": False},
    "mlp": {"persistent": "mlp"},
    "all": {"peek": False, "key_extractor": "linear", "learn_bandwidth": False, "persistent": "mlp"},
}
V2 = {
    "gated": {"key_extractor": "gated"},
    "gated, unnormalised": {"key_extractor": "gated", "normalised_keys": False},
    "adaptive": {"bandwidth": "adaptive"},
    "adaptive, constant": {"bandwidth": "adaptive", "learn_bandwidth": False},
    "values of at least one": {"value_scale": "at_least_one"},
    "gated, adaptive, no peek, mlp": {
        "key_extractor": "gated",
        "bandwidth": "adaptive",
        "value_scale": "at_least_one",
        "peek": False,
        "persistent": "mlp",
    },
}
W = {"short_window": 5, "long_delay": 3, "max_long_delay": 7}
WINDOWS = {
    "short+long": {"windows": "short+long", **W},
    "short": {"windows": "short", "short_window": 4},
    "window of one": {"windows": "short", "short_window": 1},
    "window beyond the text": {"windows": "short", "short_window": 60, "bandwidth": "adaptive"},
    "long": {"windows": "long", "long_delay": 4, "max_long_delay": 4, "bandwidth": "adaptive"},
    "long of the strict past": {"windows": "long", "long_delay": 1, "max_long_delay": 3, "peek": False},
    "swiglu": {"persistent": "swiglu"},
    "windows, adaptive, linear": {"windows": "short+long", "bandwidth": "adaptive", "key_extractor": "linear", **W},
    "v2": {"preset": "v2", **W},
    "v2 without peek, slots": {"preset": "v2", "persistent": "slots", "peek": False, **W},
    "v2, one memory": {"preset": "v2", "windows": "full"},
    "v2, leaky and fixed": {"preset": "v2", "key_extractor": "leaky", "bandwidth": "fixed", **W},
}
VARIANTS = ABLATIONS | V2 | WINDOWS
SHAPE = {"num_layers": 2, "num_heads": 2, "d_model": 8, "num_slots": 7}
each_variant = pytest.mark.parametrize("keys", VARIANTS.values(), ids=VARIANTS)


@each_variant
def test_values_and_every_gradient_are_the_reference_s(keys):
    model, tokens = tiny_model(**SHAPE, **keys).double(), torch.tensor([tiny_tokens(13)])
    names, parameters = zip(*model.named_parameters(), strict=True)
    slow = reference.mosaic_logits(
        tokens[0], dict(model.named_parameters()) | dict(model.named_buffers()), model.config
    )
    fast = model(tokens)[0]
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    weights = torch.randn(slow.shape, dtype=torch.float64)
    fast_gradients = torch.autograd.grad((fast * weights).sum(), parameters)
    slow_gradients = torch.autograd.grad((slow * weights).sum(), parameters)
    for name, a, b in zip(names, fast_gradients, slow_gradients, strict=True):
        assert a.any() or not b.any(), f"{name} gets no gradient"
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@each_variant
@pytest.mark.parametrize("split", [[1] * 33, [1, 1, 31], [3, 12, 1, 17], [2, 3, 1, 1, 26]], ids=str)
@torch.inference_mode()
def test_cached_equals_full_for_any_split(keys, split):
    model, tokens = tiny_model(**SHAPE, **keys), torch.tensor([tiny_tokens(33), tiny_tokens(33, seed=2)])
    if not model.config.normalised_keys:
        model.double()  # long keys in an exponent: rounding to float32 alone goes beyond the bound
    cache = model.make_cache()
    cached = torch.cat([model(part, cache) for part in tokens.split(split, dim=1)], dim=1)
    torch.testing.assert_close(cached, model(tokens), rtol=1e-4, atol=2e-5)


@each_variant
def test_no_logit_sees_a_later_token(keys):
    model, tokens = tiny_model(**SHAPE, **keys), tiny_tokens(20)
    changed = tokens[:15] + [(token + 1) % 17 for token in tokens[15:]]
    before, after = (model(torch.tensor([text])) for text in (tokens, changed))
    assert torch.equal(before[:, :15], after[:, :15]) and not torch.equal(before[:, 15:], after[:, 15:])


@torch.inference_mode()
def test_without_the_peek_a_value_is_the_token_s_own():
    plain, ablated = tiny_model(**SHAPE), tiny_model(**SHAPE, peek=False)
    state = {name: tensor for name, tensor in plain.state_dict().items() if not name.endswith("peek")}
    ablated.load_state_dict(state)
    for block in plain.blocks:
        block.contextual.values.peek.fill_(1)
    tokens = torch.tensor([tiny_tokens(20)])
    assert torch.equal(plain(tokens), ablated(tokens))


def test_a_constant_bandwidth_is_no_parameter_but_is_saved():
    model, learned = tiny_model(learn_bandwidth=False), tiny_model()
    assert model.state_dict().keys() == learned.state_dict().keys()
    assert count_parameters(learned) - count_parameters(model) == 3 * 2 * 2  # layers, heads, kinds of memory
    assert not [name for name, _ in model.named_parameters() if name.endswith("bandwidth")]


@pytest.mark.parametrize(("C", "M"), [(128, 448), (64, 64), (64, 448)])
@pytest.mark.parametrize("keys", [*ABLATIONS.values()], ids=ABLATIONS)
def test_ablations_keep_the_size(keys, C, M):
    shape = {"num_layers": 2, "num_heads": 4, "d_model": C, "num_slots": M, "context_length": 64, "vocab_size": 99}
    with torch.device("meta"):
        whole, ablated = build_model(ModelConfig(**shape)), build_model(ModelConfig(**shape, **keys))
    assert count_parameters(ablated) == pytest.approx(count_parameters(whole), rel=0.01)
    assert _block_weights(ablated) == ablated.config.block_weights == whole.config.block_weights


def _block_weights(model):
    return sum(parameter.numel() for parameter in model.blocks[0].parameters() if parameter.dim() > 1)


def test_unnormalised_keys_start_with_scores_as_large():
    """Inner products of keys times beta, before training."""
    shape = {"num_layers": 1, "num_heads": 4, "d_model": 256, "context_length": 8, "vocab_size": 50}
    x = torch.nn.functional.layer_norm(torch.randn(1, 200, 256), (256,))
    spreads = []
    for normalised in (True, False):
        memory = (
            build_model(ModelConfig(**shape, normalised_keys=normalised, key_extractor="linear")).blocks[0].contextual
        )
        keys = memory.keys(x)
        spreads.append((keys @ keys.mT * memory.read.scalars()[0][:, None, None]).std().item())
    assert spreads[1] == pytest.approx(spreads[0], rel=0.2)


@pytest.mark.parametrize("key", ["peek", "normalised_keys", "learn_bandwidth"])
def test_a_transformer_refuses_what_it_has_not(key):
    with pytest.raises(UsageError, match=key) as caught:
        tiny_model("transformer", **{key: False})
    assert caught.value.where == f"model.{key}"


def test_hidden_units_of_slots_are_refused():
    with pytest.raises(UsageError, match="feedforward_dim") as caught:
        tiny_model(feedforward_dim=8)
    assert caught.value.where == "model.feedforward_dim"
