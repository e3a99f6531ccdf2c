"""Cross-entropy against float64, to the precision of its dtype."""

import pytest
import torch
import torch.nn.functional as F

from mosaic_cli.core.kernels.cross_entropy import cross_entropy_

PRECISION = {torch.bfloat16: 2**-8, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("V", [3, 66, 1000])
def test_cross_entropy_becomes_its_gradient(V, dtype):
    logits, targets = (4 * torch.randn(37, V)).to(dtype), torch.randint(0, V, (37,))
    targets[[0, 9]] = -100
    wide = logits.double().requires_grad_()
    exact = F.cross_entropy(wide, targets, reduction="sum")
    by_logits = torch.autograd.grad(exact, wide)[0]
    loss = cross_entropy_(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.double(), by_logits, rtol=PRECISION[dtype], atol=1e-7)
    assert not logits[[0, 9]].any()


@pytest.mark.parametrize("dtype", PRECISION)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_is_told(bad, dtype):
    logits = torch.zeros(5, 66, dtype=dtype)
    logits[2, 3] = bad
    assert not cross_entropy_(logits, torch.zeros(5, dtype=torch.long)).isfinite()
