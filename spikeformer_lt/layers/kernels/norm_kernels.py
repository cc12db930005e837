"""The numba kernels of batch normalisation around the LIF: its statistics and its gradient.

Arrays are flat rows of channels; a block is as wide as the values per channel, repeated to fill it.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, D103
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import numba
import numpy as np

from spikeformer_lt.layers.kernels.vector import (
    get,
    get_gx,
    get_product,
    get_total,
    outer,
    put0,
    put_product,
    put_total,
)


@outer()
def statistics(x, pivot, sums, lo, hi):
    """Sums of x - pivot and of its square, in float64."""
    width = pivot.size
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            d = np.float64(get(x, i + j) - get(pivot, j))
            put_total(sums, j, get_total(sums, j) + d)
            put_product(sums, width + j, get_product(sums, width + j) + d * d)


@outer()
def centre(gx, x, tiles, lo, hi):
    """Turn the gradient of the output into that of x, with the scale, slope and offset in tiles.

    The line in x takes out what x does to the mean and to the variance.
    """
    width = tiles.size // 3
    for i in range(lo, hi, width):
        for j in range(min(width, hi - i)):
            line = get(x, i + j) * get(tiles, width + j) + get(tiles, 2 * width + j)
            put0(gx, i + j, get_gx(gx, i + j) * get(tiles, j) + line)


@outer(parallel=True)
def statistics_parallel(x, pivot, sums, cuts):
    for p in numba.prange(cuts.size - 1):
        statistics(x, pivot, sums[p], cuts[p], cuts[p + 1])


@outer(parallel=True)
def centre_parallel(gx, x, tiles, cuts):
    for p in numba.prange(cuts.size - 1):
        centre(gx, x, tiles, cuts[p], cuts[p + 1])
