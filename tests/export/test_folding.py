"""Folding changes no value beyond rounding, and byte products are exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spikeformer_lt.export.synapses import FoldedConv2d, FoldedLinear, select_channels
from spikeformer_lt.layers.neuron import BatchNorm
from spikeformer_lt.layers.units import ConvLayer, LinearUnit


@pytest.fixture
def norm() -> BatchNorm:
    made = BatchNorm(24).double().eval()
    with torch.no_grad():
        made.weight.uniform_(-2, 2)
        made.bias.uniform_(-2, 2)
        made.running_mean.uniform_(-2, 2)
        made.running_var.uniform_(0.1, 3)
    return made


def by_rows(norm: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    return norm(maps.permute(0, 2, 3, 1)[None])[0].permute(0, 3, 1, 2)


def fold(conv: nn.Conv2d, norm: BatchNorm, whole: bool = False) -> FoldedConv2d:
    unit = ConvLayer(conv.in_channels, conv.out_channels)
    unit.conv, unit.norm = conv, norm
    return FoldedConv2d(conv, unit.folded(), whole)


def fold_linear(linear: nn.Linear, norm: BatchNorm) -> FoldedLinear:
    unit = LinearUnit(linear.in_features, linear.out_features)
    unit.linear, unit.norm = linear, norm
    parts = unit.folded()
    return FoldedLinear(parts.weight, parts.bias, dtype=linear.weight.dtype, whole=True)


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_linear_map(norm: BatchNorm, bias: bool) -> None:
    linear = nn.Linear(7, 24, bias=bias).double()
    x = torch.randn(2, 5, 7).double()
    found = fold_linear(linear, norm)(x)
    torch.testing.assert_close(found, norm(linear(x)), rtol=0, atol=1e-13)


def test_a_folded_convolution_and_a_part_of_it(norm: BatchNorm) -> None:
    conv = nn.Conv2d(9, 24, 3, padding=1, bias=False).double()
    x = torch.randn(2, 9, 6, 6).double()
    wanted = by_rows(norm, conv(x))
    folded = fold(conv, norm)
    torch.testing.assert_close(folded(x), wanted, rtol=0, atol=1e-12)
    out, into = torch.arange(24) % 3 > 0, torch.arange(9) != 4
    x[:, 4] = 0
    wanted = by_rows(norm, conv(x))[:, out]
    select_channels(folded, out, 0)
    select_channels(folded, into, 1)
    assert (folded.out_channels, folded.in_channels) == (16, 8)
    torch.testing.assert_close(folded(x[:, into]), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", [(3, 1), (3, 2), (1, 2)], ids=["3x3", "stride 2", "1x1"])
@pytest.mark.parametrize("per_filter", [False, True])
def test_byte_products_equal_the_sum_in_float64(
    norm: BatchNorm, per_filter: bool, form: tuple[int, int]
) -> None:
    norm = norm.float()
    conv = nn.Conv2d(32, 24, form[0], form[1], form[0] // 2, bias=False)
    gain = torch.rand(24, 1, 1, 1) + 0.1 if per_filter else 0.37
    kept = torch.rand(conv.weight.shape) < 0.5
    conv.weight.data = torch.where(kept, torch.randn(conv.weight.shape).sign() * gain, 0.0)
    folded = fold(conv, norm, whole=True)
    assert folded.as_bytes
    spikes = (torch.rand(3, 32, 8, 8) < 0.3).float()
    exact = fold(conv.double(), norm.double())(spikes.double())
    torch.testing.assert_close(folded(spikes).double(), exact, rtol=1e-6, atol=1e-6)
    if not folded.takes_bytes(spikes):
        pytest.skip("this processor has no byte dot products: the float path was checked")
    found = folded(spikes)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(copy.deepcopy(folded)(spikes), found)
    select_channels(folded, torch.arange(24) < 20, 0)
    assert torch.equal(folded(spikes), found[:, :20])


def test_bytes_are_for_binary_weights_and_float32_alone(norm: BatchNorm) -> None:
    real = nn.Conv2d(32, 24, 3, bias=False)
    assert not fold(real, norm.float(), whole=True).as_bytes
    real.weight.data = real.weight.data.sign()
    assert fold(real, norm, whole=True).as_bytes
    assert not fold(real, norm).as_bytes
    assert not fold(real.double(), norm.double(), whole=True).as_bytes


def test_rows_of_bytes_are_for_binary_weights_of_float32_alone(norm: BatchNorm) -> None:
    linear = nn.Linear(9, 24)
    assert not fold_linear(linear, norm).as_bytes
    linear.weight.data = linear.weight.data.sign() * 0.3
    found = fold_linear(linear, norm)
    assert found.as_bytes and found.signs.dtype == torch.int8
    product = found.signs * found.gain[:, None]
    torch.testing.assert_close(product, found.weight.data, rtol=1e-6, atol=1e-7)
    assert not fold_linear(linear.double(), norm).as_bytes


def test_loaded_weights_are_the_ones_that_run() -> None:
    def made() -> FoldedConv2d:
        conv, norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), BatchNorm(32).eval()
        with torch.no_grad():
            conv.weight.copy_(conv.weight.sign() * 0.1)
        return fold(conv, norm, whole=True)

    x = (torch.rand(2, 32, 8, 8) < 0.3).float()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            a, b = made(), made()
            assert not torch.equal(a(x), b(x))
            a.load_state_dict(b.state_dict())
            assert torch.equal(a(x), b(x))
