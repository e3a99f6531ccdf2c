"""A recorded step says what plain decoding says, from any prompt, past every doubling of its buffers."""

import pytest
import torch
from interpreted import MISSING
from tiny_models import tiny_model, tiny_tokens

from mosaic_cli import decoding
from mosaic_cli.core import ops
from mosaic_cli.core.cache import FixedPairs
from mosaic_cli.device import choose_placement
from mosaic_cli.errors import UsageError
from mosaic_cli.probes.edits import Change, edited

PLACEMENT, GPU = choose_placement("cpu", "float32"), torch.device("cuda")
needs_triton = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
V1 = [
    ("mosaic", {}),
    ("mosaic", {"key_extractor": "linear"}),
    ("mosaic", {"normalised_keys": False}),
    ("mosaic", {"persistent": "mlp"}),
    ("transformer", {}),
]


def _after(model, texts, prompt, follow):
    """Logits after each token that follows the prompt; `follow(model, cache)` gives the step."""
    cache = model.make_cache()
    model(texts[:, :prompt], cache)
    step = follow(model, cache)
    return torch.stack([step(tokens).clone() for tokens in texts[:, prompt:].T]), cache.length


def _recorded(recordings):
    def record(step):
        recordings.append(step)
        return step

    return lambda model, cache: decoding.RecordedStep(model, cache, PLACEMENT, record=record)


@needs_triton
@pytest.mark.parametrize(("kind", "changes"), V1)
@pytest.mark.parametrize("prompt", [1, 6])
@torch.inference_mode()
def test_recorded_steps_say_what_plain_ones_say(kind, changes, prompt, monkeypatch):
    monkeypatch.setattr(FixedPairs, "capacity_for", staticmethod(lambda pairs: 1 << pairs.bit_length()))
    model = tiny_model(kind, **changes).eval()
    texts = torch.tensor([tiny_tokens(12), tiny_tokens(12, seed=2)])
    plain, length = _after(model, texts, prompt, lambda *known: decoding.plain_step(*known, PLACEMENT))
    monkeypatch.setattr(ops.kernels, "serves", lambda x: x.dim() == 3)  # slots are read as on a GPU
    recorded, same_length = _after(model, texts, prompt, _recorded(recordings := []))
    torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)
    assert length == same_length == 12 and len(recordings) > 1


@needs_triton
@torch.inference_mode()
def test_a_transformer_s_text_ends_where_its_positions_do():
    model = tiny_model("transformer", context_length=7).eval()
    texts = torch.tensor([tiny_tokens(8)])
    _after(model, texts[:, :7], 5, _recorded([]))
    with pytest.raises(UsageError, match="cannot read 8"):
        _after(model, texts, 5, _recorded([]))


@needs_triton
def test_pairs_are_read_by_shares_and_only_those_that_are_there():
    from mosaic_cli.core.kernels.decoding import BLOCK, attend_stored

    S = 3 * BLOCK
    queries, keys, values = torch.randn(2, 3, 1, 5), torch.randn(2, 3, S, 5), torch.randn(2, 3, S, 5)
    for stored in (1, 2, BLOCK, 2 * BLOCK + 7, S):
        keys[:, :, stored:] = values[:, :, stored:] = torch.nan  # whatever was in the memory
        for scale in (0.7, torch.tensor([[0.5], [2.0], [30.0]])):
            scaled = queries * (scale if isinstance(scale, float) else scale[..., None])
            weights = torch.softmax(scaled @ keys[:, :, :stored].mT, dim=-1)
            found = attend_stored(queries, keys, values, scale, torch.tensor([stored - 1]))
            torch.testing.assert_close(found, weights @ values[:, :, :stored], rtol=1e-5, atol=1e-6)
        keys, values = torch.randn(2, 3, S, 5), torch.randn(2, 3, S, 5)


@needs_triton
@pytest.mark.parametrize("B", [1, 20, 65])
def test_slots_are_read_by_shares(B, monkeypatch):
    from mosaic_cli.core.kernels import decoding as kernels

    H, M, D = 3, 150, 5
    monkeypatch.setattr(kernels, "SLOTS", 64)
    queries, keys, values = torch.randn(B, H, 1, D), torch.randn(H, M, D), torch.randn(H, M, D)
    beta, alpha = torch.tensor([0.5, 2.0, 30.0]), torch.tensor([1.0, 0.1, 3.0])
    found = kernels.attend_slots(queries, keys, values, beta, alpha)
    slow = ops.slot_read(queries, keys, values, beta, alpha)
    torch.testing.assert_close(found, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "changes"), V1)
def test_which_models_are_recorded(kind, changes, monkeypatch):
    monkeypatch.setattr(decoding.kernels, "HAS_TRITON", True)
    model = tiny_model(kind, **changes)
    assert decoding.records(model, GPU) and not decoding.records(model, PLACEMENT.device)
    with edited(model, {(0, "ctx" if kind == "mosaic" else "att"): Change()}):
        assert not decoding.records(model, GPU)
    monkeypatch.setattr(decoding.kernels, "HAS_TRITON", False)
    assert not decoding.records(model, GPU)


@pytest.mark.parametrize(
    "changes", [{"windows": "short", "short_window": 8}, {"bandwidth": "adaptive"}, {"key_extractor": "gated"}]
)
def test_what_depends_on_the_number_of_tokens_is_not_recorded(changes, monkeypatch):
    monkeypatch.setattr(decoding.kernels, "HAS_TRITON", True)
    assert not decoding.records(tiny_model("mosaic", **changes), GPU)
