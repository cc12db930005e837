"""Compilation and calls of the numba kernels, scoped reads and writes, and the surrogates.

Loops vectorise only if LLVM knows that no array is written through another, which numba cannot
express. So elements are read and written by functions that mark it: each written array has a scope,
and no memory may be accessed under two scopes. Indices are neither checked nor wrapped.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import zlib
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.layers.inputs import backward_followed
from spikeformer_lt.layers.kernels.dispatch import OPEN_TAPES, KernelError, give_up, tape

log = logging.getLogger(__name__)
Array = NDArray[Any]

_PER_THREAD = 32768  # element updates worth waking a thread for
_HUGE = 1 << 22  # bytes from which numpy asks for huge pages


def stamp(folder: Path) -> str:
    """Checksum of all sources in a folder that numba compiles."""
    state = 0
    for path in sorted(folder.glob("*.py")):
        source = path.read_bytes()
        if any(mark in source for mark in (b"@outer", b"@inner", b"@intrinsic", b"@overload")):
            state = zlib.crc32(source, state)
    return f"{state:08x}"


_HERE = stamp(Path(__file__).parent)


_kernel: Any = None  # each copy of the four functions below has its own
_kinds: Any = None


def _parts(cuts, *args):  # noqa: ANN002
    for p in numba.prange(cuts.size - 1):
        _kernel(cuts[p], cuts[p + 1], *args)


def _summed_parts(cuts, sums, *args):  # noqa: ANN002
    for p in numba.prange(cuts.size - 1):
        _kernel(cuts[p], cuts[p + 1], sums[p], *args)


def _fixed_parts(cuts, *args):  # noqa: ANN002
    for p in numba.prange(cuts.size - 1):
        _kernel(cuts[p], cuts[p + 1], *args, _kinds)


def _summed_fixed_parts(cuts, sums, *args):  # noqa: ANN002
    for p in numba.prange(cuts.size - 1):
        _kernel(cuts[p], cuts[p + 1], sums[p], *args, _kinds)


def _compiled(function: Any, **options: Any) -> Any:
    """Compiled and cached on disk, or in each process where no folder can be written."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError as error:
        log.info("kernels are compiled again in this process: %s", error)
        return numba.njit(**options)(function)


def outer(function: Any) -> Any:
    """A kernel; its first arguments are the bounds `lo` and `hi` of a part, and `sums`, if any."""
    # numba renews a cached kernel when its own file changes, and sees nothing of the files
    # whose functions are inlined into it; a name that changes with all of them does.
    function.__qualname__ += f"_{_HERE}"
    return _compiled(function)


@cache
def _parallel(kernel: Any, counts: tuple[int, ...]) -> Any:
    """The kernel over the bounds of all parts, and a row of `sums` for each."""
    known = {"_kernel": kernel, "_kinds": as_kinds(counts)}
    function, code = kernel.py_func, kernel.py_func.__code__
    loops = (_parts, _summed_parts), (_fixed_parts, _summed_fixed_parts)
    loop: Any = loops[bool(counts)]["sums" in code.co_varnames[: code.co_argcount]]
    parallel = FunctionType(loop.__code__, {**globals(), **known}, function.__name__)
    stem = Path(function.__code__.co_filename).stem
    parallel.__qualname__ = "_".join([stem, function.__qualname__, *map(str, counts)])
    return _compiled(parallel, parallel=True)


@cache
def as_kinds(counts: tuple[int, ...]) -> tuple[tuple[None, ...], ...]:
    """Counts that a kernel is compiled for, as lengths of tuples."""
    return tuple((None,) * count for count in counts)


def inner(fastmath: Any = False) -> Callable[[Any], Any]:
    """A function that only kernels call: always inlined, compiled and cached as a part of them."""
    wrap: Callable[[Any], Any] = numba.njit(
        error_model="numpy", fastmath=fastmath, forceinline=True
    )
    return wrap


