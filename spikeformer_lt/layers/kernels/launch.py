"""Calls of the numba kernels: torch memory as arrays, parts for the threads, new tensors."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.layers.kernels import lif
from spikeformer_lt.layers.kernels.dispatch import KernelError
from spikeformer_lt.layers.kernels.reference import NeuronConfig

Array = NDArray[Any]

# Measured on caches of 48 kB and 1 MB; between half and twice of these the clock hardly moves.
_BLOCK = 4096  # elements of a block of the LIF kernels
_STARTS = 65536  # voltages that a block may hold for the backward pass
_SUMS_BLOCK = 1024  # elements of a block of the statistics
_PER_THREAD = 32768  # element updates worth waking a thread for
_HUGE = 1 << 22  # bytes from which numpy asks for huge pages

_PARALLEL = threading.Lock()  # numba's own thread pool, unlike OpenMP's, runs one kernel at a time
_forked = False


def _mark_forked() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):  # OpenMP ends a forked process that uses threads
    os.register_at_fork(after_in_child=_mark_forked)


def flat(x: Tensor) -> Array:
    """The memory of a contiguous tensor."""
    array: Array = (x.detach() if x.requires_grad else x).view(-1).numpy()
    return array


def new(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor; a large one is in huge pages, where the system gives them on demand.

    The C library returns large blocks to the system, and every step would fault them in again:
    27 ms for 64 MB in pages of 4 kB, 4 ms in huge ones (measured).
    """
    count = math.prod(shape)
    if count * like.element_size() < _HUGE:
        return like.new_empty(shape)
    memory = np.empty(count + 16, flat(like[:0]).dtype)
    skip = -memory.ctypes.data % 64 // memory.itemsize
    return torch.from_numpy(memory[skip : skip + count]).view(*shape)


