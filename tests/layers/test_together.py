"""q, k and v as one call are q, k and v, with their gradients, statistics, states and hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt.layers.neuron import NeuronState, carry
from spikeformer_lt.layers.units import LinearUnit, spikes_together

T = 3


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")


def three(bias: bool = True) -> nn.ModuleList:
    units = nn.ModuleList(LinearUnit(6, 8, bias=bias) for _ in range(3)).double()
    for i, unit in enumerate(units):
        nn.init.normal_(unit.norm.weight, 1.0 + i)
        nn.init.constant_(unit.norm.bias, 0.5 + i / 4)
    return units


def results(run: Callable[[Tensor], Tensor], units: nn.ModuleList, x: Tensor) -> list[Any]:
    x = x.clone().requires_grad_()
    spikes = run(x)
    spikes.backward(torch.arange(spikes.numel()).view(spikes.shape).double().sin())
    return [x.grad, *(p.grad for p in units.parameters()), *units.buffers(), spikes.detach()]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("time", [1, T])
@pytest.mark.parametrize("bias", [True, False])
def test_together_is_one_by_one(train: bool, time: int, bias: bool) -> None:
    units = three(bias).train(train)
    alone = copy.deepcopy(units)
    x = torch.rand(time, 2, 5, 6, dtype=torch.float64)

    def one_call(x: Tensor) -> Tensor:
        spikes = spikes_together(list(units), x, T)
        assert spikes is not None
        return spikes

    found = results(one_call, units, x)
    wanted = results(lambda x: torch.stack([u(x, T) for u in alone], -2), alone, x)
    assert 0 < wanted[-1].mean() < 1 and torch.equal(found[-1], wanted[-1])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_an_observer_gets_the_spikes_of_its_own_neuron() -> None:
    units, seen = three(), {}

    class Observer:
        observes_output = True

        def __call__(self, module: nn.Module, args: Any, out: Tensor) -> None:
            seen[module] = out

    for unit in units:
        unit.act.register_forward_hook(Observer())
    spikes = spikes_together(list(units), torch.rand(T, 2, 5, 6).double(), T)
    assert spikes is not None and len(seen) == 3
    assert all(torch.equal(seen[u.act], spikes[..., i, :]) for i, u in enumerate(units))


def _hook(units: nn.ModuleList) -> None:
    units[2].linear.register_forward_hook(lambda *_: None)


def _differ(units: nn.ModuleList) -> None:
    units[0].act.v_threshold = 0.5


@pytest.mark.parametrize("change", [_hook, _differ])
def test_units_that_cannot_be_one_run_alone(change: Callable[[nn.ModuleList], None]) -> None:
    units = three()
    change(units)
    assert spikes_together(list(units), torch.rand(T, 2, 5, 6).double(), T) is None


def test_units_of_a_carried_state_run_alone() -> None:
    with carry(NeuronState()):
        assert spikes_together(list(three()), torch.rand(T, 2, 5, 6).double(), T) is None
