"""Sums of rows by weights in loops, beside NumPy's in float64."""

import numpy as np
import pytest

from mosaic_cli.core.kernels.weighted import WIDEST, add_weighted


@pytest.mark.parametrize("count", [0, 1, 7, 8, 61, 64])
@pytest.mark.parametrize("width", [1, 31, 32, 64, 100, WIDEST, WIDEST + 96 + 5])
@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_rows_are_added_by_their_weights(kind, width, count):
    """For widths that registers hold and such as leave numbers over; rows may lie apart."""
    numbers = np.random.default_rng(width + count)
    weights = numbers.standard_normal(count).astype(np.float32)
    rows = (1000 * numbers.standard_normal((count, width + 3))).astype(kind)[:, :width]
    total = numbers.standard_normal(width).astype(np.float32)
    expected = total.astype(np.float64) + weights.astype(np.float64) @ rows.astype(np.float64)
    add_weighted(weights, rows, total)
    np.testing.assert_allclose(total, expected, atol=5e-6 * 1000 * max(1, count) ** 0.5, rtol=1e-5)
