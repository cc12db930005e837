"""The kernels as differentiable operations on torch tensors: CPU, float32 or float64, contiguous."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import choice, native
from spikeformer_lt.layers.kernels.choice import KernelError
from spikeformer_lt.layers.kernels.reference import LIFParams, lif_loop, spike

Array = NDArray[Any]

_BLOCK = (
    2048  # elements of a block: its voltages and inputs fit the first cache, T rows of h the second
)
_SCRATCH = 65536  # voltages that a block may hold for the backward pass
_SUMS_BLOCK = 1024  # the same for the statistics, whose sums are float64
_PER_THREAD = 32768  # element updates worth waking a thread for
_HUGE = 1 << 22  # bytes from which numpy asks for huge pages

_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # OpenMP ends a forked process that asks it for threads
    os.register_at_fork(after_in_child=_mark_forked)


def _flat(x: Tensor) -> Array:
    array: Array = x.detach().reshape(-1).numpy()
    return array


def _new(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor of the dtype of `x`; a large one in huge pages, where the system gives them on demand.

    The C library returns large blocks to the system when they are freed, so that every step faults its
    pages in again: 7 ms per 16 MB in pages of 4 kB, a sixth of that in huge ones (measured).
    """
    count = math.prod(shape)
    if count * x.element_size() < _HUGE:
        return x.new_empty(shape)
    align = 64 // x.element_size()
    memory = np.empty(count + align, _flat(x[:0]).dtype)
    skip = -memory.ctypes.data % 64 // memory.itemsize
    return torch.from_numpy(memory[skip : skip + count]).view(shape)


