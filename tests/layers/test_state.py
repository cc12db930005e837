from __future__ import annotations

import torch
from torch import nn

from spikeformer_lt.layers.neuron import LIF, make_activation, make_lif, reset_state


def charged(module: nn.Module) -> bool:
    return any(
        isinstance(part.v, torch.Tensor) for part in module.modules() if isinstance(part, LIF)
    )


def test_reset_makes_two_forwards_equal() -> None:
    layers = nn.Sequential(make_lif(), nn.Linear(64, 64), make_lif(tau=1.5, v_reset=None))
    nn.init.constant_(layers[1].weight, 0.1)
    x = torch.rand(5, 30, 64) * 2
    first = layers(x)
    assert 0.05 < first.mean() < 0.6
    assert charged(layers)
    carried = layers(x)
    reset_state(layers)
    assert not charged(layers)
    assert torch.equal(layers(x), first)
    assert not torch.equal(carried, first)


def test_the_start_voltage_is_the_reset_voltage() -> None:
    lif = make_lif(v_reset=-0.5)
    lif(torch.rand(2, 3))
    reset_state(lif)
    assert lif.v == -0.5


def test_a_neuron_that_was_put_in_after_the_first_reset_is_reset_too() -> None:
    layers = nn.ModuleDict({"act": make_activation("heaviside")})
    reset_state(layers)
    layers["act"] = make_lif()
    layers["act"](torch.rand(2, 3))
    assert charged(layers)
    reset_state(layers)
    assert not charged(layers)


def test_modules_without_state_are_left_alone() -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(8, 3))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    reset_state(nn.Sequential(norm, make_activation("sign")))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
