"""What hooks keep of a reading: the model runs as it always does, and the parts are those of the reference."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokens

from mosaic_cli.core import reference
from mosaic_cli.errors import UsageError
from mosaic_cli.probes.reading import read_text

KINDS = ["mosaic", "transformer"]
LENGTHS = [1, 2, 7, 66]


def _hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", LENGTHS)
@torch.no_grad()
def test_hooks_change_no_bit_and_are_gone_afterwards(kind, T):
    model, tokens = tiny_model(kind), tiny_tokens(T)
    reading = read_text(model, tokens)
    assert not _hooks(model)
    assert torch.equal(reading.logits, model(torch.tensor([tokens]))[0])


def test_a_model_is_left_in_the_mode_it_was_in():
    model = tiny_model("transformer", dropout=0.5, context_length=4).train()
    first, second = (read_text(model, [1, 2]) for _ in range(2))
    assert torch.equal(first.logits, second.logits) and model.training
    with pytest.raises(UsageError, match="cannot read 5"):
        read_text(model, tiny_tokens(5))
    assert model.training and not _hooks(model)


def test_an_empty_text_is_refused():
    with pytest.raises(UsageError, match="no token"):
        read_text(tiny_model(), [])


@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
@torch.no_grad()
def test_retrieval_is_the_reference(T, sharp):
    """Weights, values and W_o of a reading, put together, are the two memories written as loops."""
    model, tokens = tiny_model(sharp=sharp).double(), tiny_tokens(T)
    weights = model.state_dict()
    for number, layer in enumerate(read_text(model, tokens).layers):
        block = f"blocks.{number}"
        normed = reference.layer_norm(layer.norm.stream, weights[f"{block}.contextual_norm.weight"])
        contextual = reference.contextual_memory(normed, weights, f"{block}.contextual", model.config)
        torch.testing.assert_close(_given(layer.pairs), contextual, rtol=1e-9, atol=1e-11)
        between = layer.norm.stream + contextual
        normed = reference.layer_norm(between, weights[f"{block}.persistent_norm.weight"])
        persistent = reference.persistent_memory(normed, weights, f"{block}.persistent", model.config)
        torch.testing.assert_close(_given(layer.slots), persistent, rtol=1e-9, atol=1e-11)


def _given(retrieval):
    """What a layer's heads write into the residual stream (T, C)."""
    reads = retrieval.all_weights() @ retrieval.values  # (H, T, D)
    return torch.einsum("htd,hdc->tc", reads, retrieval.output)


@pytest.mark.parametrize("T", LENGTHS)
@torch.no_grad()
def test_weights_are_the_reference_s(T):
    model, tokens = tiny_model().double(), tiny_tokens(T)
    weights = model.state_dict()
    for number, layer in enumerate(read_text(model, tokens).layers):
        prefix = f"blocks.{number}.contextual"
        keys = reference.extract_keys(layer.norm.outputs(), weights, f"{prefix}.keys", model.config)
        beta = torch.exp(20 * weights[f"{prefix}.read.bandwidth"])
        for t in range(T):
            expected = torch.softmax(beta[:, None] * torch.einsum("hd,jhd->hj", keys[t], keys[:t]), dim=-1)
            torch.testing.assert_close(layer.pairs.weights(t), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
def test_weights_sum_to_one_over_what_is_visible(kind, sharp, T):
    for layer in read_text(tiny_model(kind, sharp), tiny_tokens(T)).layers:
        for retrieval in filter(None, (layer.pairs, layer.slots)):
            everywhere = retrieval.all_weights()  # (H, T, S)
            for t in range(T):
                weights = retrieval.weights(t)
                visible = retrieval.visible(t)
                assert weights.shape[1] == visible
                torch.testing.assert_close(weights, everywhere[:, t, :visible])
                assert not everywhere[:, t, visible:].any()
                if visible:
                    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=torch.float64))
            if sharp and retrieval is layer.pairs and T > 2:
                assert everywhere[:, 2:].amax(-1).median() > (0.95 if kind == "mosaic" else 0.6)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_attention_and_mlp_make_up_the_stream(kind):
    model, tokens = tiny_model(kind).double(), tiny_tokens(9)
    reading = read_text(model, tokens)
    streams = [*(layer.norm.stream for layer in reading.layers), reading.final.stream]
    for layer, before, after in zip(reading.layers, streams, streams[1:], strict=False):
        rest = layer.mlp if layer.slots is None else _given(layer.slots)
        torch.testing.assert_close(before + _given(layer.pairs) + rest, after, rtol=1e-9, atol=1e-11)
    logits = reading.final.outputs() @ reading.head.T * reading.logit_scale
    torch.testing.assert_close(logits, reading.logits, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_value_is_made_of_its_sources(kind):
    """Through the norm too: the functionals on the stream say the same number as the one on the value."""
    reading = read_text(tiny_model(kind).double(), tiny_tokens(7))
    functional = torch.randn(6, dtype=torch.float64)
    for layer in reading.layers:
        normed, H, S = layer.norm.outputs(), *layer.pairs.values.shape[:2]
        for head, pair in ((h, s) for h in range(H) for s in range(S)):
            expected = layer.pairs.values[head, pair] @ functional
            sources = layer.values.sources(head, pair, functional)
            assert [position for position, _ in sources] == ([pair, pair + 1] if kind == "mosaic" else [pair])
            torch.testing.assert_close(sum(normed[p] @ through for p, through in sources), expected)
            back = sum(layer.norm.stream[p] @ layer.norm.back(p, through) for p, through in sources)
            torch.testing.assert_close(back, expected)


@torch.no_grad()
def test_a_key_is_the_sum_of_what_tokens_put_into_it():
    model = tiny_model().double()
    for block, layer in zip(model.blocks, read_text(model, tiny_tokens(66)).layers, strict=True):
        keys = block.contextual.keys(layer.norm.outputs()[None])[0]  # (H, T, D)
        for head, position in ((0, 0), (1, 1), (0, 37), (1, 65)):
            share = layer.keys.share(head, position)
            assert len(share) == position + 1
            torch.testing.assert_close(share.sum(0), keys[head, position])
