"""The language models: against the loops, causality, cached = full, sizes, starting values."""

import math

import pytest
import torch

from mosaic_cli.core import kernels, layout, reference
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import (
    WORTH_LOADING,
    arrange_for_decoding,
    build_model,
    count_parameters,
    next_token_loss,
)
from mosaic_cli.errors import UsageError

KINDS = ["mosaic", "transformer"]
V2 = {"preset": "v2", "short_window": 40, "long_delay": 16, "max_long_delay": 40}


def _model(kind: str = "mosaic", **changes: object):
    torch.manual_seed(0)
    config = {"num_layers": 2, "num_heads": 2, "d_model": 12, "context_length": 160, "vocab_size": 17} | changes
    return build_model(ModelConfig(kind=kind, **config)).eval()


def _tokens(T: int, B: int = 2) -> torch.Tensor:
    return torch.randint(0, 17, (B, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("init", ["paper", "gpt2"])
@pytest.mark.parametrize("T", [1, 2, 9, 66])
def test_mosaic_is_the_reference(T, init):
    model, tokens = _model(init=init).double(), _tokens(T)
    expected = torch.stack([reference.mosaic_logits(row, model.state_dict(), model.config) for row in tokens])
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-12)


def test_every_gradient_is_the_reference_s():
    model, tokens = _model(num_layers=1).double(), _tokens(7, B=1)
    names, parameters = zip(*model.named_parameters(), strict=True)
    slow = reference.mosaic_logits(tokens[0], dict(model.named_parameters()), model.config)[None]
    weights = torch.randn(slow.shape, dtype=torch.float64)
    fast_gradients = torch.autograd.grad((model(tokens) * weights).sum(), parameters)
    slow_gradients = torch.autograd.grad((slow * weights).sum(), parameters)
    for name, a, b in zip(names, fast_gradients, slow_gradients, strict=True):
        assert a.any(), f"{name} gets no gradient"
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_sees_a_later_token(kind):
    model, tokens = _model(kind), _tokens(12)
    changed = tokens.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 17
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=0, atol=0)
    assert not torch.equal(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [[150], [1] * 150, [1, 1, 148], [149, 1], [3, 64, 1, 70, 12], [65, 85]])
def test_cached_equals_full_for_any_split(kind, split):
    model, tokens = _model(kind), _tokens(150)
    cache = model.make_cache()
    with torch.inference_mode():
        cached = torch.cat([model(part, cache) for part in tokens.split(split, dim=1)], dim=1)
        torch.testing.assert_close(cached, model(tokens), rtol=1e-4, atol=1e-5)
    assert cache.length == 150


@pytest.mark.parametrize(("kind", "changes"), [("mosaic", {}), ("mosaic", V2), ("transformer", {})])
@pytest.mark.parametrize("split", [[1] * 150, [149, 1], [3, 64, 1, 70, 12]], ids=str)
def test_arranged_slots_are_read_as_they_were(kind, changes, split):
    model, tokens = _model(kind, **changes).double(), _tokens(150, B=1)
    whole = model(tokens)
    arrange_for_decoding(model)
    cache = model.make_cache()
    with torch.inference_mode():
        cached = torch.cat([model(part, cache) for part in tokens.split(split, dim=1)], dim=1)
        torch.testing.assert_close(cached, whole, rtol=0, atol=1e-11)
        torch.testing.assert_close(model(tokens), whole, rtol=0, atol=1e-11)
    lying = [layout.is_turned(tensor) for name, tensor in model.named_parameters() if "slot_" in name]
    assert all(lying) and len(lying) == (4 if kind == "mosaic" and not changes else 0)


@pytest.mark.parametrize(("kind", "changes"), [("mosaic", {}), ("mosaic", V2), ("transformer", {})])
@pytest.mark.parametrize("split", [[1] * 150, [149, 1], [3, 64, 1, 70, 12]], ids=str)
@pytest.mark.parametrize("B", [1, 9])
def test_loops_for_long_texts_read_as_the_plain_functions_do(kind, changes, split, B, monkeypatch):
    for limit in ("QUANTISED", "WEIGHTS"):
        monkeypatch.setattr(kernels, limit, 1)
    model, tokens = _model(kind, **{"d_model": 16} | changes), _tokens(150, B=B)
    whole = model.double()(tokens)
    arrange_for_decoding(model.float(), tokens=10**9)
    cache = model.make_cache()
    with torch.inference_mode():
        cached = torch.cat([model(part, cache) for part in tokens.split(split, dim=1)], dim=1)
    torch.testing.assert_close(cached.double(), whole, rtol=0, atol=5e-5)