def _cuts(n: int, work: int, width: int) -> Array:
    """Bounds of the parts, one a thread, of `n` elements that cost `work` updates together."""
    blocks = -(-n // width)
    threads = 1 if _forked else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    parts = max(1, min(threads, work // _PER_THREAD, blocks))
    bounds: Array = np.minimum(np.arange(parts + 1) * blocks // parts * width, n)
    return bounds


def _run(alone: Any, parallel: Any, cuts: Array, args: tuple[Any, ...], sums: Array | None) -> None:
    """Run a kernel over all parts, each with its own row of `sums`, and leave numba's setting as it was."""
    own = () if sums is None else (sums,)
    try:
        if cuts.size == 2:
            alone(*args, *(s[0] for s in own), cuts[0], cuts[1])
            return
        before = numba.get_num_threads()
        numba.set_num_threads(cuts.size - 1)
        try:
            parallel(*args, *own, cuts)
        finally:
            numba.set_num_threads(before)
    except MemoryError:
        raise
    except Exception as error:
        raise KernelError(f"{alone.__name__} failed") from error


class _Work:
    """One call of the LIF kernels: the constants, the block width and the tiles of a normalisation."""

    def __init__(
        self, x: Tensor, v: Tensor | None, T: int, p: LIFParams, rows: Sequence[Any]
    ) -> None:
        self.x, self.p = x, p
        self.flat = _flat(x)
        self.dtype = self.flat.dtype
        self.n = self.flat.size // x.shape[0]
        self.v0 = self.flat[:0] if v is None else _flat(v)
        self.static = True if x.shape[0] == 1 else None
        self.channels = x.shape[-1] if rows else 1
        self.width = self.channels * max(1, max(256, min(_BLOCK, _SCRATCH // T)) // self.channels)
        self.tiles = self.tile(rows) if rows else None
        self.cuts = _cuts(self.n, self.n * T, self.width)

    def tile(self, rows: Sequence[Any]) -> Array:
        """Values per channel [rows, C], each row repeated to the width of a block."""
        tiled: Array = np.tile(np.asarray(rows, self.dtype), self.width // self.channels).ravel()
        return tiled

    def constants(self) -> Array:
        """The array that native.py calls k."""
        p = self.p
        hard = p.v_reset is not None
        steepness = p.alpha if p.surrogate == "sigmoid" else p.alpha / 2
        values = [p.tau, p.v_threshold, p.v_rest, p.v_rest if hard else -p.v_threshold, hard, 1.0]
        values += [steepness, np.pi * steepness]
        values += [1.0 / p.tau if p.decay_input else 1.0, 1.0 - 1.0 / p.tau]
        return np.array(values, self.dtype)

    def flags(self) -> tuple[bool | None, ...]:
        """decay, sigmoid and through: True or None, so that numba compiles for the one in use."""
        p = self.p
        asked = (p.decay_input, p.surrogate == "sigmoid", not p.detach_reset)
        return tuple(flag or None for flag in asked)

    def forward(self, T: int) -> tuple[Tensor, Tensor]:
        """Spikes and the last voltage."""
        spikes = _new(self.x, (T, *self.x.shape[1:]))
        v_last = _new(self.x, self.x.shape[1:])
        args = (self.flat, self.static, self.tiles, self.v0, _flat(spikes), _flat(v_last), self.n)
        args += (self.constants(), self.flags()[0], self.width)
        _run(native.forward, native.forward_parallel, self.cuts, args, None)
        return spikes, v_last

    def backward(self, grad: Tensor) -> tuple[Tensor, Array]:
        """Gradient of the current, and per channel the sums of it and of it times (x - mean)."""
        gx = _new(self.x, self.x.shape)
        sums = np.zeros((self.cuts.size - 1, 0 if self.tiles is None else 2 * self.width))
        args = (
            self.flat,
            self.static,
            self.tiles,
            self.v0,
            _flat(grad.contiguous()),
            _flat(gx),
            self.n,
        )
        args += (self.constants(), *self.flags(), self.width)
        _run(native.backward, native.backward_parallel, self.cuts, args, sums)
        return gx, _fold(sums, self.channels)


def _fold(sums: Array, channels: int) -> Array:
    """Sums [parts, 2 width] over the parts and the repeats of a channel: [2, channels]."""
    folded: Array = sums.reshape(sums.shape[0], 2, -1, channels).sum(axis=(0, 2))
    return folded


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all axes but the last, added up in float64 about the first row."""
    flat, channels = _flat(x), x.shape[-1]
    width = channels * max(1, _SUMS_BLOCK // channels)
    pivot = flat[:channels]
    cuts = _cuts(flat.size, flat.size, width)
    sums = np.zeros((cuts.size - 1, 2 * width))
    args = (flat, np.tile(pivot, width // channels))
    _run(native.statistics, native.statistics_parallel, cuts, args, sums)
    first, second = _fold(sums, channels) * (channels / flat.size)
    mean = torch.from_numpy((pivot + first).astype(flat.dtype))
    return mean, torch.from_numpy(np.maximum(second - first * first, 0.0).astype(flat.dtype))


def _once(kernels: Callable[[], tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...] | None:
    """Gradients by the kernels; None if they shall be differentiated in turn, or a kernel fails."""
    if torch.is_grad_enabled():
        return None
    try:
        return kernels()
    except KernelError as error:
        choice.give_up(error)
        return None


def _again(
    operations: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients by running plain torch operations once more, differentiable if that was asked for."""
    graph = torch.is_grad_enabled()
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(operations(*inputs), wanted, grad, create_graph=graph))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)


def _spikes(x: Tensor, v: Tensor | None, T: int, p: LIFParams) -> Tensor:
    start = x.new_full(x.shape[1:], p.v_rest) if v is None else v
    return lif_loop(x, start, T, p, lambda u: spike(u, p.surrogate, p.alpha))[0]


class LIFFunction(torch.autograd.Function):
    """Spikes and last voltage of x, [T|1, ...]; backward recomputes the voltages from x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor | None, T: int, p: LIFParams
    ) -> tuple[Tensor, Tensor]:
        """Run the steps."""
        ctx.save_for_backward(x, v)
        ctx.p = p
        spikes, v_last = _Work(x, v, T, p, ()).forward(T)
        ctx.mark_non_differentiable(v_last)
        return spikes, v_last

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Run them backward."""
        x, v = ctx.saved_tensors
        T, p = grad.shape[0], ctx.p
        gradients = _once(lambda: (_Work(x, v, T, p, ()).backward(grad)[0],))
        if gradients is None:
            gradients = _again(lambda x: _spikes(x, v, T, p), (x,), grad)
        return *gradients, None, None, None


class NormLIFFunction(torch.autograd.Function):
    """Batch normalisation over the last axis, then LIF; saves x and four values per channel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        batch: bool,
        eps: float,
        v: Tensor | None,
        T: int,
        p: LIFParams,
    ) -> tuple[Tensor, Tensor]:
        """Run the steps; `batch` says that mean and var are those of x."""
        ctx.save_for_backward(x, weight, bias, mean, var, v)
        ctx.batch, ctx.eps, ctx.p = batch, eps, p
        rows, _ = NormLIFFunction._rows(weight, bias, mean, var, eps)
        spikes, v_last = _Work(x, v, T, p, rows).forward(T)
        ctx.mark_non_differentiable(v_last)
        return spikes, v_last

    @staticmethod
    def _rows(
        weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
    ) -> tuple[list[Array], Array]:
        inverse = 1.0 / np.sqrt(_flat(var).astype(np.float64) + eps)
        scale = inverse if weight is None else inverse * _flat(weight)
        shift = -_flat(mean) * scale
        return [scale, shift if bias is None else shift + _flat(bias)], inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """Run them backward, then through the normalisation."""
        x, weight, bias, mean, var, v = ctx.saved_tensors
        T, p, batch, eps = grad.shape[0], ctx.p, ctx.batch, ctx.eps

        def kernels() -> tuple[Tensor | None, ...]:
            rows, inverse = NormLIFFunction._rows(weight, bias, mean, var, eps)
            work = _Work(x, v, T, p, rows)
            gx, (total, product) = work.backward(grad)
            middle = _flat(mean).astype(np.float64)
            product -= middle * total
            slope, offset = np.zeros_like(total), np.zeros_like(total)
            if batch:
                scale = rows[0] * (x.shape[-1] / x.numel())
                slope = -scale * product * inverse * inverse
                offset = -scale * total - middle * slope
            cuts = _cuts(gx.numel(), gx.numel(), work.width)
            args = (_flat(gx), work.flat, work.tiles, work.tile([slope, offset]), work.width)
            _run(native.centre, native.centre_parallel, cuts, args, None)
            g_weight, g_bias = (product * inverse).astype(work.dtype), total.astype(work.dtype)
            return (
                gx,
                None if weight is None else torch.from_numpy(g_weight),
                None if bias is None else torch.from_numpy(g_bias),
            )

        def operations(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            known = (None, None) if batch else (mean, var)
            y = F.batch_norm(x.reshape(-1, x.shape[-1]), *known, weight, bias, batch, 0.0, eps)
            return _spikes(y.reshape(x.shape), v, T, p)

        gradients = _once(kernels)
        if gradients is None:
            gradients = _again(operations, (x, weight, bias), grad)
        return *gradients, *(None,) * 7
