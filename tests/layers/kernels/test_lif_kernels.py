"""The LIF kernels equal the torch loop, and are vector code."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import dispatch

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_spikes_voltage_and_gradient_equal_the_loop(
    params: NeuronConfig, by_both: Both, steps: int
) -> None:
    static = params.v_reset is None  # one of the two, to compile half as much
    x = torch.randn(1 if static else steps, 30, 301, dtype=torch.float64) * 1.4 + 0.6
    v = torch.rand(30, 301, dtype=torch.float64) - 0.3 if steps > 3 else None
    weight = torch.randn(steps, 30, 301, dtype=torch.float64)

    def run() -> tuple[torch.Tensor, ...]:
        leaf = x.clone().requires_grad_()
        spikes, last = dispatch.lif(leaf, v, steps, params)
        return spikes, last, *torch.autograd.grad(spikes, leaf, weight)

    (spikes, last, gradient), (spikes_k, last_k, gradient_k) = by_both(run)
    assert 0.02 < spikes.mean() < 0.9
    assert torch.equal(spikes_k, spikes)
    assert torch.equal(last_k, last)
    torch.testing.assert_close(gradient_k, gradient, rtol=0, atol=1e-12)


def test_float32_spikes_equal_the_loop_to_the_bit_on_any_number_of_threads(by_both: Both) -> None:
    x = torch.randn(5, 40, 1031) * 1.4 + 0.6
    weight = torch.randn(5, 40, 1031)

    def run() -> tuple[torch.Tensor, ...]:
        leaf = x.clone().requires_grad_()
        spikes, last = dispatch.lif(leaf, None, 5, NeuronConfig(tau=1.7))
        return spikes, last, *torch.autograd.grad(spikes, leaf, weight)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        loop, alone = by_both(run)
        torch.set_num_threads(2)
        before = numba.get_num_threads()
        together = run()
        assert numba.get_num_threads() == before
    finally:
        torch.set_num_threads(threads)
    for expected, a, b in zip(loop[:2], alone, together, strict=False):
        assert torch.equal(a, expected)
        assert torch.equal(b, expected)
    torch.testing.assert_close(alone[2], loop[2], rtol=1e-5, atol=1e-6)
    assert torch.equal(alone[2], together[2])


def test_not_a_number_stays_one(by_both: Both) -> None:
    x = torch.full((4, 4096), 0.5)
    x[1, 7] = float("nan")

    def run() -> tuple[torch.Tensor, ...]:
        leaf = x.clone().requires_grad_()
        spikes, last = dispatch.lif(leaf, None, 4, NeuronConfig())
        return spikes, last, *torch.autograd.grad(spikes.sum(), leaf)

    for expected, got in zip(*by_both(run), strict=True):
        torch.testing.assert_close(got, expected, equal_nan=True)
        if expected.shape != x.shape or expected.isnan().any():
            assert got[..., 7].isnan().any()
            assert not got[..., 8].isnan().any()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 instructions")
def test_the_loops_over_four_steps_are_vector_code() -> None:
    from spikeformer_lt.layers.kernels import lif

    n = 64
    x = np.ones(4 * n, np.float32)
    k = np.ones(10, np.float32)
    calls = {
        "forward": (0, n, x, None, None, x[:0], x.copy(), None, x[:n].copy(), n, k, True, n),
        "forward of sums": (
            *(0, n, x, None, None, x[:0], x.copy(), x.copy(), x[:n].copy(), n, k, True, n),
        ),
        "backward": (
            *(0, n, np.zeros(2 * n), x, None, np.ones(2 * n, np.float32), x[:0], x, x.copy(), n),
            *(k, True, True, None, n),
        ),
    }
    for name, arguments in calls.items():
        kernel = numba.njit(error_model="numpy")(getattr(lif, name.split()[0]).py_func)
        kernel(*arguments)
        (assembly,) = kernel.inspect_asm().values()
        divisions = re.findall(r"\bv?divps\b.*", assembly)  # by tau: one a step
        wide = [line for line in divisions if "ymm" in line or "zmm" in line]
        assert len(wide if "ymm" in assembly else divisions) >= 4, name