@pytest.mark.parametrize("changes", [{}, V2], ids=["v1", "v2"])
def test_one_product_makes_keys_and_values_of_the_same_weights(changes):
    model, tokens = _model(**changes), _tokens(3, B=1)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arrange_for_decoding(model)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    matrices = [m.project.weight for name, m in model.named_modules() if name.endswith((".keys", ".values"))]
    with torch.no_grad():
        for matrix in matrices:
            matrix.normal_()  # whoever edits a weight edits what decoding reads
    cache = model.make_cache()
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens[:, :2], cache), model(tokens)[:, :2])
        torch.testing.assert_close(model(tokens[:, 2:], cache), model(tokens)[:, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_loops_are_loaded_for_much_work(kind):
    model = _model(kind)
    arrange_for_decoding(model, tokens=WORTH_LOADING // count_parameters(model))
    assert not any(module.loops for module in model.modules() if hasattr(module, "loops"))
    arrange_for_decoding(model, tokens=WORTH_LOADING // count_parameters(model) + 1)
    assert all(module.loops for module in model.modules() if hasattr(module, "loops")) and model.loops


def test_mosaic_reads_past_its_context():
    model = _model(context_length=8)
    assert model(_tokens(40)).shape == (2, 40, 17)


def test_transformer_refuses_to_read_past_its_context():
    model = _model("transformer", context_length=8)
    cache = model.make_cache()
    model(_tokens(8), cache)
    with pytest.raises(UsageError, match="trained on 8 tokens cannot read 9"):
        model(_tokens(1), cache)


def test_batch_rows_do_not_meet():
    model, tokens = _model(), _tokens(20, B=3)
    alone = torch.cat([model(row[None]) for row in tokens])
    torch.testing.assert_close(model(tokens), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("C", "M"), [(64, None), (768, None), (64, 100)])
def test_a_block_holds_as_many_weights_in_both_kinds(kind, C, M):
    config = ModelConfig(kind=kind, num_layers=1, num_heads=4, d_model=C, num_slots=M, context_length=4, vocab_size=5)
    with torch.device("meta"):
        block = build_model(config).blocks[0]
    weights = sum(p.numel() for p in block.parameters() if p.dim() > 1)
    assert weights == (12 * C * C if M is None else 5 * C * C + 2 * M * C)


def test_all_parameters_of_a_mosaic_are_counted():
    C, H, N, V = 768, 12, 12, 50257
    with torch.device("meta"):
        model = build_model(ModelConfig(num_layers=N, num_heads=H, d_model=C, context_length=512, vocab_size=V))
    per_block = 12 * C * C + 2 * C + 7 * H  # two norms; leak, peek, scale, bandwidth; leak, bandwidth, scale
    assert count_parameters(model) == N * per_block + C + V * C


def test_paper_start():
    model = _model(num_layers=4, num_heads=4, d_model=256, vocab_size=2000)
    block = model.blocks[1]
    assert model.embedding.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
    for memory in (block.contextual, block.persistent):
        assert memory.keys.project.weight.std().item() == pytest.approx(1 / 16, rel=0.02)
        assert memory.output.weight.std().item() == pytest.approx(1 / 16 / math.sqrt(4), rel=0.02)
        decay = torch.exp(-(10 * memory.keys.leak).abs())
        assert decay[0].item() == pytest.approx(0.6065, abs=1e-3) and decay[-1].item() == pytest.approx(
            0.0067, abs=1e-3
        )
        assert torch.exp(2 * 10 * memory.read.bandwidth).tolist() == pytest.approx([math.e**2] * 4)
    assert block.persistent.slot_keys.std().item() == pytest.approx(1 / 8, rel=0.02)
    assert ((block.contextual.values.peek >= 0) & (block.contextual.values.peek <= 1)).all()


def test_gpt2_start():
    for kind in KINDS:
        model = _model(kind, init="gpt2", d_model=256, num_heads=4, num_layers=2, vocab_size=2000)
        outputs = [p for name, p in model.named_parameters() if name.endswith("output.weight")]
        assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert all(p.std().item() == pytest.approx(0.02 / 2, rel=0.05) for p in outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_weights(kind):
    first, second = _model(kind).state_dict(), _model(kind).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.isfinite(value).all() for value in first.values()), "a parameter was left undrawn"


def test_dropout_acts_while_training_only():
    model, tokens = _model(dropout=0.5), _tokens(10)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_loss_is_the_cross_entropy():
    logits, targets = torch.randn(2, 3, 17), _tokens(3)
    expected = -torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(next_token_loss(logits, targets, "none"), expected)
    torch.testing.assert_close(next_token_loss(logits, targets), expected.mean())


@pytest.mark.parametrize(
    "changes", [{"num_heads": 5}, {"num_layers": 0}, {"dropout": 1.0}, {"vocab_size": -1}, {"num_slots": 0}]
)
def test_impossible_shapes_are_refused(changes):
    with pytest.raises(UsageError) as caught:
        ModelConfig(**({"num_layers": 1, "num_heads": 2, "d_model": 12, "context_length": 4} | changes))
    assert caught.value.where == f"model.{next(iter(changes))}"
