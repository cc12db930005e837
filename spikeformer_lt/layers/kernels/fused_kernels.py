"""The numba kernel of a linear map and its LIF: the currents of a block never leave the cache."""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import numba
import numpy as np

from spikeformer_lt.layers.kernels.lanes import load, store
from spikeformer_lt.layers.kernels.lif_kernels import forward
from spikeformer_lt.layers.kernels.tiles import straight
from spikeformer_lt.layers.kernels.vector import inner, outer

_DEPTH = 192  # summed at a time: a panel of that height stays in the first cache
_WIDTH = 4096  # neurons of a block of the LIF


@inner()
def _copy(a, i, lead, b, j, jump, rows, width, lanes):
    """Rows of b are those of a, or all the same where `lead` is 0."""
    for r in range(rows):
        for c in range(0, width, lanes):
            store(b, j + r * jump + c, load(a, i + r * lead + c))


@outer()
def linear_lif(
    x, static, panels, shift, v0, spikes, v_last, n, summed, k, decay, vectors, lanes, block, lo, hi
):
    """Spikes [T, n, made] of rows x [T|1, n, summed], pieces lo to hi.

    A piece is one block of rows and one panel of the weights, panels[panel, summed, column].
    """
    made, cols = shift.size, vectors * lanes
    steps, count = spikes.size // (n * made), made // cols
    current = np.empty((1 if static is not None else steps) * block * cols, x.dtype)
    fired = np.empty(steps * block * cols, x.dtype)
    last = np.empty(block * cols, x.dtype)
    for piece in range(lo, hi):
        first, panel = piece // count * block, piece % count
        rows = min(block, n - first)
        size = rows * cols
        times, tall = current.size // (block * cols), rows
        if rows == n:  # the rows of all steps lie together
            times, tall = 1, rows * times
        for t in range(times):
            _copy(shift, panel * cols, 0, current, t * size, cols, tall, cols, lanes)
        for s in range(0, summed, _DEPTH):
            for t in range(times):
                straight(
                    vectors, x, (t * n + first) * summed + s, summed,
                    panels, (panel * summed + s) * cols, cols,
                    current, t * size, cols, tall, min(_DEPTH, summed - s), True,
                )  # fmt: skip
        place = first * made + panel * cols
        start = last[:0]
        if v0.size:
            _copy(v0, place, made, last, 0, cols, rows, cols, lanes)
            start = last[:size]
        forward(
            current, static, None, start, fired[: steps * size], last[:size], size, k, decay,
            _WIDTH, 0, size,
        )  # fmt: skip
        for t in range(steps):
            _copy(fired, t * size, cols, spikes, t * n * made + place, made, rows, cols, lanes)
        _copy(last, 0, cols, v_last, place, made, rows, cols, lanes)


@outer(parallel=True)
def linear_lif_parallel(
    x, static, panels, shift, v0, spikes, v_last, n, summed, k, decay, vectors, lanes, block, cuts
):
    for p in numba.prange(cuts.size - 1):
        linear_lif(
            x, static, panels, shift, v0, spikes, v_last, n, summed, k, decay, vectors, lanes,
            block, cuts[p], cuts[p + 1],
        )  # fmt: skip
