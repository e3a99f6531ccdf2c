"""Which form averages the keys, and that it is said."""

import torch

from mosaic_cli.core import kernels

GPU = torch.device("cuda")


def test_a_gpu_is_told_what_averages_its_keys(monkeypatch):
    monkeypatch.delenv(kernels.ASKED, raising=False)
    assert "by PyTorch" in kernels.implementation(GPU) and "MOSAIC_TRITON=1" in kernels.implementation(GPU)
    monkeypatch.setenv(kernels.ASKED, "1")
    monkeypatch.setattr(kernels, "_has_triton", lambda: False)
    assert "Triton is not installed" in kernels.implementation(GPU)
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    assert kernels.implementation(GPU) == "leaky average by Triton"


def test_a_cpu_has_no_choice(monkeypatch):
    monkeypatch.setenv(kernels.ASKED, "1")
    monkeypatch.setattr(kernels, "_has_triton", lambda: True)
    assert "the first step compiles" in kernels.implementation(torch.device("cpu"))
    assert kernels.implementation(torch.device("cpu"), "transformer").startswith("attention by loops")
    assert kernels.implementation(torch.device("cpu"), compiled=True) is None
    assert kernels.implementation(GPU, "transformer") is None
    assert kernels.implementation(torch.device("mps")) is None
    assert not kernels.serves(torch.zeros(1))
