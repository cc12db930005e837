"""The numba kernels of spiking attention: q (k^T v) of all heads, read and written in place.

`x` holds q, k and v side by side, [T B, N, 3, h d]; a head is d columns of each. Sums of spikes are
integers, so the order of the products changes nothing in the outputs.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import numba
import numpy as np

from spikeformer_lt.layers.kernels.lanes import load, store
from spikeformer_lt.layers.kernels.tiles import down, straight
from spikeformer_lt.layers.kernels.vector import inner, outer


@inner()
def _between(a, i, lead, b, j, jump, c, width, tokens, vectors, lanes):
    """C [d, d] = a^T b, of the d columns at i of a and at j of b."""
    cols = vectors * lanes
    for k in range(0, width, cols):
        down(vectors, a, i, lead, b, j + k, jump, c, k, width, width, tokens, False)


@inner()
def _through(a, i, lead, b, c, k, pitch, width, tokens, scale, vectors, lanes):
    """The d columns at k of c = scale a b, of the d columns at i of a and b [d, d]."""
    cols = vectors * lanes
    for p in range(0, width, cols):
        straight(vectors, a, i, lead, b, p, width, c, k + p, pitch, tokens, width, False)
    for n in range(tokens):
        for p in range(k + n * pitch, k + n * pitch + width, lanes):
            store(c, p, load(c, p) * scale)


@outer()
def attend(x, out, tokens, heads, width, scale, vectors, lanes, lo, hi):
    """Heads lo to hi of out [T B, N, h d]."""
    dim = heads * width
    keys = np.empty(width * width, x.dtype)
    for h in range(lo, hi):
        row, column = h // heads * tokens, h % heads * width
        q = row * 3 * dim + column
        k, v = q + dim, q + 2 * dim
        _between(x, k, 3 * dim, x, v, 3 * dim, keys, width, tokens, vectors, lanes)
        o = row * dim + column
        _through(x, q, 3 * dim, keys, out, o, dim, width, tokens, scale, vectors, lanes)


@outer()
def attend_back(x, g, gx, tokens, heads, width, scale, vectors, lanes, lo, hi):
    """Heads lo to hi of the gradient of x, from that of the output."""
    dim = heads * width
    lead = 3 * dim
    between = np.empty(width * width, x.dtype)
    for h in range(lo, hi):
        row, column = h // heads * tokens, h % heads * width
        q, o = row * lead + column, row * dim + column
        k, v = q + dim, q + 2 * dim
        _between(x, v, lead, x, k, lead, between, width, tokens, vectors, lanes)
        _through(g, o, dim, between, gx, q, lead, width, tokens, scale, vectors, lanes)
        _between(g, o, dim, x, q, lead, between, width, tokens, vectors, lanes)
        _through(x, v, lead, between, gx, k, lead, width, tokens, scale, vectors, lanes)
        _between(x, q, lead, g, o, dim, between, width, tokens, vectors, lanes)
        _through(x, k, lead, between, gx, v, lead, width, tokens, scale, vectors, lanes)


@outer(parallel=True)
def attend_parallel(x, out, tokens, heads, width, scale, vectors, lanes, cuts):
    for p in numba.prange(cuts.size - 1):
        attend(x, out, tokens, heads, width, scale, vectors, lanes, cuts[p], cuts[p + 1])


@outer(parallel=True)
def attend_back_parallel(x, g, gx, tokens, heads, width, scale, vectors, lanes, cuts):
    for p in numba.prange(cuts.size - 1):
        attend_back(x, g, gx, tokens, heads, width, scale, vectors, lanes, cuts[p], cuts[p + 1])
