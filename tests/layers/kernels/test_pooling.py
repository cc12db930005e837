"""The pool, alone and between a normalisation and its neurons, is torch's, and cheap to keep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.lif import PoolFunction
from spikeformer_lt.layers.kernels.reference import pool
from spikeformer_lt.layers.units import ConvUnit

SIZES = [(8, 8), (7, 9), (1, 3)]


def spikes_and_gradients(unit: ConvUnit, x: Tensor, g: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    out, _ = unit(x, 3)
    out.backward(g[:, :, : out.shape[2], : out.shape[3]].expand(out.shape[0], -1, -1, -1, -1))
    assert x.grad is not None
    found = [p.grad for p in unit.parameters()]
    return out, [x.grad, *(p for p in found if p is not None), *unit.buffers()]


@pytest.mark.parametrize("activation", ["lif", "heaviside"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_a_pooled_unit_is_that_of_torch_operations(
    activation: str, before: bool, train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in SIZES:
        torch.manual_seed(sum(size))
        unit = ConvUnit(2, 5, pool=True, pool_before_act=before, activation=activation).double()
        nn.init.normal_(unit.norm.weight)  # of both signs
        nn.init.constant_(unit.norm.bias, 1.0)
        other = copy.deepcopy(unit.train(train))
        x = torch.randn(3, 2, *size, 2, dtype=torch.float64)
        g = torch.randn(1, 2, 8, 8, 5, dtype=torch.float64)
        monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
        found, gradients = spikes_and_gradients(unit, x, g)
        monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
        wanted, others = spikes_and_gradients(other, x, g)
        assert 0 < wanted.mean() < 1 and torch.equal(found, wanted)
        assert len(gradients) == len(others) == 7
        for a, b in zip(gradients, others, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1, float(b.abs().max())))


def test_ties_go_to_the_first_place_as_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
    for size in SIZES:
        x = torch.rand(2, 2, *size, 3).lt(0.5).double().requires_grad_()
        g = torch.randn(pool(x).shape, dtype=torch.float64)
        (wanted,) = torch.autograd.grad(pool(x), x, g)
        out = dispatch.pool(x)
        assert out is not None and torch.equal(out, pool(x))
        torch.testing.assert_close(torch.autograd.grad(out, x, g)[0], wanted, rtol=0, atol=1e-14)


def test_gradients_can_be_differentiated_again() -> None:
    x = torch.randn(1, 1, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradgradcheck(PoolFunction.apply, (x,))


def test_a_pool_keeps_a_byte_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    unit = ConvUnit(2, 8, pool=True, pool_before_act=True)
    rows = torch.randn(2, 3, 8, 8, 2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        unit(rows, 2)
    values = 2 * 3 * 64 * 8  # of the convolution
    small = 4 * (rows.numel() + unit.conv.weight.numel()) + 16 * 4 * 8
    assert sum(kept.values()) <= values * 4 + values // 4 * (4 + 1) + small


def test_without_numba_torch_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "torch")
    assert dispatch.pool(torch.randn(2, 2, 8, 8, 4)) is None
