"""Layers of spiking CNNs, each against its parts written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeformer_lt.layers.neuron import NeuronConfig
from spikeformer_lt.layers.units import ConvLayer, HiddenLayer

LIF = NeuronConfig(tau=4 / 3)
T, B = 3, 2


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "neuron", [{"neuron": None}, {"neuron": LIF}, {"neuron": LIF, "activation": "relu"}], ids=str
)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_conv_layer_is_convolution_norm_and_neuron(neuron, stride) -> None:
    layer = ConvLayer(2, 4, stride=stride, bias=True, **neuron)
    nn.init.uniform_(layer.conv.bias, -1, 1)
    nn.init.constant_(layer.norm.weight, 2)
    rows = torch.rand(T, B, 5, 7, 2)
    out = layer(rows, T)
    maps = F.conv2d(
        rows.flatten(0, 1).permute(0, 3, 1, 2), layer.conv.weight, layer.conv.bias, stride, 1
    )
    plain = F.batch_norm(maps, None, None, layer.norm.weight, layer.norm.bias, True)
    wanted = plain.permute(0, 2, 3, 1).unflatten(0, (T, B))
    if layer.act is not None:
        wanted = layer.act(wanted, T)
        assert 0.05 < float((wanted != 0).double().mean()) < 0.95
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [True, False])
def test_a_hidden_layer_fires_from_the_start(norm: bool) -> None:
    layer = HiddenLayer(30, 20, norm=norm, neuron=LIF)
    spikes = layer(torch.rand(1, 50, 30), 8)
    assert spikes.shape == (8, 50, 20)
    assert 0.05 < spikes.detach().mean() < 0.95
