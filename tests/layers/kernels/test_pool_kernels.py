"""The pool's kernels on several threads, on NaN, and where a channel wants its smallest value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeformer_lt.layers.kernels import lif
from spikeformer_lt.layers.kernels.reference import pool


def test_threads_change_nothing() -> None:
    x, before = torch.randn(4, 8, 16, 16, 16), torch.get_num_threads()
    g = torch.randn(pool(x).shape)
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out, labels = lif.max_pool(x, None)
            found.append((out, labels, lif.max_pool_back(g, labels, x, None)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_a_negative_factor_takes_the_smallest(size: tuple[int, int]) -> None:
    x = torch.randn(1, 2, *size, 2)
    out, labels = lif.max_pool(x, np.array([1.0, -1.0], np.float32))
    wanted = torch.stack([pool(x)[..., 0], -pool(-x)[..., 1]], -1)
    assert torch.equal(out, wanted)
    assert labels.max() <= 8


def test_a_nan_stays() -> None:
    x = torch.zeros(1, 1, 4, 4, 1)
    x[0, 0, 1, 1] = float("nan")
    out, _ = lif.max_pool(x, None)
    assert out.isnan().all()
