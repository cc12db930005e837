"""A product is a linear map, whichever library or kind of number computes it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spikeformer_lt.export.synapses import FoldedConv2d, FoldedLinear, select_channels
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.units import Folded


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 7), (1, 7), (0, 7)])
def test_the_product_is_a_linear_map(shape: tuple[int, ...]) -> None:
    weight, bias = torch.randn(11, 7), torch.randn(11)
    for kind in (torch.float32, torch.float64):
        product = FoldedLinear(weight.to(kind), bias.to(kind))
        for x in (torch.randn(shape), torch.randn(*shape[:-1], 14)[..., ::2]):
            wanted = nn.functional.linear(x.double(), weight.double(), bias.double())
            for outputs in (None, 4):
                found = product(x.to(kind), outputs)
                assert found.dtype == kind and found.shape == (*shape[:-1], outputs or 11)
                close = {"rtol": 1e-5, "atol": 1e-5}
                torch.testing.assert_close(found.double(), wanted[..., :outputs], **close)


def test_the_ordered_weight_follows_rows_changes_and_copies() -> None:
    product = FoldedLinear(torch.randn(64, 48), torch.randn(64))

    def right(it: FoldedLinear, rows: int) -> bool:
        x = torch.randn(rows, 48)
        return torch.allclose(it(x), nn.functional.linear(x, it.weight, it.bias), atol=1e-4)

    assert all(right(product, rows) for rows in (1, 40, 40, 300, 40))
    product.weight.mul_(-2)
    assert right(product, 40), "a weight changed in place"
    product.weight = nn.Parameter(product.weight.flip(0).contiguous(), requires_grad=False)
    assert right(product, 40), "another weight"
    again = copy.deepcopy(product)
    again.weight.zero_()
    assert right(again, 40) and right(product, 40)
    with torch.inference_mode():
        assert right(FoldedLinear(torch.randn(64, 48), torch.randn(64)), 40)


def binary_map(
    rows: int = 40, columns: int = 160
) -> tuple[FoldedLinear, FoldedLinear, torch.Tensor]:
    """A product of bytes, the same one without, and whole numbers for both."""
    signs = torch.randint(-1, 2, (rows, columns)).to(torch.int8)
    gain, bias = torch.rand(rows) + 0.1, torch.randn(rows)
    weight = signs * gain[:, None]
    x = torch.randint(0, 7, (3, 5, columns)).float()
    x[0, 0] = 255
    return FoldedLinear(weight, bias, whole=True), FoldedLinear(weight.double(), bias.double()), x


def test_byte_products_of_rows_equal_the_sum_in_float64() -> None:
    product, exact, x = binary_map()
    close = {"rtol": 1e-6, "atol": 1e-6}
    if not product.takes_bytes(x):
        torch.testing.assert_close(product(x).double(), exact(x.double()), rtol=1e-4, atol=1e-3)
        pytest.skip("this processor has no byte dot products: the float path was checked")
    scale = 255.0 * 160
    for outputs in (None, 12, None):
        found = product(x, outputs).double()
        wanted = exact(x.double(), outputs)
        torch.testing.assert_close(found / scale, wanted / scale, **close)
        torch.testing.assert_close(found[1:], wanted[1:], rtol=1e-5, atol=1e-5)
    assert torch.equal(copy.deepcopy(product)(x), product(x))
    some = torch.arange(40) % 3 > 0
    wanted = product(x)[..., some]
    select_channels(product, some, 0)
    assert torch.equal(product(x), wanted)
    columns = torch.arange(160) < 150
    x[..., ~columns] = 0
    wanted = product(x)
    select_channels(product, columns, 1)
    assert torch.equal(product(x[..., columns]), wanted)
    assert product(x[:0, :, columns]).shape == (0, 5, int(some.sum()))


def test_loaded_bytes_are_multiplied() -> None:
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            (a, _, x), (b, _, _) = binary_map(), binary_map()
            assert not torch.equal(a(x), b(x))
            a.load_state_dict(b.state_dict())
            assert torch.equal(a(x), b(x))
            assert torch.equal(a(x, 12), b(x, 12))


def test_operations_can_be_counted() -> None:
    product, x = FoldedLinear(torch.randn(64, 48), torch.randn(64)), torch.randn(10, 48)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        product(x)
    assert counter.get_total_flops() == 2 * 10 * 48 * 64


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("mode", ["auto", "torch"])
def test_an_input_that_needs_a_gradient_gets_it(binary: bool, mode: str, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_mode", mode)
    maps, weight = torch.ones(2, 128, 4, 4).requires_grad_(), torch.randn(16, 128, 3, 3).double()
    weight = weight.sign() if binary else weight
    conv = FoldedConv2d(
        nn.Conv2d(128, 16, 3, padding=1), Folded(weight, torch.zeros(16), None), True
    )
    linear = FoldedLinear(weight[..., 0, 0], torch.zeros(16), torch.float32, True)
    (found,) = torch.autograd.grad(conv(maps).sum(), maps)
    wanted = nn.grad.conv2d_input(maps.shape, conv.weight, torch.ones(2, 16, 4, 4), padding=1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    rows = torch.ones(3, 128).requires_grad_()
    (found,) = torch.autograd.grad(linear(rows).sum(), rows)
    torch.testing.assert_close(found, linear.weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)