def cut(n: int, work: int, width: int) -> Array:
    """Bounds of the parts, one a thread, of `n` elements that cost `work` updates together."""
    blocks = -(-n // width)
    threads = 1 if _forked else min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    return _bounds(n, blocks, width, max(1, min(threads, work // _PER_THREAD, blocks)))


@lru_cache(maxsize=1024)
def _bounds(n: int, blocks: int, width: int, parts: int) -> Array:
    bounds: Array = np.minimum(np.arange(parts + 1) * blocks // parts * width, n)
    return bounds


def run(alone: Any, parallel: Any, cuts: Array, args: tuple[Any, ...], *sums: Array) -> None:
    """Run a kernel over all parts, each with its own row of `sums`."""
    try:
        if cuts.size == 2:
            alone(*args, *([rows[0] for rows in sums] if sums else ()), cuts[0], cuts[1])
            return
        before, wanted = numba.get_num_threads(), cuts.size - 1
        if before == wanted:
            with _PARALLEL:
                parallel(*args, *sums, cuts)
            return
        numba.set_num_threads(wanted)
        try:
            with _PARALLEL:
                parallel(*args, *sums, cuts)
        finally:
            numba.set_num_threads(before)
    except MemoryError:
        raise
    except Exception as error:
        raise KernelError(f"{alone.__name__} failed") from error


def _fold(sums: Array, channels: int) -> Array:
    """Sums [parts, 2 width] over the parts and the repeats of a channel: [2, channels]."""
    folded: Array = sums.reshape(sums.shape[0], 2, -1, channels).sum(axis=(0, 2))
    return folded


@cache
def constants(p: NeuronConfig, dtype: Any) -> Array:
    """The array that the kernels call k; not to be written."""
    steepness = p.steepness if p.surrogate == "sigmoid" else p.steepness / 2
    jump, hard = (-p.v_threshold, 0.0) if p.v_reset is None else (p.v_reset, 1.0)
    values = [p.tau, p.v_threshold, p.v_rest, jump, hard, 1.0, steepness, np.pi * steepness]
    values += [1.0 / p.tau if p.decay_input else 1.0, 1.0 - 1.0 / p.tau]
    return np.array(values, dtype)


class Work:
    """One LIF layer's input, constants and division into parts.

    Args:
        x: contiguous input, [T, ..., C], or [1, ..., C] for the same at every step.
        v: contiguous voltage before the first step, or None for rest.
        T: number of steps.
        p: constants of the neuron.
        rows: scale and shift per channel of a normalisation before the neurons, or None.
    """

    def __init__(
        self,
        x: Tensor,
        v: Tensor | None,
        T: int,
        p: NeuronConfig,
        rows: Sequence[Array] | None = None,
    ) -> None:
        self.x, self.p, self.T = x, p, T
        self.data = x.detach().view(-1).numpy()
        self.n = self.data.size // x.shape[0]
        self.channels = 1 if rows is None else x.shape[-1]
        block = max(256, min(_BLOCK, _STARTS // (T // 4 + 3)))
        self.width = self.channels * max(1, block // self.channels)
        self.cuts = cut(self.n, self.n * T, self.width)
        self.head = (
            self.data,
            True if x.shape[0] == 1 else None,
            None if rows is None else self.tiles(rows),
            self.data[:0] if v is None else v.view(-1).numpy(),
        )

    def tiles(self, rows: Sequence[Array]) -> Array:
        """Values per channel, each row repeated to the width of a block."""
        repeats = self.width // self.channels
        tiled: Array = np.tile(np.stack(rows).astype(self.data.dtype), repeats).ravel()
        return tiled

    def forward(self, spikes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes, in the memory given (that of x if it has T steps, too), and the last voltage."""
        spikes = new(self.x, (self.T, *self.x.shape[1:])) if spikes is None else spikes
        v_last = new(self.x, self.x.shape[1:])
        arrays = spikes.view(-1).numpy(), v_last.view(-1).numpy()
        k = constants(self.p, self.data.dtype)
        args = (*self.head, *arrays, self.n, k, self.p.decay_input or None, self.width)
        run(lif.forward, lif.forward_parallel, self.cuts, args)
        return spikes, v_last

    def backward(self, grad: Tensor) -> tuple[Tensor, Array]:
        """Gradient of the current; per channel of a normalisation, sums of it and of it times x."""
        gx, p = new(self.x, self.x.shape), self.p
        flags = (p.decay_input, p.surrogate == "sigmoid", not p.detach_reset)
        sums = np.zeros((self.cuts.size - 1, 0 if self.head[2] is None else 2 * self.width))
        arrays = (flat(grad.contiguous()), flat(gx), self.n, constants(p, self.data.dtype))
        args = (*self.head, *arrays, *(flag or None for flag in flags), self.width)
        run(lif.backward, lif.backward_parallel, self.cuts, args, sums)
        return gx, _fold(sums, self.channels)

    def centre(self, gx: Tensor, rows: Sequence[Array]) -> None:
        """Turn `gx` into gx * scale + (x * slope + offset), with rows of values per channel."""
        cuts = cut(gx.numel(), gx.numel(), self.width)
        run(lif.centre, lif.centre_parallel, cuts, (flat(gx), self.data, self.tiles(rows)))


def norm_rows(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[list[Array], Array]:
    """Scale and shift of a normalisation per channel, and 1 / sqrt(var + eps), in float64."""
    inverse = 1.0 / np.sqrt(var.detach().numpy().astype(np.float64) + eps)
    scale = inverse if weight is None else inverse * weight.detach().numpy()
    shift = -mean.detach().numpy() * scale
    return [scale, shift if bias is None else shift + bias.detach().numpy()], inverse


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all axes but the last, summed in float64."""
    data, channels = flat(x), x.shape[-1]
    pivot = data[:channels]
    repeats = max(1, _SUMS_BLOCK // channels)
    cuts = cut(data.size, data.size, channels * repeats)
    sums = np.zeros((cuts.size - 1, 2 * channels * repeats))
    args = (data, np.tile(pivot, repeats))
    run(lif.statistics, lif.statistics_parallel, cuts, args, sums)
    first, second = _fold(sums, channels) * (channels / data.size)
    mean, var = pivot + first, np.maximum(second - first * first, 0.0)
    return torch.from_numpy(mean.astype(data.dtype)), torch.from_numpy(var.astype(data.dtype))
