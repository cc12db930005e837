from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikeformer_lt.layers.units import ConvUnit, LinearUnit, map_rows

T, B, C, H, W = 3, 2, 5, 8, 6


def plain_lif(current: torch.Tensor, T: int) -> torch.Tensor:
    """Tau 2, threshold 1, hard reset to 0, written out step by step."""
    v, spikes = torch.zeros_like(current[0]), []
    for t in range(T):
        v = v + (current[t if len(current) > 1 else 0] - v) / 2
        spikes.append((v >= 1).to(v))
        v = v * (1 - spikes[-1])
    return torch.stack(spikes)


def reference(unit: ConvUnit, rows: torch.Tensor, pool_first: bool = False) -> torch.Tensor:
    """The same unit by torch's own modules on [N, C, H, W] maps, each step computed anew."""
    steps = rows if len(rows) == T else rows.expand(T, -1, -1, -1, -1)
    maps = unit.conv(steps.flatten(0, 1).permute(0, 3, 1, 2).contiguous())
    norm = unit.norm
    maps = F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    pool = nn.Identity() if unit.pool is None else unit.pool
    if pool_first:
        maps = pool(maps)
    maps = plain_lif(maps.unflatten(0, (T, B)), T).flatten(0, 1)
    if not pool_first:
        maps = pool(maps)
    return maps.permute(0, 2, 3, 1).unflatten(0, (T, B))


def test_rows_and_maps_are_the_same_memory_on_the_way_into_a_layer() -> None:
    rows = torch.randn(T, B, H, W, C)
    seen = []

    class Spy(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            seen.append(maps)
            return maps * 2

    out = map_rows(rows, Spy())
    assert seen[0].shape == (T * B, C, H, W)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert seen[0].data_ptr() == rows.data_ptr()
    assert torch.equal(out, rows * 2)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("pool_first", [False, True])
@pytest.mark.parametrize("steps", [1, T])
def test_a_conv_unit_equals_torch_modules_step_by_step(
    awaken, pool: bool, pool_first: bool, steps: int
) -> None:
    unit = ConvUnit(C, 16, pool=pool, pool_before_act=pool_first).double()
    rows = torch.randn(steps, B, H, W, C, dtype=torch.float64)
    awaken(unit, lambda m: m(rows, T), centre=-0.6 if pool and not pool_first else 0.35)
    unit.eval()
    unit.act.reset()
    out, _ = unit(rows, T)
    assert out.shape == (T, B, H // (2 if pool else 1), W // (2 if pool else 1), 16)
    assert 0.05 < out.mean() < 0.6
    assert torch.equal(out, reference(unit, rows, pool_first))


@pytest.mark.parametrize("activation", ["heaviside", "sign", "relu"])
def test_a_stateless_unit_keeps_a_static_input_static(activation: str) -> None:
    unit = ConvUnit(C, 16, activation=activation, pool=True).double()
    rows = torch.randn(1, B, H, W, C, dtype=torch.float64)
    out, _ = unit(rows, T)
    assert out.shape[0] == 1


def test_a_static_input_is_convolved_once() -> None:
    unit = ConvUnit(C, 16)
    sizes = []
    unit.conv.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    unit(torch.randn(1, B, H, W, C), T)
    unit.act.reset()
    unit(torch.randn(T, B, H, W, C), T)
    assert sizes == [B, T * B]


@pytest.mark.parametrize("pool_first", [False, True])
def test_the_current_is_the_normalised_convolution(pool_first: bool) -> None:
    unit = ConvUnit(C, 16, pool_before_act=pool_first).double().eval()
    rows = torch.randn(T, B, H, W, C, dtype=torch.float64)
    _, current = unit(rows, T, need_current=True)
    assert torch.allclose(current, unit.norm(map_rows(rows, unit.conv)), rtol=0, atol=1e-12)


def test_max_pooling_spikes_is_an_or_over_each_window() -> None:
    unit = ConvUnit(C, 16, pool=True)
    spikes = (torch.rand(T, B, H, W, 16) < 0.2).float()
    pooled = map_rows(spikes, unit.pool)
    assert set(pooled.unique().tolist()) == {0.0, 1.0}
    padded = F.pad(spikes.flatten(0, 1).permute(0, 3, 1, 2), (1, 1, 1, 1))
    windows = padded.unfold(2, 3, 2).unfold(3, 3, 2)
    assert torch.equal(
        pooled.flatten(0, 1).permute(0, 3, 1, 2).bool(), (windows > 0).flatten(4).any(4)
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("steps", [1, T])
def test_a_linear_unit_equals_torch_modules_step_by_step(awaken, bias: bool, steps: int) -> None:
    unit = LinearUnit(12, 16, bias=bias).double()
    tokens = torch.randn(steps, B, 9, 12, dtype=torch.float64)
    awaken(unit, lambda m: m(tokens, T))
    unit.eval()
    unit.act.reset()
    out = unit(tokens, T)
    current = unit.linear(tokens.expand(T, -1, -1, -1))
    norm = unit.norm
    current = F.batch_norm(
        current.flatten(0, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias
    ).view_as(out)
    assert out.shape == (T, B, 9, 16)
    assert 0.05 < out.mean() < 0.6
    assert torch.equal(out, plain_lif(current, T))
    assert (unit.linear.bias is not None) is bias
