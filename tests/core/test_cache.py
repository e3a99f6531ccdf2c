"""Copies of a cache go on as caches of their own."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens

from mosaic_cli.core import kernels
from mosaic_cli.core.model import arrange_for_decoding

KINDS = ["mosaic", "transformer"]


@torch.no_grad()
def _go_on(model, cache, *texts):
    """Logits (B, n, V) of texts that go on from a cache, a token at a time."""
    tokens = torch.tensor(texts)
    return torch.cat([model(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])], 1)


@torch.no_grad()
def _after(model, prompt):
    cache = model.make_cache()
    if prompt:
        model(torch.tensor([prompt]), cache)
    return cache


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 9, 300])
def test_copies_go_on_as_separate_caches_do(kind, T):
    model, prompt = tiny_model(kind, context_length=310), tiny_tokens(T)
    texts = [tiny_tokens(5, seed) for seed in (7, 8, 9)]
    copies = _after(model, prompt).repeat(3)
    assert copies.length == T
    together = _go_on(model, copies, *texts)
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(row, _go_on(model, _after(model, prompt), text)[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_the_original_share_no_memory(kind):
    model, prompt, text = tiny_model(kind), tiny_tokens(9), tiny_tokens(5, seed=7)
    original = _after(model, prompt)
    copies, later = original.repeat(2), original.repeat(2)
    alone = _go_on(model, _after(model, prompt), text)
    _go_on(model, copies, tiny_tokens(5, seed=8), tiny_tokens(5, seed=9))
    assert original.length == 9 and copies.length == 14
    assert torch.equal(_go_on(model, original, text), alone)  # the copies wrote nothing into it
    torch.testing.assert_close(_go_on(model, later, text, text), alone.expand(2, -1, -1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_an_empty_cache_is_empty(kind):
    model, texts = tiny_model(kind), [tiny_tokens(4, 7), tiny_tokens(4, 8)]
    together = _go_on(model, model.make_cache().repeat(2), *texts)
    for row, text in zip(together, texts, strict=True):
        torch.testing.assert_close(row, _go_on(model, model.make_cache(), text)[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_many_pairs_are_read_by_loops_where_they_are_allowed(kind, monkeypatch):
    monkeypatch.setattr(kernels, "QUANTISED", 512 * 8)  # numbers: two heads of width 4
    model, prompt = tiny_model(kind, d_model=8, num_heads=2, context_length=600), tiny_tokens(250)
    text = tiny_tokens(20, seed=7)
    alone = _go_on(model, _after(model, prompt), text)
    arrange_for_decoding(model, tokens=10**9)
    one = _after(model, prompt)
    pairs = one.contextual[0].pairs if kind == "mosaic" else one.layers[0]
    assert pairs.attend_one is None
    torch.testing.assert_close(_go_on(model, one, text), alone, rtol=0, atol=1e-5)  # grows from 256 to 512 on the way
    assert pairs.attend_one is not None
    copies = one.repeat(2)
    further = _go_on(model, one, text)
    torch.testing.assert_close(_go_on(model, copies, text, text), further.expand(2, -1, -1), rtol=0, atol=1e-5)
    pairs = copies.contextual[0].pairs if kind == "mosaic" else copies.layers[0]
    assert pairs.attend_one is not None


V2 = {"preset": "v2", "short_window": 4, "long_delay": 2, "max_long_delay": 4}


@pytest.mark.parametrize(("kind", "changes"), [("mosaic", {}), ("mosaic", V2), ("transformer", {})])
def test_a_prompt_is_read_by_loops_where_they_are_loaded(kind, changes, monkeypatch):
    from mosaic_cli.core.kernels import attention

    if not kernels._has_tile(torch.float32):
        pytest.skip("attention has no loops on this processor")
    model, prompt = tiny_model(kind, d_model=8, num_heads=2, context_length=600, **changes), tiny_tokens(300)
    queries = []
    real = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda *args, **kw: queries.append(args[0].shape[2]) or real(*args, **kw))
    with torch.no_grad():
        expected = model.double()(torch.tensor([prompt]))
        model.float()(torch.tensor([prompt]), model.make_cache())
        assert not queries
        arrange_for_decoding(model, tokens=10**9)
        read = model(torch.tensor([prompt]), model.make_cache())
    assert set(queries) <= {300, 299, 298} and len(queries) >= model.config.num_layers
    torch.testing.assert_close(read.double(), expected, rtol=0, atol=5e-5)
    queries.clear()
    _go_on(model, _after(model, prompt[:250]), prompt[250:])
    assert 1 not in queries


def test_a_prompt_s_keys_are_made_by_loops_but_not_where_gradients_are_recorded(monkeypatch):
    from mosaic_cli.core.kernels import cpu

    model, prompt, calls = tiny_model("mosaic"), tiny_tokens(20), []
    real = cpu.keys_and_average
    monkeypatch.setattr(cpu, "keys_and_average", lambda *args: calls.append(args) or real(*args))
    expected = _go_on(model, _after(model, prompt), tiny_tokens(5, seed=7))
    arrange_for_decoding(model, tokens=10**9)
    model(torch.tensor([prompt]), model.make_cache()).sum().backward()
    assert not calls and all(block.contextual.keys.leak.grad is not None for block in model.blocks)
    after = _after(model, prompt)
    assert len(calls) == 2 * model.config.num_layers
    torch.testing.assert_close(_go_on(model, after, tiny_tokens(5, seed=7)), expected, rtol=0, atol=1e-5)


def test_what_a_cache_goes_on_with_is_not_rounded_to_bfloat16():
    keys, x = tiny_model("mosaic").blocks[0].contextual.keys, torch.randn(1, 20, 12)
    averages = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for keys.loops in (False, True):
            state = keys.make_state()
            made = keys(x, state)
            averages.append(state.average)
            assert made.dtype == state.average.dtype == torch.float32
    torch.testing.assert_close(*averages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "changes"), [("mosaic", {}), ("mosaic", V2), ("transformer", {})])
def test_weights_of_half_precision_decode_a_token_at_a_time(kind, changes, dtype):
    model, text = tiny_model(kind, **changes).to(dtype), tiny_tokens(20)
    with torch.no_grad():
        whole = model(torch.tensor([text]))
    decoded = _go_on(model, _after(model, []), text)
    assert decoded.dtype == dtype
    torch.testing.assert_close(decoded, whole, rtol=0, atol=0.05 * whole.abs().max().item())
