"""Calls of the numba kernels: torch memory as arrays, parts for the threads, gradients."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.layers.kernels.dispatch import KernelError, give_up

Array = NDArray[Any]

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


def run(kernel: Any, cuts: Array, args: tuple[Any, ...], sums: Array | None = None) -> None:
    """Run a kernel over all parts, each with its own row of `sums`."""
    wanted = cuts.size - 1
    try:
        if wanted == 1:
            kernel(cuts[0], cuts[1], *(() if sums is None else (sums[0],)), *args)
            return
        before = numba.get_num_threads()
        numba.set_num_threads(wanted)
        try:
            with _PARALLEL:
                kernel.parallel(cuts, *(() if sums is None else (sums,)), *args)
        finally:
            numba.set_num_threads(before)
    except MemoryError:
        raise
    except Exception as error:
        raise KernelError(f"{kernel.__name__} failed") from error


def once(kernels: Callable[[], tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...] | None:
    """Gradients by the kernels; None if they must be differentiable themselves, or if one fails."""
    if torch.is_grad_enabled():
        return None
    try:
        return kernels()
    except KernelError as error:
        give_up(error)
        return None


def again(
    operations: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients by running plain torch operations again, differentiable if required."""
    graph = torch.is_grad_enabled()
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    with torch.enable_grad():
        found = iter(torch.autograd.grad(operations(*inputs), wanted, grad, create_graph=graph))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)
