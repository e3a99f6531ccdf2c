"""Which form averages the keys, and that it is said."""

import torch

from mosaic_cli.core import kernels


def test_a_gpu_without_triton_is_told_so(monkeypatch):
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert "Triton is not installed" in kernels.implementation(torch.device("cuda"))
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    assert kernels.implementation(torch.device("cuda")) == "leaky average by Triton"


def test_a_cpu_has_no_choice(monkeypatch):
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    assert kernels.implementation(torch.device("cpu")) is None
    assert not kernels.serves(torch.zeros(1))
