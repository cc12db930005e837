"""Layers of CNNs in their compact form; those of transformers are held by test_compact.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from spikeformer_lt.export.api import spike_mismatch
from spikeformer_lt.export.inference import FoldedConvUnit, FoldedLinearUnit, compact
from spikeformer_lt.export.synapses import FoldedConv2d
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, BatchNorm
from spikeformer_lt.layers.units import ConvLayer, Folded, Reads, map_rows
from spikeformer_lt.models.spiking_cnn import SpikingCNN
from spikeformer_lt.models.spiking_resnet import SpikingResNet
from spikeformer_lt.models.spiking_vgg import SpikingVGG

VGG = {"layers": (6, "M", 8, "M", 12), "hidden": 10, "head_std": None}
RESNET = {"stem": 4, "widths": (6, 8), "depths": (2, 1), "strides": (2, 1)}
CHOICES = {
    "vgg": (SpikingVGG, VGG),
    "vgg without norm before the head": (SpikingVGG, {**VGG, "hidden_norm": False}),
    "vgg of averages": (SpikingVGG, {**VGG, "pool": "avg", "conv_bias": False, "hidden": None}),
    "vgg of frames": (SpikingVGG, {**VGG, "in_channels": 2}),
    "vgg without time": (SpikingVGG, {**VGG, "neuron": "relu"}),
    "resnet": (SpikingResNet, {**RESNET, "hidden_norm": True}),
}


@pytest.fixture
def made(awaken) -> Callable[[str], tuple[SpikingCNN, torch.Tensor]]:
    """Give the function that makes a small float64 CNN in which every layer fires, and images."""

    def build(choice: str) -> tuple[SpikingCNN, torch.Tensor]:
        torch.manual_seed(3)
        kind, options = CHOICES[choice]
        model = kind(5, 4, image_size=8, **options).double()
        shape = (6, 4, 2, 8, 8) if model.in_channels == 2 else (6, 3, 8, 8)
        awaken(model, lambda m: m(torch.rand(shape, dtype=torch.float64)))
        return model.eval(), torch.rand(shape, dtype=torch.float64)

    return build


@pytest.mark.parametrize("choice", CHOICES)
def test_a_cnn_without_norms_is_the_same_network(choice: str, made) -> None:
    model, x = made(choice)
    fast = compact(model)
    assert not any(isinstance(module, BatchNorm) for module in fast.modules())
    layers = [m for m in fast.modules() if isinstance(m, FoldedConvUnit)]
    assert len(layers) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    hidden = [m for m in fast.modules() if isinstance(m, FoldedLinearUnit)]
    assert len(hidden) == (model.hidden is not None)
    with torch.no_grad():
        wanted = model(x)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(fast(x), wanted, rtol=0, atol=1e-9)
    rates = spike_mismatch(model, x)
    assert max(rates.values(), default=0) == 0
    assert rates or "without time" in choice


@pytest.mark.parametrize(
    ("choice", "readers"),
    [
        ("vgg", {"layers.2", "layers.4"}),
        ("vgg of averages", set()),  # an average of spikes is none
        ("vgg without time", set()),
        ("resnet", {f"blocks.{i}.{part}" for i, part in
                    ((0, "conv1"), (0, "conv2"), (0, "shortcut"), (1, "conv1"), (1, "conv2"),
                     (2, "conv1"), (2, "conv2"), (2, "shortcut"))}),
    ],
)  # fmt: skip
def test_binary_convolutions_of_spikes_run_as_bytes(choice: str, readers, made) -> None:
    model, x = made(choice)
    model.float()
    with torch.no_grad():
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            conv.weight.copy_(conv.weight.sign() * 0.25)
    fast, x = compact(model), x.float()
    layers = {n: m for n, m in fast.net.named_modules() if isinstance(m, FoldedConvUnit)}
    assert {name for name, layer in layers.items() if layer.synapse.as_bytes} == readers
    seen: list[torch.Tensor] = []
    for name in readers:
        layers[name].synapse.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    torch.testing.assert_close(fast(x), model(x).detach(), rtol=0, atol=1e-4)
    assert len(seen) == len(readers) and all(bool(((s == 0) | (s == 1)).all()) for s in seen)


def test_dead_filters_of_a_vgg_are_gone_and_missed_by_nobody(made) -> None:
    model, x = made("vgg")
    first, second = model.layers[0], model.layers[2]
    with torch.no_grad():
        first.conv.weight[:2] = 0  # no weight reaches them, and their constant current is low
        first.norm.bias[:2] = first.norm.running_mean[:2] = first.conv.bias[:2] = 0
        second.conv.weight[:, 3] = 0  # nothing reads it
    wanted = model(x)
    fast = compact(model)
    assert fast.removed["layers.0"] == 3
    assert fast.net.get_submodule("layers.0.synapse").weight.shape[0] == 3
    torch.testing.assert_close(fast(x), wanted.detach(), rtol=0, atol=1e-9)


class Doubled(ConvLayer):
    """A subclass whose forward is not what it inherits as its folded form."""

    def forward(self, rows: torch.Tensor, T: int) -> torch.Tensor:
        return 2 * super().forward(rows, T)


class Plain(nn.Module):
    """A unit of somebody else: the protocol, and other attribute names."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.fire = nn.Conv2d(6, 6, 1), LIF()
        self.reads: Reads = "spikes"

    synapse = property(lambda self: self.weights)
    neuron = property(lambda self: self.fire)
    fires = True

    def folded(self) -> Folded:
        return Folded(self.weights.weight.double(), self.weights.bias.double(), self.fire)

    def forward(self, rows: torch.Tensor, T: int) -> torch.Tensor:
        return self.fire(map_rows(rows, self.weights), T)


@pytest.mark.parametrize(("kind", "is_folded"), [(Doubled, False), (Plain, True)])
def test_units_are_folded_if_their_form_is_declared(kind, is_folded: bool, made) -> None:
    model, x = made("vgg")
    unit = (Doubled(6, 6) if kind is Doubled else Plain()).double().eval()
    with torch.no_grad():
        unit.synapse.weight.add_(0.2)
    model.layers.insert(1, unit)
    with torch.no_grad():
        wanted = model.eval()(x)
    assert wanted.std() > 1e-3
    fast = compact(model)
    assert type(fast.net.layers[1]) is (FoldedConvUnit if is_folded else Doubled)
    torch.testing.assert_close(fast(x), wanted, rtol=0, atol=1e-9)


def test_a_folded_convolution_by_winograd_is_the_convolution(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_mode", "numba")
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=False).double()
    layer = FoldedConv2d(conv, Folded(conv.weight.detach(), torch.rand(32).double(), None))
    rows = torch.rand(2, 1, 9, 10, 16).double()

    def gap() -> float:
        found = layer.winograd(rows)
        assert found is not None
        return float((found - map_rows(rows, layer)).abs().max())

    with torch.no_grad():
        assert gap() < 1e-12
        layer.weight.mul_(2.0)  # the filters that were kept are not those of the weights now
        assert gap() < 1e-12
    assert layer.winograd(rows) is None  # which is not differentiable
    hook = layer.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        assert layer.winograd(rows) is None
        hook.remove()
        layer.stride = (2, 2)
        assert layer.winograd(rows) is None