@intrinsic
def _power_of_two(_context: Any, shifted: Any) -> Any:
    """2^n for the n that adding 1.5 * 2^(mantissa bits) left in the low bits of a float."""
    wide = shifted == types.float64
    bits, mantissa, bias = (64, 52, 1023) if wide else (32, 23, 127)

    def generate(_: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(bits)
        n = builder.bitcast(args[0], integer)
        exponent = builder.add(builder.shl(n, integer(mantissa)), integer(bias << mantissa))
        return builder.bitcast(exponent, ir.DoubleType() if wide else ir.FloatType())

    return shifted(shifted), generate


def _exp_minus(z: float) -> float:
    """exp(-z) for z >= 0 in operations that vectorise (libm's exp is a call per element)."""
    raise NotImplementedError


@overload(_exp_minus, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _exp_minus_for(z: Any) -> Any:
    single = z == types.float32
    f = np.float32 if single else np.float64
    # exp(-z) = 2^n exp(r) with n = round(-z / ln 2) and r = -z - n ln 2, ln 2 being in two parts;
    # the Taylor series of exp(r), |r| < 0.35, to the last bit but one.
    top, magic = (f(87.0), f(12582912.0)) if single else (f(708.0), f(6755399441055744.0))
    head = f(0.693359375)
    tail = f(-2.1219444005469058277e-4)
    log2e = f(-1.0 / math.log(2.0))
    c = [f(1.0 / math.factorial(k)) for k in range(14)]
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = c

    def reduced(z: Any) -> Any:  # pragma: no cover
        bounded = top if z > top else z  # a NaN stays
        shifted = bounded * log2e + magic
        n = shifted - magic
        return shifted, (-bounded - n * head) - n * tail

    split = numba.njit(fastmath={"contract"}, error_model="numpy")(reduced)

    def exp_single(z: Any) -> Any:  # pragma: no cover
        shifted, r = split(z)
        p = (((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1
        return (p * r + c0) * _power_of_two(shifted)

    def exp_double(z: Any) -> Any:  # pragma: no cover
        shifted, r = split(z)
        p = (((((c13 * r + c12) * r + c11) * r + c10) * r + c9) * r + c8) * r + c7
        p = (((((p * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + c1
        return (p * r + c0) * _power_of_two(shifted)

    return exp_single if single else exp_double


_SCOPES = ("v", "gv", "total", "product", "out0", "out1", "out2", "out3")


def _tell(builder: Any, access: Any, own: str | None) -> Any:
    """Mark a load or store: within scope `own`, and apart from all other scopes."""
    module = builder.module
    domain = module.add_metadata(["spikeformer_lt kernels"])
    scope = {name: module.add_metadata([f"kernels {name}", domain]) for name in _SCOPES}
    if own is not None:
        access.set_metadata("alias.scope", module.add_metadata([scope[own]]))
    others = [scope[name] for name in _SCOPES if name != own]
    access.set_metadata("noalias", module.add_metadata(others))
    return access


def at(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to a place of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return cgutils.gep(builder, data, index)


def _reader(own: str | None) -> Any:
    @intrinsic
    def get(_context: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = at(context, builder, signature.args[0], args[0], args[1])
            return _tell(builder, builder.load(pointer), own)

        return array.dtype(array, types.intp), generate

    return get


def _writer(own: str) -> Any:
    @intrinsic
    def put(_context: Any, array: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = at(context, builder, signature.args[0], args[0], args[1])
            _tell(builder, builder.store(args[2], pointer), own)
            return context.get_dummy_value()

        return types.void(array, types.intp, array.dtype), generate

    return put


get = _reader(None)
get_v, get_gv, get_total, get_product, get_gx = map(
    _reader, ("v", "gv", "total", "product", "out0")
)
put_v, put_gv, put_total, put_product, put0, put1, put2, put3 = map(_writer, _SCOPES)


# Only the derivative may round otherwise than torch's: the voltage is computed without contraction.
@inner(fastmath={"contract"})
def slope(u, sigmoid, a, b, one):
    if sigmoid is None:
        return a / (one + (b * u) * (b * u))
    e = _exp_minus(abs(u * a))
    return a * e / ((one + e) * (one + e))


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

    The C library returns large blocks to the system, and every step would fault them in again.
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


def run(
    kernel: Any,
    cuts: Array,
    args: tuple[Any, ...],
    sums: Array | None = None,
    counts: tuple[int, ...] = (),
) -> None:
    """Run a kernel over all parts, each with its own row of `sums`.

    A kernel whose last argument is `kinds` is compiled for each choice of `counts`.
    """
    if OPEN_TAPES and (recorder := tape()) is not None:
        if sums is not None:
            repeat(sums.fill, 0)
        recorder.steps.append(partial(run, kernel, cuts, args, sums, counts))
    wanted = cuts.size - 1
    try:
        if wanted == 1 or _forked:  # a tape of before the fork has parts
            for p in range(wanted):
                own = () if sums is None else (sums[p],)
                kernel(cuts[p], cuts[p + 1], *own, *args, *((as_kinds(counts),) if counts else ()))
            return
        parallel = _parallel(kernel, counts)
        before = numba.get_num_threads()
        if wanted != before:
            numba.set_num_threads(wanted)
        try:
            with _PARALLEL:
                parallel(cuts, *(() if sums is None else (sums,)), *args)
        finally:
            if wanted != before:
                numba.set_num_threads(before)
    except MemoryError:
        raise
    except Exception as error:
        raise KernelError(f"{kernel.__name__} failed") from error


def repeat(function: Any, *args: Any, **named: Any) -> Any:
    """Call a function of arrays, now and, where a tape records, at every replay."""
    if OPEN_TAPES and (recorder := tape()) is not None:
        recorder.steps.append(partial(function, *args, **named))
    return function(*args, **named)


def once(kernels: Callable[[], tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...] | None:
    """Gradients by the kernels; None if torch follows what is computed, or if one fails."""
    if backward_followed():
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
    with torch.enable_grad():  # views: an input may have hooks, or be made of another one
        own = [x if x is None else x.view_as(x) for x in inputs]
        wanted = [x for x in own if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(operations(*own), wanted, grad, create_graph=graph))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)
