"""Weight against distance, judged by loops over what went into the reads; `mosaic probe patterns`."""

import json
import math
import shutil

import pytest
import torch

from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import build_model
from mosaic_cli.core.ops import inverse_bandwidth
from mosaic_cli.errors import DataError, NonFiniteError
from mosaic_cli.probes.patterns import by_distance, distance_pattern, learned_scalars
from mosaic_cli.probes.reading import read_text

T, N, H = 9, 2, 3


def make(kind):
    return build_model(
        ModelConfig(kind=kind, num_layers=N, num_heads=H, d_model=12, num_slots=5, context_length=T, vocab_size=11)
    )


@pytest.fixture
def ids():
    return torch.randint(11, (2 * T + 4,)).tolist()


def reads_of(model, ids):
    """The queries, times what they are scaled by, and keys (H, T or T - 1, D) that each layer's read was given."""
    seen = []
    mosaic = model.config.kind == "mosaic"
    reads = [block.contextual.read if mosaic else block.attention.read for block in model.blocks]
    hooks = [read.register_forward_hook(lambda _, inputs, __: seen.append(inputs)) for read in reads]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    for read, (queries, keys, _) in zip(reads, seen, strict=True):
        scale = inverse_bandwidth(read.bandwidth)[:, None, None] if mosaic else queries.shape[-1] ** -0.5
        yield (queries[0] * scale).double().detach(), keys[0].double()


def mean_by_loops(model, windows):
    """{(layer, head, distance): mean weight}, one position, one pair at a time."""
    first = 1 if model.config.kind == "mosaic" else 0  # the mosaic's first query belongs to position 1
    found = {}
    for window in windows:
        for layer, (queries, keys) in enumerate(reads_of(model, window)):
            for h in range(H):
                for t in range(first, len(window)):
                    pairs = range(t + 1 - first)
                    exponents = [math.exp(queries[h, t - first] @ keys[h, j]) for j in pairs]
                    for j in pairs:
                        weight = exponents[j] / sum(exponents)
                        found.setdefault((layer, h, t - j), []).append(weight)
    return {key: sum(weights) / len(weights) for key, weights in found.items()}


def last(pattern_or_use):
    return [*pattern_or_use][-1]


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_mean_weight_by_distance_is_that_of_the_loops(kind, ids, array_tokens):
    model = make(kind)
    reports = [pattern.windows for pattern in distance_pattern(model, array_tokens(ids))]
    assert reports == [1, 2], "two full windows; the rest is left out"
    pattern = last(distance_pattern(model, array_tokens(ids)))
    expected = mean_by_loops(model, [ids[:T], ids[T : 2 * T]])
    assert list(pattern.distances) == sorted({distance for *_, distance in expected})
    for (layer, head, distance), mean in expected.items():
        assert pattern.mean_weight[layer, head, distance - pattern.nearest].item() == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("kind", ["mosaic", "transformer"])
def test_the_weights_of_a_position_sum_to_one(kind, ids, array_tokens):
    model = make(kind)
    for layer in read_text(model, ids[:T]).layers:
        sums = layer.pairs.all_weights().sum(-1)  # (H, T)
        empty = kind == "mosaic"  # position 0 asks an empty memory
        assert torch.allclose(sums[:, empty:], torch.ones(()).double()) and (not empty or not sums[:, 0].any())
    pattern = last(distance_pattern(model, array_tokens(ids)))
    positions = torch.tensor([T - d for d in pattern.distances])
    assert torch.allclose((pattern.mean_weight * positions).sum(-1), torch.tensor(T - pattern.nearest).double())


@pytest.mark.parametrize("nearest", [0, 1])
def test_the_even_curve_is_that_of_a_head_without_preferences(nearest, ids, array_tokens):
    model = make("mosaic" if nearest else "transformer")
    with torch.no_grad():
        for block in model.blocks:
            if nearest:
                block.contextual.read.bandwidth.fill_(-5)  # beta = e^-100
            else:
                block.attention.project.weight.zero_()
    pattern = last(distance_pattern(model, array_tokens(ids)))
    expected = [
        sum(1 / (t + 1 - nearest) for t in range(d, T)) / (T - d) for d in range(nearest, T)
    ]  # position t has t + 1 - nearest pairs
    assert pattern.even.tolist() == pytest.approx(expected)
    assert torch.allclose(pattern.mean_weight, pattern.even.expand(N, H, -1))


def test_the_pair_stored_just_before_has_distance_one():
    weights = torch.zeros(1, 5, 4)
    for t in range(1, 5):
        weights[0, t, t - 1] = 1
    assert by_distance(weights).tolist() == [[0, 4, 0, 0, 0]]


