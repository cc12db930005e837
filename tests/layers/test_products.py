"""The fast product is the linear map, with its gradients, and steps aside where it must."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spikeformer_lt.layers import units
from spikeformer_lt.layers.subnet import SubnetLinear
from spikeformer_lt.layers.units import linear_rows


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the fast path whatever the processor."""
    monkeypatch.setattr(units, "slow_mkl", lambda: torch.backends.mkldnn.is_available())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 7), (4, 7)])
def test_values_and_gradients_are_those_of_the_map(bias: bool, shape: tuple[int, ...]) -> None:
    linear = nn.Linear(7, 11, bias=bias)
    exact = copy.deepcopy(linear).double()
    x = torch.randn(shape, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    found, wanted = linear_rows(x, linear), linear_rows(wide, exact)
    assert found.shape == wanted.shape and wanted.dtype == torch.float64
    found.square().sum().backward()
    wanted.square().sum().backward()
    pairs = [(found, wanted), (x.grad, wide.grad)]
    pairs += [
        (p.grad, q.grad) for p, q in zip(linear.parameters(), exact.parameters(), strict=True)
    ]
    for a, b in pairs:
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_a_hook_sees_its_module_called() -> None:
    linear, seen = nn.Linear(4, 4), []
    linear.register_forward_hook(lambda m, a, out: seen.append(out.shape))
    linear_rows(torch.randn(2, 4), linear)
    assert seen == [(2, 4)]


def test_float64_and_empty_rows_are_torchs_own() -> None:
    linear = nn.Linear(4, 3)
    assert linear_rows(torch.empty(0, 4), linear).shape == (0, 3)
    x = torch.randn(5, 4).double()
    assert torch.equal(linear_rows(x, linear.double()), linear(x))


def test_a_subnet_map_runs_on_its_effective_weight() -> None:
    subnet = SubnetLinear(nn.Linear(4, 3, bias=False), "weights", binary=False)
    subnet.mask.zero_()
    assert not linear_rows(torch.randn(5, 4), subnet).count_nonzero()


def test_gradients_can_be_differentiated_again() -> None:
    linear = nn.Linear(4, 3)
    x = torch.randn(5, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(linear_rows(x, linear).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    again = x.detach().clone().requires_grad_()
    (wanted,) = torch.autograd.grad(linear(again).square().sum(), again, create_graph=True)
    wanted.square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-4)
