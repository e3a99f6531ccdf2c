"""Cross-entropy in bfloat16: against float64, to the precision that bfloat16 has."""

import pytest
import torch
import torch.nn.functional as F

from mosaic_cli.core.kernels.cross_entropy import cross_entropy_


@pytest.mark.parametrize("V", [3, 66, 1000])
def test_cross_entropy_becomes_its_gradient(V):
    logits, targets = (4 * torch.randn(37, V)).bfloat16(), torch.randint(0, V, (37,))
    targets[[0, 9]] = -100
    wide = logits.double().requires_grad_()
    exact = F.cross_entropy(wide, targets, reduction="sum")
    by_logits = torch.autograd.grad(exact, wide)[0]
    loss = cross_entropy_(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.double(), by_logits, rtol=2**-8, atol=1e-7)
    assert not logits[[0, 9]].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_told(bad):
    logits = torch.zeros(5, 66, dtype=torch.bfloat16)
    logits[2, 3] = bad
    assert not cross_entropy_(logits, torch.zeros(5, dtype=torch.long)).isfinite()
