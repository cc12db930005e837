"""Products of linear maps and of attention.

Of a linear map there are both gradients without a transposed copy, and, for inference, the map
fused with its LIF: the currents of a block never leave the cache. Attention is q (k^T v) of all
heads without copies; sums of spikes are integers, so the order of its products changes no output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels.bits import Bits, Neurons, fire, make_tuple, spread
from spikeformer_lt.layers.kernels.jit import (
    again,
    at,
    cut,
    flat,
    get,
    get_gx,
    inner,
    new,
    once,
    outer,
    put0,
    run,
)
from spikeformer_lt.layers.kernels.lif import constants, forward
from spikeformer_lt.layers.kernels.lists import zeros
from spikeformer_lt.layers.kernels.simd import (
    BYTES,
    call,
    down,
    load,
    loop,
    panel_vectors,
    store,
    straight,
)
from spikeformer_lt.layers.kernels.sparse import Side

_DEPTH = 128  # summed at a time: a panel of that height stays in the first cache
_ROWS = 192  # rows at a time: their values stay in the second


@inner()
def _copy(a, i, lead, b, j, jump, rows, width, lanes):
    """Rows of b are those of a, or all the same where `lead` is 0."""
    for r in range(rows):
        for c in range(0, width, lanes):
            store(b, j + r * jump + c, load(a, i + r * lead + c))


@inner()
def _lift(a, i, lead, stream, b, j, jump, rows, width, lanes):
    """Rows of b are those of a, plus those of a stream in the places of b."""
    for r in range(rows):
        for c in range(0, width, lanes):
            place = j + r * jump + c
            store(b, place, load(a, i + r * lead + c) + load(stream, place))


@outer
def inputs_back_kernel(lo, hi, g, w, gx, made, summed, vectors, lanes):
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
                _copy(w, s * made + k, made, right, 0, cols, deep, cols, lanes)
                straight(
                    vectors, g, first * summed + s, summed, right, 0, cols,
                    gx, first * made + k, made, count, deep, s > 0,
                )  # fmt: skip


@outer
def weights_back_kernel(lo, hi, g, x, gw, rows, tall, wide, vectors, lanes):
    """Rows lo to hi of gw [tall, wide] = g [rows, tall]^T @ x [rows, wide].

    Both factors are copied together, block by block, for the same reason.
    """
    cols = vectors * lanes
    left, right = np.empty(_DEPTH * (hi - lo), g.dtype), np.empty(_DEPTH * cols, g.dtype)
    for s in range(0, rows, _DEPTH):
        count = min(_DEPTH, rows - s)
        for r in range(lo, hi, lanes):
            _copy(g, s * tall + r, tall, left, (r - lo) * _DEPTH, lanes, count, lanes, lanes)
        for k in range(0, wide, cols):
            _copy(x, s * wide + k, wide, right, 0, cols, count, cols, lanes)
            for r in range(lo, hi, lanes):
                down(
                    vectors, left, (r - lo) * _DEPTH, lanes, right, 0, cols,
                    gw, r * wide + k, wide, lanes, count, s > 0,
                )  # fmt: skip


_TALL = 48  # a part is whole tiles of 6 or 8 rows


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the widths are whole vectors, and the memory is in order."""
    lanes = BYTES // x.element_size()
    return (
        weight.shape[1] % max(lanes, 8) == 0  # tiles of 8 rows need 8 lanes, or two vectors of 4
        and weight.shape[0] % max(lanes, 8) == 0
        and x.dtype == weight.dtype
        and x.is_contiguous()
        and weight.is_contiguous()
    )


