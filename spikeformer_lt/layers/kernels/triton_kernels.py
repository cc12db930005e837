"""Triton kernels for CUDA: batch normalisation with LIF, LIF that writes bits, spiking attention.

Held to reference.py in Triton's interpreter; `dispatch` takes them only where a table of measured
times says so. A block of [rows, channels] is one program; it goes through all steps with the
voltage in registers. The backward pass computes the voltages again, into the memory of the
gradient. Sums are made per block and added in one order, so a step gives the same bits twice.

Neurons without a normalisation are one row. Arithmetic is in float32 at least; 16-bit inputs are
read and 16-bit spikes and gradients written as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels.dispatch import TritonError
from spikeformer_lt.layers.kernels.jit import again, once
from spikeformer_lt.layers.kernels.matmul import attend
from spikeformer_lt.layers.kernels.reference import norm_lif as norm_lif_plain

_BLOCK = 1024  # elements of a program
_ROWS = 16  # blocks that one program of the statistics adds
_TOKENS = 32  # of a product of the attention
_EXACT = 2048  # whole numbers up to this are exact in float16


@triton.jit
def _places(rows, channels, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Places of a program's block, whether they exist, and the same of its channels."""
    across = tl.cdiv(channels, COLS)
    block = tl.program_id(0)
    row = (block // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = (block % across).to(tl.int64) * COLS + tl.arange(0, COLS)[None, :]
    return row * channels + col, (row < rows) & (col < channels), col, col < channels


@triton.jit
def _line(mean, var, weight, bias, col, there, EPS: tl.constexpr, KIND: tl.constexpr):
    """Mean, 1 / deviation, scale and shift of a normalisation, per channel."""
    middle = tl.load(mean + col, there, 0.0).to(KIND)
    inverse = 1 / tl.sqrt(tl.load(var + col, there, 1.0).to(KIND) + EPS)
    scale = inverse
    if weight is not None:
        scale = inverse * tl.load(weight + col, there, 0.0).to(KIND)
    shift = -middle * scale
    if bias is not None:
        shift += tl.load(bias + col, there, 0.0).to(KIND)
    return middle, inverse, scale, shift


@triton.jit
def _start(v0, places, real, REST: tl.constexpr, KIND: tl.constexpr):
    """The voltage before the first step."""
    if v0 is None:
        v = tl.full(places.shape, REST, KIND)
    else:
        v = tl.load(v0 + places, real, 0.0).to(KIND)
    return v


@triton.jit
def _charge(x, v, TAU: tl.constexpr, REST: tl.constexpr, DECAY: tl.constexpr):
    """The voltage before firing."""
    return v + (x - (v - REST)) / TAU if DECAY else v - (v - REST) / TAU + x


@triton.jit
def _reset(h, THRESHOLD: tl.constexpr, REST: tl.constexpr, HARD: tl.constexpr):
    """The voltage after firing."""
    if HARD:
        v = tl.where(h >= THRESHOLD, tl.full(h.shape, REST, h.dtype), h)  # a number is a float32
    else:
        v = tl.where(h >= THRESHOLD, h - THRESHOLD, h)
    return v


@triton.jit
def _slope(u, SURROGATE: tl.constexpr, ALPHA: tl.constexpr):
    """Derivative of the surrogate; `reference.surrogate_derivative`."""
    if SURROGATE == "sigmoid":
        e = tl.exp(-tl.abs(u * ALPHA))
        d = e / ((1 + e) * (1 + e)) * ALPHA
    elif SURROGATE == "atan":
        z = u * (ALPHA * 1.5707963267948966)
        d = (ALPHA / 2) / (1 + z * z)
    elif SURROGATE == "hardtanh":
        d = tl.where(tl.abs(u * ALPHA) <= 1, tl.full(u.shape, ALPHA, u.dtype), 0.0)
    else:  # bireal
        d = tl.maximum(1 - tl.abs(u * ALPHA), 0.0) * (2 * ALPHA)
    return d


@triton.jit(do_not_specialize=["rows"])  # 1 would become a constant of the code
def _moments(x, sums, rows, channels, ROWS: tl.constexpr, COLS: tl.constexpr, REPEAT: tl.constexpr,
             KIND: tl.constexpr):  # fmt: skip
    """Sums of x - pivot and of its square, [programs of rows, 2, channels]; the pivot is row 0."""
    across = tl.cdiv(channels, COLS)
    part = (tl.program_id(0) // across).to(tl.int64)
    col = (tl.program_id(0) % across).to(tl.int64) * COLS + tl.arange(0, COLS)[None, :]
    pivot = tl.load(x + col, col < channels, 0.0).to(KIND)
    total = tl.zeros([ROWS, COLS], KIND)
    square = tl.zeros([ROWS, COLS], KIND)
    for i in range(REPEAT):
        row = (part * REPEAT + i) * ROWS + tl.arange(0, ROWS)[:, None]
        real = (row < rows) & (col < channels)
        d = tl.load(x + row * channels + col, real, 0.0).to(KIND) - pivot
        d = tl.where(real, d, 0.0)
        total += d
        square += d * d
    target = sums + part * 2 * channels + col
    tl.store(target, tl.sum(total, 0)[None, :], col < channels)
    tl.store(target + channels, tl.sum(square, 0)[None, :], col < channels)


@triton.jit(do_not_specialize=["rows"])  # 1 would become a constant of the code
def _forward(x, mean, var, weight, bias, v0, out, last, rows, channels,
             T: tl.constexpr, STATIC: tl.constexpr, BITS: tl.constexpr, EPS: tl.constexpr,
             TAU: tl.constexpr, THRESHOLD: tl.constexpr, REST: tl.constexpr, HARD: tl.constexpr,
             DECAY: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr,
             COLS: tl.constexpr):  # fmt: skip
    places, real, col, there = _places(rows, channels, ROWS, COLS)
    n = rows.to(tl.int64) * channels
    if mean is not None:
        _, _, scale, shift = _line(mean, var, weight, bias, col, there, EPS, KIND)
    if BITS:  # channels are whole words, so that these blocks are those
        words, whole, _, _ = _places(rows, channels // 32, ROWS, COLS // 32)
    v = _start(v0, places, real, REST, KIND)
    for t in range(T):
        current = tl.load(x + (0 if STATIC else t * n) + places, real, 0.0).to(KIND)
        if mean is not None:
            current = current * scale + shift
        h = _charge(current, v, TAU, REST, DECAY)
        fired = (h >= THRESHOLD) & real
        if BITS:
            lanes = tl.reshape(fired.to(tl.int32), [ROWS, COLS // 32, 32])
            packed = tl.sum(lanes << tl.arange(0, 32)[None, None, :], 2)
            tl.store(out + t * (n // 32) + words, packed, whole)
        else:
            tl.store(out + t * n + places, fired.to(KIND).to(out.dtype.element_ty), real)
        v = _reset(h, THRESHOLD, REST, HARD)
    tl.store(last + places, v, real)


@triton.jit(do_not_specialize=["rows"])  # 1 would become a constant of the code
def _backward(x, mean, var, weight, bias, v0, grad, work, sums, rows, channels,
              T: tl.constexpr, STATIC: tl.constexpr, BATCH: tl.constexpr, EPS: tl.constexpr,
              TAU: tl.constexpr, THRESHOLD: tl.constexpr, REST: tl.constexpr, HARD: tl.constexpr,
              DECAY: tl.constexpr, SURROGATE: tl.constexpr, ALPHA: tl.constexpr,
              THROUGH: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr,
              COLS: tl.constexpr):  # fmt: skip
    """Gradient of the current in `work` [T, n], or of x where the statistics are given.

    Of one x for all steps it is in the first step of `work`.
    """
    places, real, col, there = _places(rows, channels, ROWS, COLS)
    n = rows.to(tl.int64) * channels
    if mean is not None:
        middle, inverse, scale, shift = _line(mean, var, weight, bias, col, there, EPS, KIND)
    v = _start(v0, places, real, REST, KIND)
    for t in range(T):
        current = tl.load(x + (0 if STATIC else t * n) + places, real, 0.0).to(KIND)
        if mean is not None:
            current = current * scale + shift
        h = _charge(current, v, TAU, REST, DECAY)
        tl.store(work + t * n + places, h, real)
        v = _reset(h, THRESHOLD, REST, HARD)
    tl.debug_barrier()  # what this program stored is read again, perhaps by other threads of it
    gv = tl.zeros([ROWS, COLS], KIND)
    total = tl.zeros([ROWS, COLS], KIND)
    product = tl.zeros([ROWS, COLS], KIND)
    held = tl.zeros([ROWS, COLS], KIND)
    for i in range(T):
        t = T - 1 - i
        h = tl.load(work + t * n + places, real, 0.0)
        g = tl.load(grad + t * n + places, real, 0.0).to(KIND)
        if THROUGH and HARD:
            g += gv * (REST - h)
        elif THROUGH:
            g -= gv * THRESHOLD
        passed = tl.where(h >= THRESHOLD, 0.0, gv) if HARD else gv
        gh = g * _slope(h - THRESHOLD, SURROGATE, ALPHA) + passed
        gv = gh * (1 - 1 / TAU)
        gx = gh / TAU if DECAY else gh
        if mean is not None:
            near = tl.load(x + (0 if STATIC else t * n) + places, real, 0.0).to(KIND)
            total += tl.where(real, gx, 0.0)
            product += tl.where(real, gx * (near - middle) * inverse, 0.0)
            if not BATCH:
                gx *= scale
        if STATIC:
            held += gx
        else:
            tl.store(work + t * n + places, gx, real)
    if STATIC:
        tl.store(work + places, held, real)
    if mean is not None:
        target = sums + (tl.program_id(0) // tl.cdiv(channels, COLS)).to(tl.int64) * 2 * channels
        tl.store(target + col, tl.sum(total, 0)[None, :], there)
        tl.store(target + channels + col, tl.sum(product, 0)[None, :], there)


@triton.jit(do_not_specialize=["rows"])  # 1 would become a constant of the code
def _centre(work, x, mean, var, weight, bias, shares, out, rows, channels,
            EPS: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr,
            COLS: tl.constexpr):  # fmt: skip
    """Gradient of x from that of the normalised x: what x does to its statistics is taken out."""
    places, real, col, there = _places(rows, channels, ROWS, COLS)
    middle, inverse, scale, _ = _line(mean, var, weight, bias, col, there, EPS, KIND)
    g = tl.load(work + places, real, 0.0)
    near = (tl.load(x + places, real, 0.0).to(KIND) - middle) * inverse
    total = tl.load(shares + col, there, 0.0)
    product = tl.load(shares + channels + col, there, 0.0)
    gx = scale * (g - total - near * product)
    tl.store(out + places, gx.to(out.dtype.element_ty), real)


@triton.jit
def _attend(x, out, tokens, heads, SCALE: tl.constexpr, SIZE: tl.constexpr, WIDTH: tl.constexpr,
            TOKENS: tl.constexpr, DOT: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """``scale q (k^T v)`` of one head, of x [programs / heads, tokens, 3, heads, SIZE]."""
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    wide, col = heads * SIZE, tl.arange(0, WIDTH)[None, :]
    own = head * SIZE + col
    both = tl.zeros([WIDTH, WIDTH], KIND)
    for start in range(0, tokens, TOKENS):
        row = start + tl.arange(0, TOKENS)[:, None]
        real = (row < tokens) & (col < SIZE)
        place = x + (sample * tokens + row) * 3 * wide + own
        k = tl.load(place + wide, real, 0.0).to(DOT)
        v = tl.load(place + 2 * wide, real, 0.0).to(DOT)
        both += tl.dot(tl.trans(k), v, input_precision="ieee", out_dtype=KIND)
    for start in range(0, tokens, TOKENS):
        row = start + tl.arange(0, TOKENS)[:, None]
        real = (row < tokens) & (col < SIZE)
        q = tl.load(x + (sample * tokens + row) * 3 * wide + own, real, 0.0).to(DOT)
        y = tl.dot(q, both.to(DOT), input_precision="ieee", out_dtype=KIND) * SCALE
        tl.store(out + (sample * tokens + row) * wide + own, y.to(out.dtype.element_ty), real)


@triton.jit
def _attend_back(x, grad, gx, tokens, heads, SCALE: tl.constexpr, SIZE: tl.constexpr,
                 WIDTH: tl.constexpr, TOKENS: tl.constexpr, FINE: tl.constexpr,
                 KIND: tl.constexpr):  # fmt: skip
    """Gradients of q, k and v, in the places of x."""
    sample = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    wide, col = heads * SIZE, tl.arange(0, WIDTH)[None, :]
    own = head * SIZE + col
    both = tl.zeros([WIDTH, WIDTH], KIND)  # k^T v
    back = tl.zeros([WIDTH, WIDTH], KIND)  # its gradient, q^T g
    for start in range(0, tokens, TOKENS):
        row = start + tl.arange(0, TOKENS)[:, None]
        real = (row < tokens) & (col < SIZE)
        place = (sample * tokens + row) * wide + own
        q = tl.load(x + place + 2 * (sample * tokens + row) * wide, real, 0.0).to(KIND)
        k = tl.load(x + place + 2 * (sample * tokens + row) * wide + wide, real, 0.0).to(KIND)
        v = tl.load(x + place + 2 * (sample * tokens + row) * wide + 2 * wide, real, 0.0).to(KIND)
        g = tl.load(grad + place, real, 0.0).to(KIND) * SCALE
        both += tl.dot(tl.trans(k), v, input_precision=FINE, out_dtype=KIND)
        back += tl.dot(tl.trans(q), g, input_precision=FINE, out_dtype=KIND)
    for start in range(0, tokens, TOKENS):
        row = start + tl.arange(0, TOKENS)[:, None]
        real = (row < tokens) & (col < SIZE)
        one = (sample * tokens + row) * wide + own
        place = one + 2 * (sample * tokens + row) * wide
        k = tl.load(x + place + wide, real, 0.0).to(KIND)
        v = tl.load(x + place + 2 * wide, real, 0.0).to(KIND)
        g = tl.load(grad + one, real, 0.0).to(KIND) * SCALE
        gq = tl.dot(g, tl.trans(both), input_precision=FINE, out_dtype=KIND)
        gk = tl.dot(v, tl.trans(back), input_precision=FINE, out_dtype=KIND)
        gv = tl.dot(k, back, input_precision=FINE, out_dtype=KIND)
        tl.store(gx + place, gq.to(gx.dtype.element_ty), real)
        tl.store(gx + place + wide, gk.to(gx.dtype.element_ty), real)
        tl.store(gx + place + 2 * wide, gv.to(gx.dtype.element_ty), real)


def _launch(kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument."""
    try:
        with torch.cuda.device_of(args[0]):
            kernel[(programs,)](*args, **constants)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise TritonError(f"{kernel.__name__} failed") from error


def _kind(x: Tensor) -> tuple[torch.dtype, Any]:
    """What a kernel computes in for an `x`, to torch and to Triton."""
    double = x.dtype == torch.float64
    return (torch.float64, tl.float64) if double else (torch.float32, tl.float32)


class Neurons:
    """One LIF layer's input, constants and division into programs; as `lif.Work` of the CPU.

    `norm` is mean, biased variance, weight and bias of a normalisation before the neurons, or None.
    """

    def __init__(
        self, x: Tensor, v: Tensor | None, T: int, p: NeuronConfig,
        norm: tuple[Tensor | None, ...] = (None,) * 4, eps: float = 0.0,
    ) -> None:  # fmt: skip
        self.x, self.T, self.norm, self.p = x, T, norm, p
        self.size = x[0].numel()
        self.channels = self.size if norm[0] is None else x.shape[-1]
        self.shape = _divided(self.size // self.channels, self.channels)
        self.dtype, kind = _kind(x)
        self.head = (x, *norm, None if v is None else v.contiguous())
        self.constants: dict[str, Any] = {
            **self.shape, "T": T, "STATIC": x.shape[0] == 1, "EPS": eps, "KIND": kind,
            "TAU": p.tau, "THRESHOLD": p.v_threshold, "REST": p.v_rest,
            "HARD": p.v_reset is not None, "DECAY": p.decay_input,
        }  # fmt: skip

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and channels of a step."""
        return self.size // self.channels, self.channels

    def forward(self, bits: bool = False) -> tuple[Tensor, Tensor]:
        """Spikes in the dtype of x, or their bits (see :func:`unpack`), and the last voltage."""
        shape = (self.T, *self.x.shape[1:])
        if bits:
            spikes = self.x.new_empty((self.T, self.size // 32), dtype=torch.int32)
        else:
            spikes = self.x.new_empty(shape)
        last = self.x.new_empty(shape[1:], dtype=self.dtype)
        args = (*self.head, spikes, last, *self.sizes)
        _launch(_forward, _programs(*self.sizes, **self.shape), *args, BITS=bits, **self.constants)
        return spikes, last

    def backward(self, grad: Tensor, batch: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of x, and of weight and bias of the normalisation."""
        x, (rows, channels), p = self.x, self.sizes, self.p
        work = x.new_empty((self.T, self.size), dtype=self.dtype)
        parts, sums = -(-rows // self.shape["ROWS"]), None
        if self.norm[0] is not None:
            sums = x.new_empty((parts, 2, channels), dtype=self.dtype)
        args = (*self.head, grad.contiguous(), work, sums, rows, channels)
        own = {"BATCH": batch, "SURROGATE": p.surrogate, "ALPHA": p.steepness}
        own["THROUGH"] = not p.detach_reset
        _launch(_backward, _programs(rows, channels, **self.shape), *args, **own, **self.constants)
        gx = work[: x.shape[0]].view(x.shape)
        if sums is None:
            return gx.to(x.dtype), None, None
        total, product = sums.sum(0)
        if batch:
            shares = torch.stack((total, product)) * (channels / x.numel())
            out = gx if gx.dtype == x.dtype else torch.empty_like(x)
            every = x.numel() // channels
            constants = {k: self.constants[k] for k in ("EPS", "KIND")}
            args = (gx, x, *self.norm, shares, out, every, channels)
            _launch(
                _centre, _programs(every, channels, **self.shape), *args, **constants, **self.shape
            )
            gx = out
        return gx.to(x.dtype), product, total


def _divided(rows: int, channels: int) -> dict[str, int]:
    """Rows and channels of the block of a program: powers of two, whole words of 32 bits."""
    cols = min(_BLOCK if rows == 1 else 128, max(32, triton.next_power_of_2(channels)))
    return {"ROWS": max(1, min(_BLOCK // cols, triton.next_power_of_2(rows))), "COLS": cols}


def _programs(rows: int, channels: int, ROWS: int, COLS: int) -> int:
    return triton.cdiv(rows, ROWS) * triton.cdiv(channels, COLS)  # type: ignore[no-any-return]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all axes but the last, in float32 at least."""
    channels = x.shape[-1]
    rows = x.numel() // channels
    shape, (dtype, kind) = _divided(rows, channels), _kind(x)
    parts = -(-rows // (shape["ROWS"] * _ROWS))
    sums = x.new_empty((parts, 2, channels), dtype=dtype)
    programs = parts * triton.cdiv(channels, shape["COLS"])
    _launch(_moments, programs, x, sums, rows, channels, REPEAT=_ROWS, KIND=kind, **shape)
    first, second = sums.sum(0) / rows
    mean = first + x.view(-1, channels)[0].to(dtype)
    return mean, (second - first * first).clamp(min=0)


def unpack(words: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Spikes of a shape from their bits: bit i of word j is place 32 j + i of a step."""
    lanes = torch.arange(32, device=words.device, dtype=torch.int32)
    return (words[..., None] >> lanes & 1).view(shape).to(dtype)


class NeuronFunction(torch.autograd.Function):
    """LIF, after a batch normalisation where `mean` is given; saves its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
        var: Tensor | None, batch: bool, eps: float, v: Tensor | None, T: int, p: NeuronConfig,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Run the steps; `batch` says that mean and var are those of x."""
        ctx.save_for_backward(x, weight, bias, mean, var, v)
        ctx.batch, ctx.eps, ctx.p = batch, eps, p
        spikes, last = Neurons(x, v, T, p, (mean, var, weight, bias), eps).forward()
        ctx.mark_non_differentiable(last)
        return spikes, last

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Run them backward."""
        x, weight, bias, mean, var, v = ctx.saved_tensors
        T, p, batch, eps = grad.shape[0], ctx.p, ctx.batch, ctx.eps

        def kernels() -> tuple[Tensor | None, ...]:
            layer = Neurons(x, v, T, p, (mean, var, weight, bias), eps)
            gx, g_weight, g_bias = layer.backward(grad, batch)
            own = ((weight, g_weight), (bias, g_bias))
            return gx, *(None if q is None or g is None else g.to(q.dtype) for q, g in own)

        def operations(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return norm_lif_plain(x, (mean, var, weight, bias), batch, eps, v, T, p)

        gradients = once(kernels)
        if gradients is None:
            gradients = again(operations, (x, weight, bias), grad)
        return *gradients, *(None,) * 7


def lif(x: Tensor, v: Tensor | None, T: int, p: NeuronConfig) -> tuple[Tensor, Tensor]:
    """As `dispatch.lif`."""
    x = x.contiguous()
    if not (torch.is_grad_enabled() and x.requires_grad):
        return Neurons(x, v, T, p).forward()
    spikes, last = NeuronFunction.apply(  # type: ignore[no-untyped-call]
        x, None, None, None, None, False, 0.0, v, T, p
    )
    return spikes, last


def norm_lif(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None,
    var: Tensor | None, eps: float, v: Tensor | None, T: int, p: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `dispatch.norm_lif`, without a pool."""
    x, batch = x.contiguous(), mean is None
    if mean is None or var is None:
        with torch.no_grad():
            mean, var = moments(x.detach())
    wanted = any(q is not None and q.requires_grad for q in (x, weight, bias))
    if not (torch.is_grad_enabled() and wanted):
        return *Neurons(x, v, T, p, (mean, var, weight, bias), eps).forward(), mean, var
    spikes, last = NeuronFunction.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, mean, var, batch, eps, v, T, p
    )
    return spikes, last, mean, var


class AttentionFunction(torch.autograd.Function):
    """``scale q (k^T v)`` of spikes [T, B, N, 3, D] -> [T, B, N, D]; sums are exact."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, scale: float) -> Tensor:
        """Multiply in float16, where whole numbers to 2,048 are exact, if no sum can be larger."""
        ctx.save_for_backward(x)
        ctx.heads, ctx.scale = heads, scale
        T, B, tokens, _, wide = x.shape
        constants, out = _head(x, heads), x.new_empty(T, B, tokens, wide)
        small = x.dtype != torch.float64 and tokens <= _EXACT
        constants["DOT"] = tl.float16 if small else constants["KIND"]
        _launch(_attend, T * B * heads, x, out, tokens, heads, SCALE=scale, **constants)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        """Gradients of q, k and v."""
        (x,), heads, scale = ctx.saved_tensors, ctx.heads, ctx.scale

        def kernels() -> tuple[Tensor | None, ...]:
            gx, own = torch.empty_like(x), grad.contiguous()
            programs = x.shape[0] * x.shape[1] * heads
            allowed = torch.backends.cuda.matmul.allow_tf32 and x.dtype != torch.float64
            constants = {**_head(x, heads), "FINE": "tf32" if allowed else "ieee", "SCALE": scale}
            _launch(_attend_back, programs, x, own, gx, x.shape[2], heads, **constants)
            return (gx,)

        gradients = once(kernels)
        if gradients is None:
            gradients = again(lambda x: attend(x, heads, scale), (x,), grad)
        return gradients[0], None, None


def _head(x: Tensor, heads: int) -> dict[str, Any]:
    """Constants of the attention's kernels."""
    size = x.shape[-1] // heads
    width = max(16, triton.next_power_of_2(size))
    return {"SIZE": size, "WIDTH": width, "TOKENS": _TOKENS, "KIND": _kind(x)[1]}


def attention(x: Tensor, heads: int, scale: float) -> Tensor:
    """As `dispatch.attention`."""
    out: Tensor = AttentionFunction.apply(  # type: ignore[no-untyped-call]
        x.contiguous(), heads, scale
    )
    return out
