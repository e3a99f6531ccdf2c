"""Short windows and long delays: against the loops, O(T h), and caches that hold no more than the window."""

import pytest
import torch
from gradients import assert_same
from tiny_models import tiny_model, tiny_tokens

from mosaic_cli.core import ops, reference
from mosaic_cli.core.cache import WindowPairs
from mosaic_cli.core.config import PRESETS, ModelConfig
from mosaic_cli.core.model import build_model, flops_per_token
from mosaic_cli.core.windows import window_read
from mosaic_cli.errors import UsageError

H, D = 2, 3
BETA = torch.tensor([0.5, 7.0], dtype=torch.float64)
V2 = {"preset": "v2", "short_window": 5, "long_delay": 3, "max_long_delay": 7}


def _leaves(T):
    keys = ops.normalise(torch.randn(2, H, T, D, dtype=torch.float64)).requires_grad_()
    return keys, torch.randn(2, H, T - 1, D, dtype=torch.float64, requires_grad=True)


def _loops(keys, values, delay=1, window=None):
    pairs = zip(keys.transpose(1, 2), values.transpose(1, 2), strict=True)
    reads = [reference.strict_past_read(k, v, lambda _: BETA, delay, window) for k, v in pairs]
    return torch.stack(reads).transpose(1, 2)  # (B, H, T, D)


@pytest.mark.parametrize("window", [1, 2, 5, 8, 40])
@pytest.mark.parametrize("T", [2, 5, 6, 9, 17, 33])
def test_window_read_is_kernel_regression_over_the_newest_pairs(T, window):
    keys, values = _leaves(T)
    fast = window_read(*ops.neighbours(keys), values, BETA, window)
    assert_same(fast, _loops(keys, values, window=window)[:, :, 1:], [keys, values])


@pytest.mark.parametrize("window", [1, 4, 5])
@pytest.mark.parametrize("newest", [1, 3, 4, 9, 21])
def test_newest_queries_read_what_the_whole_would(newest, window):
    keys, values = _leaves(23)
    whole = window_read(*ops.neighbours(keys), values, BETA, window)
    earlier = max(0, 22 - newest - window)  # what a cache has forgotten
    part = window_read(keys[:, :, -newest:], keys[:, :, earlier:-1], values[:, :, earlier:], BETA, window)
    torch.testing.assert_close(part, whole[:, :, -newest:])


@pytest.mark.parametrize(("T", "delay"), [(9, 2), (9, 8), (30, 7)])
def test_a_delay_reads_older_pairs_only(T, delay):
    keys, values = _leaves(T)
    fast = ops.strict_past_read(*ops.neighbours(keys, delay), values[:, :, : T - delay], BETA)
    slow = _loops(keys, values, delay)
    assert not slow[:, :, :delay].any()
    assert_same(fast, slow[:, :, delay:], [keys, values])


def test_a_window_makes_no_matrix_of_the_whole_text():
    """With a dense mask, a text of this length would take 160 GB."""
    keys = torch.randn(1, 1, 200_000, 2)
    assert window_read(keys, keys, keys, torch.ones(1), 16).shape == keys.shape


@pytest.mark.parametrize("split", [[1] * 17, [6, 1, 10], [2, 9, 1, 1, 4], [17]], ids=str)
def test_a_ring_keeps_the_newest_pairs(split):
    ring, keys = WindowPairs(5), torch.arange(17.0).view(1, 1, 17, 1)
    for part in keys.split(split, dim=2):
        before = ring.length
        read, values = ring.append(part, -part)
        expected = keys[0, 0, max(0, before - (5 if len(part[0, 0]) > 1 else 4)) : ring.length, 0]
        assert sorted(read.flatten().tolist()) == expected.tolist() and torch.equal(values, -read)
        assert ring._keys.shape[2] == ring._values.shape[2] == 5, "no more than the window is held"
    assert ring.length == 17


@torch.inference_mode()
def test_decoding_holds_no_more_than_the_window():
    model, tokens = tiny_model(**V2), torch.tensor([tiny_tokens(60)])
    cache = model.make_cache()
    for part in tokens.split(1, dim=1):
        model(part, cache)
    for short, long in (layer.memories for layer in cache.contextual):
        assert short.pairs._keys.shape[2] == 5 and long.pairs.length == 59


@pytest.mark.parametrize("split", [[40, 25], [1] * 65, [3, 60, 1, 1]], ids=str)
@torch.inference_mode()
def test_copies_of_a_cache_go_on_as_the_original(split):
    model, tokens = tiny_model(**V2), torch.tensor([tiny_tokens(65)])
    cache = model.make_cache()
    first, *rest = tokens.split(split, dim=1)
    model(first, cache)
    copies = cache.repeat(2)
    for part in rest:
        copied, own = model(part.expand(2, -1), copies), model(part, cache)
        torch.testing.assert_close(copied, own.expand(2, -1, -1), rtol=0, atol=1e-5)


