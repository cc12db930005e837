"""The statistics of the fused BatchNorm: exact where float32 sums would not be."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.layers.kernels.lif import moments


@pytest.mark.parametrize("channels", [1, 3, 96, 1500])
def test_mean_and_variance_equal_torch(channels: int) -> None:
    x = torch.randn(2, 33, channels, dtype=torch.float64) * 2 + 1
    mean, var = moments(x)
    rows = x.reshape(-1, channels)
    torch.testing.assert_close(mean, rows.mean(0), rtol=0, atol=1e-13)
    torch.testing.assert_close(var, rows.var(0, unbiased=False), rtol=1e-13, atol=0)


def test_a_mean_far_above_the_deviation_costs_no_digits() -> None:
    x = torch.randn(20000, 8) + 1e4
    exact = x.double()
    mean, var = moments(x)
    torch.testing.assert_close(mean.double(), exact.mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact.var(0, unbiased=False), rtol=1e-6, atol=0)


def test_a_constant_channel_has_no_variance_and_a_nan_no_number() -> None:
    x = torch.full((50, 3), 0.1)
    x[7, 2] = float("nan")
    mean, var = moments(x)
    assert mean[:2].tolist() == [x[0, 0].item()] * 2
    assert var[:2].tolist() == [0.0, 0.0]
    assert mean[2].isnan()
    assert var[2].isnan()
