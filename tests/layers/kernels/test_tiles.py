"""Tiles add up to the matrix product, whatever is left over at the edges."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spikeformer_lt.layers.kernels.jit import outer
from spikeformer_lt.layers.kernels.simd import BYTES, down, panel_vectors, straight

LANES = BYTES // 8
WIDTHS = range(1, 5 if BYTES == 64 else 3)


@outer
def _straight(vectors, a, lead, b, cols, c, rows, count, add):  # type: ignore[no-untyped-def]
    straight(vectors, a, 0, lead, b, 0, cols, c, 0, cols, rows, count, add)


@outer
def _down(vectors, a, lead, b, cols, c, rows, count, add):  # type: ignore[no-untyped-def]
    down(vectors, a, 0, lead, b, 0, cols, c, 0, cols, rows, count, add)


@pytest.mark.parametrize("vectors", WIDTHS)
@pytest.mark.parametrize("rows", [1, 5, 6, 8, 13, 48])
def test_rows_times_a_panel(vectors: int, rows: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, 9)), rng.normal(size=(7, vectors * LANES))
    c = rng.normal(size=(rows, vectors * LANES))
    for add in (False, True):
        wanted = a[:, :7] @ b + add * c
        found = c.copy()
        _straight(vectors, a.ravel(), 9, b.ravel(), b.shape[1], found.reshape(-1), rows, 7, add)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)


@pytest.mark.parametrize("vectors", WIDTHS)
@pytest.mark.parametrize("rows", [8, 16, 40])
def test_columns_times_a_panel(vectors: int, rows: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, rows + 3)), rng.normal(size=(5, vectors * LANES))
    c = rng.normal(size=(rows, vectors * LANES))
    for add in (False, True):
        found = c.copy()
        args = (a.ravel(), rows + 3, b.ravel(), b.shape[1], found.reshape(-1), rows, 5, add)
        _down(vectors, *args)
        np.testing.assert_allclose(found, a[:, :rows].T @ b + add * c, rtol=0, atol=1e-14)


def test_a_panel_is_the_widest_that_divides_the_columns() -> None:
    widest = max(WIDTHS)
    for columns in range(1, 400):
        vectors = panel_vectors(columns, 16)
        fitting = [v for v in range(1, widest + 1) if columns % (16 * v) == 0]
        assert vectors == max(fitting, default=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_kernels_hold_for_registers_of_32_bytes(tmp_path: Path) -> None:
    if BYTES == 32:
        pytest.skip("the other tests ran with these")
    here = Path(__file__).parent
    names = ("tiles", "winograd", "dense", "attending", "fused", "sparse", "sparse_training")
    files = [str(here / f"test_{name}.py") for name in (*names, "events")]
    exports = here.parents[1] / "export"
    files += [str(exports / f"test_{name}.py") for name in ("lists", "replay")]
    old = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2"}
    env = {**os.environ, **old, "NUMBA_CACHE_DIR": str(tmp_path)}
    check = "from spikeformer_lt.layers.kernels.simd import BYTES; assert BYTES == 32"
    subprocess.run([sys.executable, "-c", check], env=env, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *files]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
