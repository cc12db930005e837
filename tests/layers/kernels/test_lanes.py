"""A vector of a kernel is so many neighbouring numbers."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numba.core.codegen import get_host_cpu_features

from spikeformer_lt.layers.kernels.simd import BYTES, gather, load, load_if, scatter, store


@numba.njit
def _everything(a, b, spread, inside):  # type: ignore[no-untyped-def]
    x, y = load(a, 3), gather(a, 1, 2)
    store(b, 5, x * y + x - y * 0.5)
    scatter(spread, 2, 3, load_if(a, 7, inside))
    store(b, 5 + 64, load_if(a, -(10**15), False))  # nothing is read there


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("inside", [True, False])
def test_reads_writes_and_arithmetic(dtype: type, inside: bool) -> None:
    n = BYTES // np.dtype(dtype).itemsize
    a = np.arange(1, 80, dtype=dtype) / 8
    b, spread = np.full(100, -1, dtype), np.full(60, -1, dtype)
    _everything(a, b, spread, inside)
    x, y = a[3 : 3 + n], a[1 : 1 + 2 * n : 2]
    wanted, wide = np.full(100, -1, dtype), np.full(60, -1, dtype)
    wanted[5 : 5 + n], wanted[69 : 69 + n] = x * y + x - y * dtype(0.5), 0
    wide[2 : 2 + 3 * n : 3] = a[7 : 7 + n] if inside else 0
    assert np.array_equal(b, wanted)
    assert np.array_equal(spread, wide)


def test_a_register_is_64_bytes_where_numba_compiles_for_avx512() -> None:
    asked = numba.config.CPU_FEATURES
    features = get_host_cpu_features() if asked is None else asked
    assert ("+avx512f" in features) == (BYTES == 64)
