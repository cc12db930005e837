"""Tiles of maps, gradients and weights turned into the planes of Winograd's F(4x4, 3x3) and back.

Maps are flat, channels-last; a place outside a map reads 0 and is not written. A tile of 4x4
outputs comes of 6x6 inputs; both, and 3x3 weights, become 36 planes, plane 6 r + c for row r and
column c, on which a convolution is a product.

Source: Lavin & Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.
"""

# numba infers the types:
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

from spikeformer_lt.layers.kernels.lanes import gather, load, load_if, scatter, store
from spikeformer_lt.layers.kernels.vector import inner


@inner()
def _data(d0, d1, d2, d3, d4, d5):
    """B^T d."""
    even, odd = d4 - d2 * 4.0, d3 - d1 * 4.0
    near, far = d4 - d2, (d3 - d1) * 2.0
    first, last = d4 - d2 * 5.0 + d0 * 4.0, d5 - d3 * 5.0 + d1 * 4.0
    return first, even + odd, even - odd, near + far, near - far, last


@inner()
def _weight(g0, g1, g2):
    """G g."""
    a, b = (g0 + g2) * (-1.0 / 6.0), g1 * (1.0 / 6.0)
    c, d = g0 * (1.0 / 24.0) + g2 * (1.0 / 6.0), g1 * (1.0 / 12.0)
    return g0 * 0.25, a - b, a + b, c + d, c - d, g2


@inner()
def weight_back(m0, m1, m2, m3, m4, m5):
    """G^T m."""
    s, t = (m1 + m2) * (1.0 / 6.0), m3 + m4
    first = m0 * 0.25 - s + t * (1.0 / 24.0)
    return first, (m2 - m1) * (1.0 / 6.0) + (m3 - m4) * (1.0 / 12.0), t * (1.0 / 6.0) - s + m5


@inner()
def _out(m0, m1, m2, m3, m4, m5):
    """A^T m."""
    a, b, c, d = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + a + c, b + d * 2.0, a + c * 4.0, b + d * 8.0 + m5


@inner()
def _out_back(y0, y1, y2, y3):
    """A y."""
    a, b = y0 + y2, y1 + y3
    c, d = y0 + y2 * 4.0, y1 * 2.0 + y3 * 8.0
    return y0, a + b, a - b, c + d, c - d, y3


