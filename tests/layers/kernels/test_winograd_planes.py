"""Transforms are the products with the published matrices."""

from __future__ import annotations

import numpy as np
import pytest

from spikeformer_lt.layers.kernels.jit import outer
from spikeformer_lt.layers.kernels.simd import BYTES
from spikeformer_lt.layers.kernels.winograd import (
    filter_row,
    filter_vectors,
    gradient_transform,
    input_transform,
    line,
    output_transform,
    spread,
)

LANES = BYTES // 8
# Lavin & Gray 2016, section 4.3
B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])


@outer
def _run(x, y, w, planes, out, gw, t, height, width, channels, lanes):  # type: ignore[no-untyped-def]
    pitch = channels
    input_transform(x, planes[0], t, 0, pitch, height, width, channels, 0, channels, lanes)
    gradient_transform(y, planes[1], t, 0, pitch, height, width, channels, 0, channels, lanes)
    filter_vectors(w, 0, 1, 9, planes[2], 0, pitch)
    output_transform(planes[3], out, t, 0, pitch, height, width, channels, 0, channels, lanes)
    step = 6 * pitch
    a = filter_row(*line(planes[3], 0 * pitch, step))
    b = filter_row(*line(planes[3], 1 * pitch, step))
    c = filter_row(*line(planes[3], 2 * pitch, step))
    d = filter_row(*line(planes[3], 3 * pitch, step))
    e = filter_row(*line(planes[3], 4 * pitch, step))
    f = filter_row(*line(planes[3], 5 * pitch, step))
    for row in range(3):
        values = filter_row(a[row], b[row], c[row], d[row], e[row], f[row])
        spread(gw, 3 * row, 9, values)


@pytest.mark.parametrize("tile", range(4))
def test_every_transformation_at_every_corner(tile: int) -> None:
    rng = np.random.default_rng(tile)
    height, width, n = 6, 7, LANES
    x, y = rng.normal(size=(height, width, n)), rng.normal(size=(height, width, n))
    w, planes = rng.normal(size=(n, 3, 3)), np.zeros((4, 36, n))
    planes[3] = rng.normal(size=(36, n))
    out, gw = np.full((height, width, n), 7.0), np.zeros((n, 9))
    flat = [a.reshape(-1) for a in (x, y, w)]
    rows = tuple(p.reshape(-1) for p in planes)
    _run(*flat, rows, out.reshape(-1), gw.reshape(-1), tile, height, width, n, n)
    top, left = 4 * (tile // 2), 4 * (tile % 2)
    wide = np.pad(x, ((1, 8), (1, 8), (0, 0)))[top : top + 6, left : left + 6]
    tall = np.pad(y, ((0, 8), (0, 8), (0, 0)))[top : top + 4, left : left + 4]

    def both(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.einsum("ai,bj,ijn->abn", matrix, matrix, values)

    close = {"rtol": 0, "atol": 1e-12}
    np.testing.assert_allclose(planes[0].reshape(6, 6, n), both(B, wide), **close)
    np.testing.assert_allclose(planes[1].reshape(6, 6, n), both(A.T, tall), **close)
    np.testing.assert_allclose(planes[2].reshape(6, 6, n), both(G, w.transpose(1, 2, 0)), **close)
    made = both(A, planes[3].reshape(6, 6, n))
    wanted = np.full_like(out, 7.0)
    inside = wanted[top : top + 4, left : left + 4]
    inside[:] = made[: inside.shape[0], : inside.shape[1]]
    np.testing.assert_allclose(out, wanted, **close)
    back = both(G.T, planes[3].reshape(6, 6, n)).transpose(2, 0, 1)
    np.testing.assert_allclose(gw.reshape(n, 3, 3), back, **close)