def inputs_back(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad @ weight``, of [N, D'] and [D', D]."""
    summed, made = weight.shape
    lanes = BYTES // grad.element_size()
    gx = new(grad, (grad.shape[0], made))
    cuts = cut(grad.shape[0], grad.numel() * made, _TALL)
    args = (flat(grad), flat(weight), flat(gx), made, summed, panel_vectors(made, lanes), lanes)
    run(inputs_back_kernel, cuts, args)
    return gx


def weights_back(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x``, of [N, D'] and [N, D]."""
    rows, tall, wide = *grad.shape, x.shape[1]
    lanes = BYTES // x.element_size()
    gw = new(x, (tall, wide))
    cuts = cut(tall, grad.numel() * wide, max(lanes, 8))
    args = (flat(grad), flat(x), flat(gw), rows, tall, wide, panel_vectors(wide, lanes), lanes)
    run(weights_back_kernel, cuts, args)
    return gw


_FUSED_DEPTH = 192  # summed at a time: a panel of that height stays in the first cache
_WIDTH = 4096  # neurons of a block of the LIF


@outer
def linear_lif_kernel(
    lo, hi, x, static, panels, shift, v0, spikes, stream, v_last, n, summed, k, decay, vectors,
    lanes, block,
):  # fmt: skip
    """Spikes [T, n, made] of rows x [T|1, n, summed], or their sums with a stream; pieces lo to hi.

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
        for s in range(0, summed, _FUSED_DEPTH):
            for t in range(times):
                straight(
                    vectors, x, (t * n + first) * summed + s, summed,
                    panels, (panel * summed + s) * cols, cols,
                    current, t * size, cols, tall, min(_FUSED_DEPTH, summed - s), True,
                )  # fmt: skip
        place = first * made + panel * cols
        start = last[:0]
        if v0.size:
            _copy(v0, place, made, last, 0, cols, rows, cols, lanes)
            start = last[:size]
        forward(
            0, size, current, static, None, start, fired[: steps * size], None, last[:size], size,
            k, decay, _WIDTH,
        )  # fmt: skip
        for t in range(steps):
            to = t * n * made + place
            if stream is None:
                _copy(fired, t * size, cols, spikes, to, made, rows, cols, lanes)
            else:
                _lift(fired, t * size, cols, stream, spikes, to, made, rows, cols, lanes)
        _copy(last, 0, cols, v_last, place, made, rows, cols, lanes)


_BLOCK = 48  # rows of a step that are multiplied together


def as_panels(weight: Tensor) -> Tensor | None:
    """Weights [D', D] as the kernel reads them, [panel, D, column]; None if D' is no vectors."""
    vectors = panel_vectors(weight.shape[0], BYTES // weight.element_size())
    if not vectors:
        return None
    columns = vectors * BYTES // weight.element_size()
    return weight.reshape(-1, columns, weight.shape[1]).transpose(1, 2).contiguous()


def linear_lif(
    x: Tensor, panels: Tensor, shift: Tensor, v: Tensor | None, T: int, p: NeuronConfig,
    stream: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Spikes [T, ..., D'] of LIF neurons on ``x @ weight.T + shift``, and the last voltage.

    x [T|1, ..., D] is contiguous, `panels` the weight by :func:`as_panels`; `v` as of `lif`,
    `stream` as of `lif.Work.forward`.
    """
    made, summed = shift.numel(), x.shape[-1]
    n = x.numel() // (x.shape[0] * summed)
    shape = (*x.shape[1:-1], made)
    spikes, last = new(x, (T, *shape)), new(x, shape)
    lanes = BYTES // x.element_size()
    vectors = panels.shape[2] // lanes
    pieces = -(-n // _BLOCK) * panels.shape[0]
    start = flat(x[:0]) if v is None else flat(v.contiguous())
    static = True if x.shape[0] == 1 and T > 1 else None
    where = (flat(spikes), None if stream is None else flat(stream), flat(last), n, summed)
    flags = (constants(p, flat(x[:0]).dtype), p.decay_input or None, vectors, lanes, _BLOCK)
    args = (flat(x), static, flat(panels), flat(shift), start, *where, *flags)
    cuts = cut(pieces, x.numel() * made, 1)
    run(linear_lif_kernel, cuts, args)
    return spikes, last


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


@outer
def attend_kernel(lo, hi, x, out, tokens, heads, width, scale, vectors, lanes):
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


@outer
def attend_back(lo, hi, x, g, gx, tokens, heads, width, scale, vectors, lanes):
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


def heads_fit(x: Tensor, heads: int) -> bool:
    """Whether a head is whole vectors wide."""
    return x.shape[-1] % (heads * max(8, BYTES // x.element_size())) == 0


def attend(x: Tensor, heads: int, scale: float) -> Tensor:
    """``scale q k^T v`` in torch's operations, of x ``[T, B, N, 3, D]``."""
    q, k, v = x.unflatten(-1, (heads, -1)).permute(3, 0, 1, 4, 2, 5)
    out: Tensor = (q @ (k.transpose(-2, -1) @ v) * scale).transpose(2, 3).flatten(3)
    return out


def _attend(kernel: Any, x: Tensor, arrays: tuple[Tensor, ...], heads: int, scale: float) -> None:
    tokens, width = x.shape[2], x.shape[-1] // heads
    lanes = BYTES // x.element_size()
    count = x.shape[0] * x.shape[1] * heads
    sizes = (tokens, heads, width, flat(x[:0]).dtype.type(scale))
    cuts = cut(count, x.numel() * width, 1)
    run(kernel, cuts, (*map(flat, arrays), *sizes, panel_vectors(width, lanes), lanes))


def attended(x: Tensor, heads: int, scale: float) -> Tensor:
    """As `attend`, by the kernel: of contiguous x, k times v first, then q with that."""
    out = new(x, (*x.shape[:3], x.shape[-1]))
    _attend(attend_kernel, x, (x, out), heads, scale)
    return out


def attended_back(x: Tensor, grad: Tensor, heads: int, scale: float) -> Tensor:
    """Gradient of x from that of `attended`: the other pairs."""
    gx = new(x, x.shape)
    _attend(attend_back, x, (x, grad.contiguous(), gx), heads, scale)
    return gx


class AttentionFunction(torch.autograd.Function):
    """``scale q k^T v`` of every head of x ``[T, B, N, 3, D]``, as ``[T, B, N, D]``; saves x.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 7-8.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, scale: float) -> Tensor:
        """Run the kernel."""
        ctx.save_for_backward(x)
        ctx.sizes = heads, scale
        return attended(x, heads, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Run it backward."""
        (x,) = ctx.saved_tensors
        found = once(lambda: (attended_back(x, grad, *ctx.sizes),))
        if found is None:
            found = again(lambda x: attend(x, *ctx.sizes), (x,), grad)
        return *found, None, None


@intrinsic
def gathered(_context, sums, bits, base, table, place, pitch, jump, count, steps, groups):
    """Sums plus table[place + s jump + e pitch] where bits[base + e R + s G + g] are set.

    Entries are e < count; steps have values of their own here.
    """
    width, apart = len(sums), len(groups)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = cgutils.unpack_tuple(builder, args[0])
        side = Side(context, builder, signature.args[1], args[1:3], width)
        values = at(context, builder, signature.args[3], args[3], args[4])

        def body(e: Any, before: Any) -> Any:
            row, spot = side.row(e), cgutils.gep(builder, values, builder.mul(e, args[5]))
            weights = [
                spread(
                    builder,
                    builder.load(cgutils.gep(builder, spot, builder.mul(args[6], e.type(s)))),
                )
                for s in range(width // apart)
            ]
            return [side.add(row, r, weights[r // apart], x) for r, x in enumerate(before)]

        sums = loop(builder, args[7].type(0), args[7], start, body)
        return make_tuple(context, builder, signature, sums)

    whole = types.intp
    own = (bits, whole, table, whole, whole, whole, whole, steps, groups)
    return sums(sums, *own), generate


@intrinsic
def common(_context, a, b):
    """How many bits two words share."""

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        return call(builder, f"llvm.ctpop.i{kind.width}", kind, [builder.and_(*args)])

    return a(a, a), generate


@outer
def attend_bits_kernel(lo, hi, words, out, near, heads, depth, gain, shift, k, soft, kinds):
    """Spikes of ``gain q k^T v + shift``, of heads lo to hi of all samples, `near` tiles each.

    Keys times values are counts of tokens in both; a query then adds the counts of its channels.
    """
    steps, groups, registers = kinds
    T, G = len(steps), len(groups)
    bits = words.view(np.uint16)
    per = G * 16 // (words.itemsize * 8)
    width = T * per  # words of a channel
    dim = heads * depth
    keys, values = np.empty(depth, words.dtype), np.empty(depth, words.dtype)
    counts, table = np.empty(depth, words.dtype), np.empty(T * depth * depth, k.dtype)
    for piece in range(lo, hi):
        first, head = piece // heads * near, piece % heads * depth
        for s in range(T):
            table_s = table[s * depth * depth :]
            table_s[: depth * depth] = 0
            for tile in range(first, first + near):
                for u in range(per):
                    base = (tile * 3 * dim + head) * width + s * per + u
                    for c in range(depth):
                        keys[c] = words[base + (dim + c) * width]
                        values[c] = words[base + (2 * dim + c) * width]
                    for c in range(depth):
                        for d in range(depth):
                            put0(counts, d, common(keys[c], get(values, d)))
                        for d in range(c * depth, c * depth + depth):
                            put0(table_s, d, get_gx(table_s, d) + get(counts, d - c * depth))
        for tile in range(first, first + near):
            base = (tile * 3 * dim + head) * T * G
            for d in range(depth):
                sums = gathered(
                    zeros(table, registers), bits, base, table, d, depth, depth * depth, depth,
                    steps, groups,
                )  # fmt: skip
                place = (tile * dim + head + d) * T * G
                fire(sums, gain, shift, k, soft, out, place, steps, groups)


def attend_bits(x: Bits, heads: int, scale: float, neurons: Neurons) -> Bits | None:
    """Spikes of neurons on ``scale q k^T v`` of x [T, B, N, 3 D]; None unless N is whole tiles."""
    T, B, N, dim = *x.shape[:3], x.shape[3] // 3
    if N % (16 * x.groups) or x.most != 1:
        return None
    made = Bits.empty((T, B, N, dim), x.dtype, 1, x.groups)
    k = neurons.constants(torch.empty(0, dtype=x.dtype, device="cpu").numpy().dtype)
    gain, shift = k.dtype.type(scale * neurons.scale), k.dtype.type(neurons.shift)
    words = x.words.view({1: np.uint16, 2: np.uint32}.get(x.groups, np.uint64))
    sizes = N // (16 * x.groups), heads, dim // heads
    args = (words, made.words, *sizes, gain, shift, k, neurons.soft or None)
    work = T * B * N * dim * (dim // heads) // 4
    run(attend_bits_kernel, cut(B * heads, work, 1), args, counts=(*x.counts, T * x.groups))
    return made
