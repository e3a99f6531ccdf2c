"""Which form averages the keys, and that it is said."""

import torch

from mosaic_cli.core import kernels
from mosaic_cli.core.config import ModelConfig

GPU = torch.device("cuda")


def _said(device=GPU, dtype=torch.float32, kind="mosaic", compiled=False, T=256, **changes):
    config = ModelConfig(kind=kind, num_layers=1, num_heads=1, d_model=8, context_length=T, **changes)
    return kernels.implementation(device, dtype, config, compiled)


def test_a_gpu_is_told_what_computes_its_keys(monkeypatch):
    monkeypatch.setattr(kernels, "HAS_TRITON", False)
    assert "Triton is not installed" in _said()
    monkeypatch.setattr(kernels, "HAS_TRITON", True)
    assert _said() == "keys and values by Triton"
    assert _said(kind="transformer") is None


def test_a_cpu_has_no_choice(monkeypatch):
    monkeypatch.setattr(kernels, "HAS_TRITON", True)
    cpu = torch.device("cpu")
    monkeypatch.setattr(kernels, "_has_tile", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(kernels, "_is_wider_than_torch", lambda: True)
    assert _said(cpu, T=64).startswith("attention, keys, values by loops"), "slots"
    assert _said(cpu, kind="transformer", T=2048).startswith("attention by loops")
    assert _said(cpu, kind="transformer", T=64).startswith("attention by loops")
    monkeypatch.setattr(kernels, "_is_wider_than_torch", lambda: False)
    assert _said(cpu, kind="transformer", T=64) is None
    assert _said(cpu).startswith("attention, keys, values by loops, which the first step compiles")
    assert _said(cpu, torch.bfloat16).startswith("keys, values by loops")
    assert _said(cpu, T=128).startswith("keys, values by loops") and _said(cpu, T=1026).startswith("keys, values by")
    assert _said(cpu, dropout=0.1).startswith("keys, values by loops")
    assert _said(cpu, kind="transformer", T=129).startswith("attention by loops")
    assert _said(cpu, preset="v2", T=2048, short_window=64).startswith("attention, keys, values by loops")
    assert _said(cpu, preset="v2", T=2048, short_window=1025).startswith("keys, values by loops")
    monkeypatch.setattr(kernels, "_has_tile", lambda dtype: dtype == torch.bfloat16)
    assert _said(cpu).startswith("keys, values by loops, which the first step compiles")
    assert _said(cpu, torch.bfloat16).startswith("attention, keys, values by loops")
    assert _said(cpu, torch.bfloat16, "transformer").startswith("attention by loops")
    monkeypatch.setattr(kernels, "_has_tile", lambda _: False)
    assert _said(cpu, torch.bfloat16).startswith("keys, values by loops")
    assert _said(cpu, torch.bfloat16, "transformer") is None
    assert _said(cpu, kind="transformer") is None and _said(cpu, compiled=True) is None
    assert _said(torch.device("mps")) is None
    assert not kernels.serves(torch.zeros(1))
