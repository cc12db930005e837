"""Parts of the heads are parts of the attention."""

from __future__ import annotations

import numpy as np

from spikeformer_lt.layers.kernels import matmul as kernels
from spikeformer_lt.layers.kernels.simd import BYTES

LANES = BYTES // 8


def test_heads_are_computed_apart() -> None:
    rng = np.random.default_rng(0)
    batch, tokens, heads, width = 2, 5, 3, max(LANES, 8)
    x = (rng.random((batch, tokens, 3, heads, width)) < 0.4).astype(float)
    q, k, v = x.transpose(2, 0, 3, 1, 4)
    wanted = (0.25 * (q @ k.transpose(0, 1, 3, 2)) @ v).transpose(0, 2, 1, 3)
    out = np.full((batch, tokens, heads, width), np.nan)
    sizes = (tokens, heads, width, 0.25, width // LANES, LANES)
    kernels.attend_kernel(2, 5, x.ravel(), out.reshape(-1), *sizes)
    assert np.isnan(out[0, :, :2]).all() and np.isnan(out[1, :, 2]).all()
    assert np.array_equal(out[0, :, 2], wanted[0, :, 2]), "integers over four have no rounding"
    assert np.array_equal(out[1, :, :2], wanted[1, :, :2])