@inner()
def _place(t, height, width):
    """First row and column, and image, of tile t."""
    down, across = (height + 3) // 4, (width + 3) // 4
    image = t // (down * across)
    t -= image * down * across
    return 4 * (t // across), 4 * (t % across), image


@inner()
def _column(x, i, step, j, width, r0, r1, r2, r3, r4, r5):
    ok = (j >= 0) & (j < width)
    return _data(
        load_if(x, i, ok & r0),
        load_if(x, i + step, ok & r1),
        load_if(x, i + 2 * step, ok & r2),
        load_if(x, i + 3 * step, ok & r3),
        load_if(x, i + 4 * step, ok & r4),
        load_if(x, i + 5 * step, ok & r5),
    )


@inner()
def put(v, i, pitch, values):
    store(v, i, values[0])
    store(v, i + pitch, values[1])
    store(v, i + 2 * pitch, values[2])
    store(v, i + 3 * pitch, values[3])
    store(v, i + 4 * pitch, values[4])
    store(v, i + 5 * pitch, values[5])


@inner()
def data_in(x, v, t, slot, pitch, height, width, channels, lo, hi, lanes):
    """Planes of the inputs of tile t, channels lo to hi, at [plane, slot, channel - lo] of v."""
    h, w, image = _place(t, height, width)
    top, step = h - 1, width * channels
    r0, r1, r2, r3 = top >= 0, True, top + 2 < height, top + 3 < height
    r4, r5 = top + 4 < height, top + 5 < height
    base = ((image * height + top) * width + w - 1) * channels
    for c in range(lo, hi, lanes):
        i = base + c
        a = _column(x, i, step, w - 1, width, r0, r1, r2, r3, r4, r5)
        b = _column(x, i + channels, step, w, width, r0, r1, r2, r3, r4, r5)
        d = _column(x, i + 2 * channels, step, w + 1, width, r0, r1, r2, r3, r4, r5)
        e = _column(x, i + 3 * channels, step, w + 2, width, r0, r1, r2, r3, r4, r5)
        f = _column(x, i + 4 * channels, step, w + 3, width, r0, r1, r2, r3, r4, r5)
        g = _column(x, i + 5 * channels, step, w + 4, width, r0, r1, r2, r3, r4, r5)
        o = slot * (hi - lo) + c - lo
        put(v, o, pitch, _data(a[0], b[0], d[0], e[0], f[0], g[0]))
        put(v, o + 6 * pitch, pitch, _data(a[1], b[1], d[1], e[1], f[1], g[1]))
        put(v, o + 12 * pitch, pitch, _data(a[2], b[2], d[2], e[2], f[2], g[2]))
        put(v, o + 18 * pitch, pitch, _data(a[3], b[3], d[3], e[3], f[3], g[3]))
        put(v, o + 24 * pitch, pitch, _data(a[4], b[4], d[4], e[4], f[4], g[4]))
        put(v, o + 30 * pitch, pitch, _data(a[5], b[5], d[5], e[5], f[5], g[5]))


@inner()
def _side(y, i, step, ok, r1, r2, r3):
    return _out_back(
        load_if(y, i, ok),
        load_if(y, i + step, ok & r1),
        load_if(y, i + 2 * step, ok & r2),
        load_if(y, i + 3 * step, ok & r3),
    )


@inner()
def grad_in(y, m, t, slot, pitch, height, width, channels, lo, hi, lanes):
    """Planes of the gradient of tile t's outputs, as of the inputs in :func:`_data_in`."""
    h, w, image = _place(t, height, width)
    step = width * channels
    r1, r2, r3 = h + 1 < height, h + 2 < height, h + 3 < height
    base = ((image * height + h) * width + w) * channels
    for c in range(lo, hi, lanes):
        i = base + c
        a = _side(y, i, step, True, r1, r2, r3)
        b = _side(y, i + channels, step, w + 1 < width, r1, r2, r3)
        d = _side(y, i + 2 * channels, step, w + 2 < width, r1, r2, r3)
        e = _side(y, i + 3 * channels, step, w + 3 < width, r1, r2, r3)
        o = slot * (hi - lo) + c - lo
        put(m, o, pitch, _out_back(a[0], b[0], d[0], e[0]))
        put(m, o + 6 * pitch, pitch, _out_back(a[1], b[1], d[1], e[1]))
        put(m, o + 12 * pitch, pitch, _out_back(a[2], b[2], d[2], e[2]))
        put(m, o + 18 * pitch, pitch, _out_back(a[3], b[3], d[3], e[3]))
        put(m, o + 24 * pitch, pitch, _out_back(a[4], b[4], d[4], e[4]))
        put(m, o + 30 * pitch, pitch, _out_back(a[5], b[5], d[5], e[5]))


@inner()
def _line(m, i, pitch):
    return _out(
        load(m, i),
        load(m, i + pitch),
        load(m, i + 2 * pitch),
        load(m, i + 3 * pitch),
        load(m, i + 4 * pitch),
        load(m, i + 5 * pitch),
    )


@inner()
def _row_out(y, i, channels, left, r, a, b, d, e, f, g):
    done = _out(a[r], b[r], d[r], e[r], f[r], g[r])
    store(y, i, done[0])
    if left > 1:
        store(y, i + channels, done[1])
    if left > 2:
        store(y, i + 2 * channels, done[2])
    if left > 3:
        store(y, i + 3 * channels, done[3])


@inner()
def planes_out(m, y, t, slot, pitch, height, width, channels, lo, wide, lanes):
    """Outputs of tile t, channels lo to lo + wide, from the planes at [plane, slot] of m."""
    h, w, image = _place(t, height, width)
    base = ((image * height + h) * width + w) * channels + lo
    down, left, step = height - h, width - w, width * channels
    for c in range(0, wide, lanes):
        o, i = slot * wide + c, base + c
        # the sums over the rows of the planes first, plane [row, column] being 6 row + column
        a = _line(m, o, 6 * pitch)
        b = _line(m, o + pitch, 6 * pitch)
        d = _line(m, o + 2 * pitch, 6 * pitch)
        e = _line(m, o + 3 * pitch, 6 * pitch)
        f = _line(m, o + 4 * pitch, 6 * pitch)
        g = _line(m, o + 5 * pitch, 6 * pitch)
        _row_out(y, i, channels, left, 0, a, b, d, e, f, g)
        if down > 1:
            _row_out(y, i + step, channels, left, 1, a, b, d, e, f, g)
        if down > 2:
            _row_out(y, i + 2 * step, channels, left, 2, a, b, d, e, f, g)
        if down > 3:
            _row_out(y, i + 3 * step, channels, left, 3, a, b, d, e, f, g)


@inner()
def column_back(total, i, pitch):
    return weight_back(
        load(total, i),
        load(total, i + pitch),
        load(total, i + 2 * pitch),
        load(total, i + 3 * pitch),
        load(total, i + 4 * pitch),
        load(total, i + 5 * pitch),
    )


@inner()
def spread(gw, i, step, values):
    scatter(gw, i, step, values[0])
    scatter(gw, i + 1, step, values[1])
    scatter(gw, i + 2, step, values[2])


@inner()
def weight_in(w, i, s, step, u, o, pitch):
    """Planes of the 3x3 weights at i, s apart, of a vector of outputs, `step` apart."""
    a = _weight(gather(w, i, step), gather(w, i + 3 * s, step), gather(w, i + 6 * s, step))
    i += s
    b = _weight(gather(w, i, step), gather(w, i + 3 * s, step), gather(w, i + 6 * s, step))
    i += s
    d = _weight(gather(w, i, step), gather(w, i + 3 * s, step), gather(w, i + 6 * s, step))
    put(u, o, pitch, _weight(a[0], b[0], d[0]))
    put(u, o + 6 * pitch, pitch, _weight(a[1], b[1], d[1]))
    put(u, o + 12 * pitch, pitch, _weight(a[2], b[2], d[2]))
    put(u, o + 18 * pitch, pitch, _weight(a[3], b[3], d[3]))
    put(u, o + 24 * pitch, pitch, _weight(a[4], b[4], d[4]))
    put(u, o + 30 * pitch, pitch, _weight(a[5], b[5], d[5]))
