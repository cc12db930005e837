"""The numba kernels of the two gradients of a linear map: products that need no transposed copy."""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import numba
import numpy as np

from spikeformer_lt.layers.kernels.lanes import load, store
from spikeformer_lt.layers.kernels.tiles import down, straight
from spikeformer_lt.layers.kernels.vector import inner, outer

_DEPTH = 128  # summed at a time: a panel of that height stays in the first cache
_ROWS = 192  # rows at a time: their values stay in the second


@outer()
def inputs_back(g, w, gx, made, summed, vectors, lanes, lo, hi):
    """Rows lo to hi of gx [., made] = g [., summed] @ w [summed, made].

    A panel of w is copied together first: rows far apart share few sets of the cache.
    """
    cols = vectors * lanes
    right = np.empty(_DEPTH * cols, g.dtype)
    for first in range(lo, hi, _ROWS):
        count = min(_ROWS, hi - first)
        for k in range(0, made, cols):
            for s in range(0, summed, _DEPTH):
                deep = min(_DEPTH, summed - s)
                _gather_rows(w, s * made + k, made, right, 0, deep, vectors, lanes)
                straight(
                    vectors, g, first * summed + s, summed, right, 0, cols,
                    gx, first * made + k, made, count, deep, s > 0,
                )  # fmt: skip


@outer()
def weights_back(g, x, gw, rows, tall, wide, vectors, lanes, lo, hi):
    """Rows lo to hi of gw [tall, wide] = g [rows, tall]^T @ x [rows, wide].

    Both factors are copied together, block by block, for the same reason.
    """
    cols = vectors * lanes
    left, right = np.empty(_DEPTH * (hi - lo), g.dtype), np.empty(_DEPTH * cols, g.dtype)
    for s in range(0, rows, _DEPTH):
        count = min(_DEPTH, rows - s)
        for r in range(lo, hi, lanes):
            _gather_rows(g, s * tall + r, tall, left, (r - lo) * _DEPTH, count, 1, lanes)
        for k in range(0, wide, cols):
            _gather_rows(x, s * wide + k, wide, right, 0, count, vectors, lanes)
            for r in range(lo, hi, lanes):
                down(
                    vectors, left, (r - lo) * _DEPTH, lanes, right, 0, cols,
                    gw, r * wide + k, wide, lanes, count, s > 0,
                )  # fmt: skip


@inner()
def _gather_rows(a, i, lead, b, j, count, vectors, lanes):
    for s in range(count):
        for v in range(vectors):
            store(b, j + (s * vectors + v) * lanes, load(a, i + s * lead + v * lanes))


@outer(parallel=True)
def inputs_back_parallel(g, w, gx, made, summed, vectors, lanes, cuts):
    for p in numba.prange(cuts.size - 1):
        inputs_back(g, w, gx, made, summed, vectors, lanes, cuts[p], cuts[p + 1])


@outer(parallel=True)
def weights_back_parallel(g, x, gw, rows, tall, wide, vectors, lanes, cuts):
    for p in numba.prange(cuts.size - 1):
        weights_back(g, x, gw, rows, tall, wide, vectors, lanes, cuts[p], cuts[p + 1])
