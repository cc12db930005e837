"""The surrogates in vector arithmetic, and compiling where nothing can be cached."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from spikeformer_lt.layers.kernels import jit, matmul


@numba.njit
def _slopes(u, out, sigmoid, a, b, one):
    for i in range(u.size):
        out[i] = jit.slope(u[i], sigmoid, a, b, one)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sigmoid", [True, None], ids=["sigmoid", "atan"])
def test_derivatives_are_exact_over_the_whole_range(sigmoid: bool | None, dtype: Any) -> None:
    edges = np.array([0.0, 1e-30, 21.7, 22.0, 177.0, 178.0, 1e4, 1e30, np.inf])
    u = np.concatenate([np.linspace(-30, 30, 4001), edges, -edges]).astype(dtype)
    out = np.empty_like(u)
    _slopes(u, out, sigmoid, dtype(4.0), dtype(np.pi), dtype(1.0))
    with np.errstate(over="ignore", under="ignore"):
        e = np.exp(-np.abs(4 * u.astype(np.longdouble)))
        atan = 4.0 / (1 + (np.pi * u.astype(np.longdouble)) ** 2)
    exact = 4 * e / (1 + e) ** 2 if sigmoid else atan
    tiny = float(np.finfo(dtype).tiny) * 32  # exp(-87) and exp(-708) stand for all below
    np.testing.assert_allclose(out, exact, rtol=8 * np.finfo(dtype).eps, atol=tiny)


def test_not_a_number_has_no_derivative() -> None:
    for dtype in (np.float32, np.float64):
        u, out = np.full(3, np.nan, dtype), np.zeros(3, dtype)
        _slopes(u, out, True, dtype(4), dtype(4), dtype(1))
        assert np.isnan(out).all()


def test_without_a_folder_for_the_cache_kernels_are_still_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_in_memory = numba.njit

    def njit(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_in_memory(**options)

    monkeypatch.setattr(numba, "njit", njit)
    with caplog.at_level(logging.INFO):
        double = jit.outer(lambda x: 2 * x)
    assert double(21) == 42
    assert "no locator" in caplog.text


def test_a_cached_kernel_is_renewed_with_any_source_that_is_inlined_into_it(tmp_path: Path) -> None:
    for name in ("kernels.py", "tiles.py", "plain.py"):
        (tmp_path / name).write_text("" if name == "plain.py" else "@inner()\ndef a(): ...\n")
    before = jit.stamp(tmp_path)
    (tmp_path / "plain.py").write_text("a = 1\n")
    assert jit.stamp(tmp_path) == before, "compiled anew without need"
    (tmp_path / "tiles.py").write_text("@inner()\ndef b(): ...\n")
    assert jit.stamp(tmp_path) != before
    here = jit.stamp(Path(jit.__file__).parent)
    assert matmul.linear_lif_kernel.py_func.__qualname__.endswith(here)
