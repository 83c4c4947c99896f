"""Products of the integer prior in parts: equal to whole ones, whatever the parts."""

import numpy as np
import pytest

from vqtok.integer_prior import blas


@pytest.mark.parametrize("rows", [0, 1, 7, 40])
@pytest.mark.parametrize("columns", [1, 16, 40, 96, 512])
def test_products_in_parts_are_whole_ones(rows: int, columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(blas, "AT_ONCE", 20 * 33 * 7)  # 33 columns of 7 rows, 256 of 2
    draw = np.random.default_rng(0)
    x = draw.integers(0, 256, (rows, 20)).astype(np.float32)
    weight = draw.integers(-127, 128, (20, columns)).astype(np.float32)
    parts, panels = np.full((2, rows, columns), np.nan, np.float32)
    blas.multiply(x, weight, parts)
    cut = blas.panels(weight)
    assert cut.shape == ((2, 20, 256) if columns == 512 else (1, 20, columns))
    blas.multiply_panels(x, cut, panels)
    assert np.array_equal(parts, x @ weight)
    assert np.array_equal(panels, x @ weight)


def test_a_product_is_cut_where_its_factors_would_be_copied(monkeypatch: pytest.MonkeyPatch):
    """What this is for: no part has more products than OpenBLAS sums in place."""
    seen, inner = [], np.matmul

    def spy(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> np.ndarray:
        seen.append(x.size * weight.shape[-1])
        return inner(x, weight, out=out)

    monkeypatch.setattr(np, "matmul", spy)
    for rows in (8, 16, 24):  # of one level of a 768x512 image
        blas.multiply(
            np.ones((rows, 928), np.float32),
            np.ones((928, 192), np.float32),
            np.empty((rows, 192), np.float32),
        )
    blas.multiply_panels(
        np.ones((128, 65), np.float32),
        blas.panels(np.ones((65, 1024), np.float32)),
        np.empty((128, 1024), np.float32),
    )
    assert max(seen) <= blas.AT_ONCE
    assert len(seen) == 2 + 3 + 6 + 3
