"""The gradients of a linear map, whatever the number of rows."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.layers.kernels import dispatch, matmul


@pytest.mark.parametrize("rows", [1, 5, 127, 129, 400])
@pytest.mark.parametrize(("wide", "tall"), [(16, 32), (64, 48), (48, 16), (160, 96)])
def test_both_products_in_float64(rows: int, wide: int, tall: int) -> None:
    x, g = torch.randn(rows, wide).double(), torch.randn(rows, tall).double()
    weight = torch.randn(tall, wide).double()
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(matmul.inputs_back(g, weight), g @ weight, **close)
    torch.testing.assert_close(matmul.weights_back(g, x), g.t() @ x, **close)


def test_it_steps_aside_for_odd_widths_and_memory_out_of_order() -> None:
    x, weight = torch.randn(300, 64), torch.randn(32, 64)
    grad = torch.randn(300, 32)
    both = dispatch.linear_back(x, weight, grad, (True, True))
    assert both is not None
    torch.testing.assert_close(both[0], grad @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1], grad.t() @ x, rtol=1e-4, atol=1e-3)
    assert dispatch.linear_back(x, weight, grad, (False, True))[0] is None  # type: ignore[index]
    for odd_x, odd_weight in ((x[:, :60], weight[:, :60]), (x, weight[:20]), (x.t().t(), weight)):
        fits = matmul.fits(odd_x, odd_weight)
        assert fits == (odd_x.is_contiguous() and odd_weight.shape == (32, 64))
    assert dispatch.linear_back(x.double(), weight.double(), grad.double(), (True, True)) is None