def test_windows_and_context(ids, array_tokens):
    model = make("mosaic")
    assert last(distance_pattern(model, array_tokens(ids), windows=1)).windows == 1
    longer = last(distance_pattern(model, array_tokens(ids), context=20))
    assert (longer.context, longer.windows) == (20, 1)
    short = last(distance_pattern(model, array_tokens(ids[:2])))
    assert short.mean_weight.tolist() == [[[1.0]] * H] * N
    with pytest.raises(DataError):
        last(distance_pattern(model, array_tokens(ids[:1])))


def test_a_model_that_is_not_finite_is_refused(ids, array_tokens):
    model = make("mosaic")
    with torch.no_grad():
        model.embedding.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="not finite"):
        last(distance_pattern(model, array_tokens(ids)))


def test_learned_scalars_of_a_fresh_model():
    model = make("mosaic")
    with torch.no_grad():
        model.blocks[1].contextual.keys.leak[2] = 0  # no decay
    heads = learned_scalars(model)
    assert [(head.layer, head.head) for head in heads] == [(n, h) for n in range(N) for h in range(H)]
    first = heads[0]
    assert first.decay == pytest.approx(math.exp(-0.5)) and first.half_life == pytest.approx(math.log(2) / 0.5)
    assert first.beta == pytest.approx(math.exp(2)) and first.alpha == pytest.approx(math.exp(-0.5))
    assert first.slot_decay == first.decay and first.slot_half_life == first.half_life
    assert first.slot_beta == first.beta and first.slot_alpha == first.alpha
    assert first.gamma == model.blocks[0].contextual.values.peek[0].item()
    assert heads[-1].decay == 1 and heads[-1].half_life == math.inf


def test_command_writes_what_it_prints(world, mosaic):
    result = mosaic("probe", "patterns", "--ckpt", "tiny", "--ckpt", "gpt", "--windows", 3, "--json")
    assert result.code == 0 and result.json["schema"] == "mosaic.probe.patterns/1"
    folder = world / "runs" / "tiny" / "probes" / "patterns"
    assert json.loads((folder / "patterns.json").read_text()) == result.json
    assert (folder / "patterns.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "patterns.svg").read_text()
    tiny, gpt = result.json["results"]
    assert tiny["distances"] == list(range(1, 8)) and gpt["distances"] == list(range(8)) and tiny["windows"] == 3
    assert len(tiny["heads"]) == 2 and all(len(head["mean_weight"]) == 7 for head in tiny["heads"])
    assert "decay" in tiny["heads"][0] and "decay" not in gpt["heads"][0]


def test_tables(world, mosaic):
    result = mosaic("probe", "patterns", "--ckpt", "tiny", "--ckpt", "gpt", "--on", "text.txt", "--out", "seen")
    assert result.code == 0 and (world / "seen" / "patterns.svg").is_file()
    assert "L0.H1" in result.out and "even" in result.out and "4-7" in result.out and "half life" in result.out
    assert not (world / "runs" / "tiny" / "probes").exists()


def test_no_decay_is_an_endless_half_life(world, mosaic, monkeypatch):
    monkeypatch.setattr("mosaic_cli.core.ops.leak_rate", torch.zeros_like)
    (row,) = mosaic("probe", "patterns", "--ckpt", "tiny", "--json").json["results"]
    assert row["heads"][0]["half_life"] is None and row["heads"][0]["decay"] == 1
    assert "∞" in mosaic("probe", "patterns", "--ckpt", "tiny").out


def test_a_dollar_in_a_run_s_name_is_not_mathematics(world, mosaic):
    shutil.copytree("runs/tiny", "runs/a$_{$b")
    assert mosaic("probe", "patterns", "--ckpt", "runs/a$_{$b").code == 0


@pytest.mark.parametrize(
    ("arguments", "message", "where"),
    [
        (["--ckpt", "tiny", "--ckpt", "gpt", "--context", "9"], "trained on 8 tokens and cannot read 9", "--context"),
        (["--ckpt", "tiny", "--context", "1"], "'--context'", None),
        (["--ckpt", "tiny", "--windows", "0"], "'--windows'", None),
        (["--ckpt", "tiny", "--on", "nowhere.txt"], "nowhere.txt", "--on"),
        (["--ckpt", "nobody"], "nobody", None),
        (["--ckpt", "tiny", "--out", "text.txt"], "not a folder", "text.txt"),
        (["--ckpt", "tiny", "--out", "text.txt/deeper"], "not a folder", "text.txt/deeper"),
    ],
)
def test_wrong_usage(world, refused, arguments, message, where):
    error = refused(2, "probe", "patterns", *arguments)
    assert message in error["message"] and error["hint"] and where in (None, error["where"])


def test_a_mosaic_reads_past_its_training_context(world, mosaic):
    (row,) = mosaic("probe", "patterns", "--ckpt", "tiny", "--context", 30, "--json").json["results"]
    assert row["context"] == 30 and row["distances"][-1] == 29
