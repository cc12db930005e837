"""One pass gives the spikes and voltages of a linear map and its neurons."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import matmul
from spikeformer_lt.layers.kernels.dispatch import lif


@pytest.mark.parametrize("rows", [1, 47, 48, 49, 100])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_spikes_and_voltages_in_float64(
    rows: int, static: bool, carried: bool, params: NeuronConfig
) -> None:
    torch.manual_seed(rows)
    x = (torch.rand(1 if static else 5, rows, 130) < 0.3).double()
    weight, shift = torch.randn(48, 130).double() / 3, torch.randn(48).double()
    v = torch.randn(rows, 48).double() if carried else None
    panels = matmul.as_panels(weight)
    assert panels is not None
    spikes, last = matmul.linear_lif(x, panels, shift, v, 5, params)
    wanted, end = lif(x @ weight.t() + shift, v, 5, params)
    assert torch.equal(spikes, wanted) and 0 < wanted.mean() < 1
    torch.testing.assert_close(last, end, rtol=0, atol=1e-12)


def test_widths_that_are_no_vectors_have_no_panels() -> None:
    assert matmul.as_panels(torch.randn(20, 8)) is None
    panels = matmul.as_panels(torch.arange(64.0 * 5).view(64, 5))
    assert panels is not None and panels.numel() == 320
    assert panels[0, 1, :3].tolist() == [1.0, 6.0, 11.0]