def test_delays_are_drawn_for_each_training_step():
    model, same = tiny_model(**V2), tiny_model(**V2)
    drawn = []
    for step in range(60):
        model.begin_step(3, step), same.begin_step(3, step)
        drawn.append(model.blocks[0].contextual.long.training_delay)
        assert {b.contextual.long.training_delay for m in (model, same) for b in m.blocks} == {drawn[-1]}
    assert set(drawn) == {3, 4, 5, 6, 7}
    model.begin_step(4, 0)
    others = [(model.begin_step(4, step), model.blocks[0].contextual.long.training_delay)[1] for step in range(60)]
    assert others != drawn


def test_a_drawn_delay_counts_while_training_only():
    model, tokens = tiny_model(**V2), torch.tensor([tiny_tokens(30)])
    plain = model(tokens)
    for block in model.blocks:
        block.contextual.long.training_delay = 7
    assert torch.equal(model(tokens), plain)
    assert not torch.equal(model.train()(tokens), plain)
    config = ModelConfig(**(vars(model.config) | {"long_delay": 7}))
    longer = build_model(config).eval()
    longer.load_state_dict(model.state_dict())
    torch.testing.assert_close(longer(tokens), model(tokens))


def test_a_preset_sets_what_is_left_out():
    shape = {"num_layers": 1, "num_heads": 2, "d_model": 8, "context_length": 512}
    for preset, values in PRESETS.items():
        config = ModelConfig(preset=preset, **shape)
        assert {key: getattr(config, key) for key in values} == values
    v2 = ModelConfig(preset="v2", **shape)
    assert (v2.short_window, v2.long_delay, v2.max_long_delay) == (256, 64, 256)
    assert ModelConfig(preset="v2", **shape, bandwidth="fixed").bandwidth == "fixed"
    assert ModelConfig(**shape).short_window is None


@pytest.mark.parametrize(
    ("keys", "where"),
    [
        ({"short_window": 4}, "short_window"),
        ({"long_delay": 4}, "long_delay"),
        ({"windows": "short", "long_delay": 4}, "long_delay"),
        ({"windows": "long", "long_delay": 4, "max_long_delay": 3}, "max_long_delay"),
        ({"preset": "v2"}, "max_long_delay"),  # 256 is beyond the context
        ({"preset": "v2", "persistent": "slots", "feedforward_dim": 4, "max_long_delay": 70}, "feedforward_dim"),
        ({"windows": "short", "short_window": 0}, "short_window"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, where):
    with pytest.raises(UsageError) as caught:
        tiny_model(**keys)
    assert caught.value.where == f"model.{where}"


def test_v2_starts_as_the_paper_says():
    torch.manual_seed(0)
    shape = {"num_layers": 3, "num_heads": 4, "d_model": 256, "context_length": 512, "vocab_size": 500}
    model = build_model(ModelConfig(preset="v2", **shape))
    for layer, block in enumerate(model.blocks):
        std = (2 * 256 * (layer + 1)) ** -0.5
        for name, matrix in block.named_parameters():
            if matrix.dim() == 2:
                expected = std * (256 / 768) ** 0.5 if name == "persistent.output.weight" else std
                assert matrix.std().item() == pytest.approx(expected, rel=0.06), name
                assert matrix.abs().max() <= 3 * expected
        memory = block.contextual.long
        beta = memory.read.beta(2, 28, *memory.read.scalars())
        assert beta[0].tolist() == pytest.approx([2.718281828**1.5 * (1 + n ** (1 / 3)) for n in (27, 28)])
        assert memory.values.alpha().tolist() == [1.0] * 4
        (gradient,) = torch.autograd.grad(memory.values.alpha().sum(), memory.values.scale)
        assert gradient.tolist() == [1.0] * 4, "a slope of 0 would keep alpha where it starts"


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"persistent": "mlp"},
        V2,
        V2 | {"windows": "full"} | dict.fromkeys(("short_window", "long_delay", "max_long_delay")),
        {"windows": "short", "short_window": 9},
    ],
)
def test_weights_and_operations_are_counted(keys):
    shape = {"num_layers": 2, "num_heads": 2, "d_model": 8, "context_length": 40, "vocab_size": 50}
    config = ModelConfig(**shape, **keys)
    model = build_model(config)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert matrices == 2 * config.block_weights + 50 * 8
    seen = {"full": range(40), "short": [min(t, config.short_window or 0) for t in range(40)]}
    seen["long"] = [max(0, t - (config.long_delay or 0) + 1) for t in range(40)]
    pairs = sum(sum(seen[name]) / 40 for name in config.memories)
    assert flops_per_token(config) == pytest.approx(2 * matrices + 2 * 4 * 8 * pairs, rel=0.02)


@pytest.mark.parametrize("keys", [V2, {"persistent": "mlp"}, {"key_extractor": "gated"}])
def test_a_transformer_equals_the_size_of_any_mosaic(keys):
    sizes = []
    for kind in ("mosaic", "transformer"):
        block = tiny_model(kind, d_model=64, **keys).blocks[0]
        sizes.append(sum(p.numel() for p in block.parameters() if p.dim() > 1))
    assert sizes[1] == pytest.approx(sizes[0], abs=2 * 64)
