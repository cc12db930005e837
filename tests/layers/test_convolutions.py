"""Which convolutions take the fast way, and that they stay what they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spikeformer_lt.layers.subnet import SubnetConv2d
from spikeformer_lt.layers.units import conv_rows, map_rows


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", "numba")


@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_convolution(bias: bool) -> None:
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=bias).double()
    rows = torch.randn(2, 3, 7, 8, 16).double()
    found = conv_rows(rows, conv)
    assert found is not None
    wanted = conv(rows.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=0, atol=1e-12)
    assert torch.equal(map_rows(rows, conv), found)


@pytest.mark.parametrize("learn", ["weights", "scores", "both"])
def test_a_part_of_the_weights_and_its_gradients(learn: str) -> None:
    torch.manual_seed(0)
    fast = SubnetConv2d(nn.Conv2d(16, 16, 3, padding=1, bias=False), learn).double()
    fast.mask.copy_(torch.rand(fast.mask.shape) < 0.5)
    slow = copy.deepcopy(fast)
    rows = torch.randn(1, 2, 8, 8, 16).double()
    found = conv_rows(rows, fast)
    assert found is not None
    wanted = slow(rows.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    found.square().sum().backward()
    wanted.square().sum().backward()
    for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-9)


def test_everything_else_is_left_to_its_own_forward() -> None:
    rows = torch.randn(2, 3, 8, 8, 16)
    others = [
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 16, 1),
    ]
    for conv in others:
        assert conv_rows(rows, conv) is None, conv
    plain, seen = nn.Conv2d(16, 16, 3, padding=1), []
    assert conv_rows(rows, plain) is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv_rows(rows, plain) is None
    plain.register_forward_hook(lambda m, a, out: seen.append(out.shape))
    map_rows(rows, plain)
    assert seen == [(6, 16, 8, 8)]


@pytest.mark.parametrize(
    ("channels", "kernel", "copied"), [(4, 1, True), (8, 1, False), (4, 3, False)]
)
def test_a_narrow_pointwise_stride_is_trained_in_the_layout_that_is_safe(
    channels: int, kernel: int, copied: bool
) -> None:
    """With channels last torch's gradients corrupt the heap, on processors with AVX2 alone."""
    conv = nn.Conv2d(channels, 8, kernel, 2, kernel // 2)
    layouts: list[bool] = []
    conv.register_forward_pre_hook(lambda m, args: layouts.append(args[0].is_contiguous()))
    rows = torch.rand(3, 8, 16, 16, channels, requires_grad=True)
    out = map_rows(rows, conv)
    assert layouts == [copied]
    if not copied:
        return
    out.square().sum().backward()
    plain = rows.detach()[:, :, ::2, ::2].requires_grad_()
    nn.functional.linear(plain, conv.weight[:, :, 0, 0], conv.bias).square().sum().backward()
    expected = torch.zeros_like(rows)
    expected[:, :, ::2, ::2] = plain.grad
    assert torch.allclose(rows.grad, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        map_rows(rows, conv)
    assert layouts == [True, False], "without gradients nothing is copied"
