"""What `make bench` compares is comparable: equal weights, caches that change nothing, and nothing left out unsaid."""

import importlib.util
import json
import math
import sys

import pytest
import torch

from benchmarks import counts, gpu, report
from benchmarks.measure import TINIEST, interleaved, ratio
from benchmarks.systems import BUILDERS, PACKAGES, SIZES, build
from mosaic_cli.core.config import ModelConfig
from mosaic_cli.core.model import count_parameters

SHAPE = TINIEST | {"num_heads": 2, "d_model": 16, "num_slots": 56}
CPU = torch.device("cpu")


@pytest.fixture(params=BUILDERS)
def name(request):
    package = PACKAGES.get(request.param)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return request.param


def test_reading_on_with_the_cache_is_reading_at_once(name):
    system = build(name, SHAPE, CPU)
    system.model.eval()
    tokens = torch.randint(0, 64, (2, 20))
    with torch.inference_mode():
        whole, _ = system.read(tokens, None)
        cache = None
        for part in tokens.split([17, 1, 1, 1], dim=1):
            logits, cache = system.read(part, cache)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)


def test_the_loss_is_a_mean_with_gradients(name):
    system = build(name, SHAPE, CPU)
    loss = system.loss(torch.randint(0, 64, (2, 20)), torch.randint(0, 64, (2, 20)))
    assert loss.item() == pytest.approx(math.log(64), rel=0.3)
    loss.backward()
    assert all(p.grad is not None for p in system.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_weights_are_equal(name, size):
    ours, baseline = (count_parameters(build(n, SIZES[size].shape, CPU).model) for n in (name, "transformer"))
    assert ours == pytest.approx(baseline, rel=0.03)  # a mosaic has no positions: 2.4 % of `small`


def test_counts():
    config = ModelConfig(**SHAPE)
    weights = 5 * 16 * 16 + 2 * 56 * 16
    assert counts.decoded_token_bytes(config, 10, 3) == 4 * (weights + 64 * 16 + 3 * 2 * 16 * 10)
    reads, head = 2 * 16 * 48, 2 * 64 * 16
    assert counts.flops("train", config, 2) == 3 * 2 * 48 * (2 * weights + head + reads)
    assert counts.flops("prefill", config, 2) == 2 * (48 * (2 * weights + reads) + head)


def test_systems_take_turns():
    order = []
    seconds = interleaved({n: lambda n=n: lambda: order.append(n) for n in "ab"}, rounds=2)
    assert order == list("ababab") and [len(values) for values in seconds.values()] == [2, 2]
    assert ratio([4.0, 6.0, 9.0], [2.0, 2.0, 1.0]) == 3


def test_a_missing_peer_is_named_in_the_table(capsys):
    row = {"part": "train", "workload": "train", "system": "mosaic", "model": "tiny", "T": 64, "batch": 1}
    row |= {"parameters": 9, "seconds": 1.0, "tokens_per_second": 64.0, "ratio_to": {}, "share_of_limit": 0.5}
    machine = {
        "device": "d",
        "threads": 1,
        "dtype": "float32",
        "decoding_dtype": "float32",
        "torch": "t",
        "rounds": 3,
        "limits": {"copy_bytes": 1e9},
    }
    report.write_table({"machine": machine, "missing": ["x-transformers"], "rows": [row]}, into_page=False)
    out = capsys.readouterr().out
    assert "**x-transformers was not installed and not measured.**" in out
    assert "| train | tiny | 64 | 1 | mosaic | 9 | 64 | 50% |" in out


def test_the_benchmark_for_gpus_walks_through_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {"check", "matrix product", "train", "decode"}
    assert {row["system"] for row in rows if row["what"] == "decode"} == {"mosaic plain", "transformer plain"}
