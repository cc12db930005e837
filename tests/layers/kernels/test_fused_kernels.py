"""Pieces of the fused product and LIF write their own neurons only."""

from __future__ import annotations

import numpy as np
import torch

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import matmul
from spikeformer_lt.layers.kernels.dispatch import lif
from spikeformer_lt.layers.kernels.lif import constants
from spikeformer_lt.layers.kernels.simd import BYTES

LANES = BYTES // 8


def test_a_piece_is_a_block_of_rows_and_a_panel() -> None:
    torch.manual_seed(0)
    x, weight = torch.rand(4, 7, 10).double(), torch.randn(2 * LANES, 10).double()
    shift, p = torch.randn(2 * LANES).double(), NeuronConfig()
    panels = weight.view(2, LANES, 10).transpose(1, 2).contiguous()
    spikes, last = np.full((4, 7, 2 * LANES), np.nan), np.full((7, 2 * LANES), np.nan)
    args = (x.numpy().ravel(), None, panels.numpy().ravel(), shift.numpy(), np.zeros(0))
    outs = (spikes.reshape(-1), None, last.reshape(-1), 7, 10, constants(p, spikes.dtype), True)
    matmul.linear_lif_kernel(1, 4, *args, *outs, 1, LANES, 3)
    assert np.isnan(spikes[:, :3, :LANES]).all() and np.isnan(spikes[:, 6:]).all()
    matmul.linear_lif_kernel(0, 1, *args, *outs, 1, LANES, 3)
    matmul.linear_lif_kernel(4, 6, *args, *outs, 1, LANES, 3)
    wanted, v = lif(x @ weight.t() + shift, None, 4, p)
    assert torch.equal(torch.from_numpy(spikes), wanted)
    torch.testing.assert_close(torch.from_numpy(last), v, rtol=0, atol=1e-13)
    stream = torch.randint(3, wanted.shape).double()
    sums = (outs[0], stream.numpy().ravel(), *outs[2:])
    matmul.linear_lif_kernel(0, 6, *args, *sums, 1, LANES, 3)
    assert torch.equal(torch.from_numpy(spikes), wanted + stream)
    assert matmul.as_panels(weight) is not None
