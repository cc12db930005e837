"""The definition: its surrogates against finite differences, and its two ways to fire."""

from __future__ import annotations

import math

import pytest
import torch

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels.reference import lif_loop, spike, surrogate_derivative

U = torch.linspace(-3, 3, 41, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "smooth"),
    [
        ("sigmoid", lambda u: torch.sigmoid(3.0 * u)),
        ("atan", lambda u: torch.atan(math.pi / 2 * 3.0 * u) / math.pi),
        ("hardtanh", lambda u: torch.nn.functional.hardtanh(3.0 * u)),
    ],
)
def test_surrogate_is_the_slope_of_its_smooth_function(name: str, smooth: object) -> None:
    step = 1e-5
    slope = (smooth(U + step) - smooth(U - step)) / (2 * step)
    torch.testing.assert_close(surrogate_derivative(U, name, 3.0), slope, rtol=0, atol=1e-8)


def test_the_spike_itself_is_a_threshold_with_or_without_gradient() -> None:
    u = U.clone().requires_grad_()
    assert torch.equal(spike(u, "atan", 2.0), (U >= 0).double())
    assert torch.equal(spike(U, "atan", 2.0), (U >= 0).double())


def test_the_surrogate_can_be_differentiated_again() -> None:
    u = U.clone().requires_grad_()
    (first,) = torch.autograd.grad(spike(u, "sigmoid", 4.0).sum(), u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), u)
    y = torch.sigmoid(4.0 * U)
    torch.testing.assert_close(second, 16 * y * (1 - y) * (1 - 2 * y))


def test_the_loop_lists_the_voltage_after_every_step() -> None:
    trace: list[torch.Tensor] = []
    x = torch.full((1, 2), 1.5, dtype=torch.float64)
    spikes, last = lif_loop(
        x, torch.zeros(2).double(), 3, NeuronConfig(), lambda u: (u >= 0).double(), trace
    )
    # h = 0.75; 1.125 fires; 0.75
    assert spikes[:, 0].tolist() == [0, 1, 0]
    assert [v[0].item() for v in trace] == [0.75, 0.0, 0.75]
    assert torch.equal(trace[-1], last)
