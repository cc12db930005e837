"""Parts of the rows are parts of the gradients."""

from __future__ import annotations

import numpy as np

from spikeformer_lt.layers.kernels import matmul as kernels
from spikeformer_lt.layers.kernels.simd import BYTES

LANES = BYTES // 8
WIDE = max(LANES, 8)  # the least that `fits` lets in


def test_parts_write_their_own_rows_only() -> None:
    rng = np.random.default_rng(0)
    g, w = rng.normal(size=(201, 2 * WIDE)), rng.normal(size=(2 * WIDE, WIDE))
    x = rng.normal(size=(201, WIDE))
    gx, gw = np.full((201, WIDE), np.nan), np.full((2 * WIDE, WIDE), np.nan)
    sizes = (WIDE, 2 * WIDE, WIDE // LANES, LANES)
    kernels.inputs_back_kernel(0, 195, g.ravel(), w.ravel(), gx.reshape(-1), *sizes)
    assert not np.isnan(gx[:195]).any() and np.isnan(gx[195:]).all()
    kernels.inputs_back_kernel(195, 201, g.ravel(), w.ravel(), gx.reshape(-1), *sizes)
    np.testing.assert_allclose(gx, g @ w, rtol=0, atol=1e-12)
    sizes = (201, 2 * WIDE, WIDE, WIDE // LANES, LANES)
    kernels.weights_back_kernel(WIDE, 2 * WIDE, g.ravel(), x.ravel(), gw.reshape(-1), *sizes)
    assert not np.isnan(gw[WIDE:]).any() and np.isnan(gw[:WIDE]).all()
    kernels.weights_back_kernel(0, WIDE, g.ravel(), x.ravel(), gw.reshape(-1), *sizes)
    np.testing.assert_allclose(gw, g.T @ x, rtol=0, atol=1e-12)
