"""Parts of the tiles and of the weights are parts of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeformer_lt.layers.kernels import winograd as kernels
from spikeformer_lt.layers.kernels.simd import BYTES

LANES = BYTES // 8
TALL = max(LANES, 8)  # of whose multiples a share of the inputs is made
N, H, W, C, K = 2, 9, 6, 2 * TALL, 2 * LANES
TILES = N * 3 * 2


def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, w = torch.randn(N, H, W, C, dtype=torch.float64), torch.randn(K, C, 3, 3).double()
    return x, w, torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), w, padding=1)


@pytest.mark.parametrize("block", [1, 5, 48])
@pytest.mark.parametrize("depth", [LANES, 128])
def test_tiles_and_channels_may_be_cut_anywhere(block: int, depth: int) -> None:
    x, w, wanted = maps()
    u, y = np.full(36 * C * K, np.nan), np.full(N * H * W * K, np.nan)
    for lo, hi in ((0, 1), (1, 2)):
        kernels.filter_transform(lo, hi, w.numpy().ravel(), u, C, K, 9, 9 * C, False, 2, LANES)
    for lo, hi in ((0, 5), (5, 7), (7, TILES)):
        args = (x.numpy().ravel(), u, y, H, W, C, K, 2, LANES, block, depth)
        kernels.convolve_kernel(lo, hi, *args)
    found = torch.from_numpy(y).view(N, H, W, K).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [1, 5, 48])
def test_parts_of_the_weights_gradient_write_their_own_place_only(block: int) -> None:
    x, w, out = maps()
    g = torch.randn_like(out).contiguous(memory_format=torch.channels_last)
    w.requires_grad_()
    (wanted,) = torch.autograd.grad(
        torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), w, padding=1), w, g
    )
    gw = np.full(w.numel(), np.nan)
    rows = g.permute(0, 2, 3, 1).contiguous().numpy().ravel()
    parts = np.array([[0, TALL, 0, K], [TALL, C, 0, LANES], [TALL, C, LANES, K]])
    args = (x.numpy().ravel(), rows, gw, TILES, H, W, C, K, 1, LANES, block, parts)
    kernels.weights_back_kernel(0, 1, *args)
    found = torch.from_numpy(gw).view_as(w)
    assert found[:, TALL:].isnan().all() and not found[:, :TALL].isnan().any()
    kernels.weights_back_kernel(1, 3, *args)
    torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-11)
