"""Folding changes no value beyond rounding, and byte products are exact."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spikeformer_lt.export import inference
from spikeformer_lt.export.inference import FoldedConv, affine, binary_linear, can_fold, fold_linear
from spikeformer_lt.layers.norm import BatchNorm


@pytest.fixture
def norm() -> BatchNorm:
    made = BatchNorm(24).double().eval()
    with torch.no_grad():
        made.weight.uniform_(-2, 2)
        made.bias.uniform_(-2, 2)
        made.running_mean.uniform_(-2, 2)
        made.running_var.uniform_(0.1, 3)
    return made


def by_rows(norm: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    return norm(maps.permute(0, 2, 3, 1)[None])[0].permute(0, 3, 1, 2)


def test_affine_is_the_norm(norm: BatchNorm) -> None:
    x = torch.randn(2, 5, 24).double()
    scale, shift = affine(norm)
    torch.testing.assert_close(x * scale + shift, norm(x), rtol=0, atol=1e-13)
    assert can_fold(norm) and not can_fold(nn.Identity())
    assert not can_fold(BatchNorm(3, track_running_stats=False))


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_linear_map(norm: BatchNorm, bias: bool) -> None:
    linear = nn.Linear(7, 24, bias=bias).double()
    x = torch.randn(2, 5, 7).double()
    weight, shift = fold_linear(linear, norm)
    found = nn.functional.linear(x, weight, shift)
    torch.testing.assert_close(found, norm(linear(x)), rtol=0, atol=1e-13)


def test_a_folded_convolution_and_a_part_of_it(norm: BatchNorm) -> None:
    conv = nn.Conv2d(9, 24, 3, padding=1, bias=False).double()
    x = torch.randn(2, 9, 6, 6).double()
    wanted = by_rows(norm, conv(x))
    folded = FoldedConv(conv, norm)
    torch.testing.assert_close(folded(x), wanted, rtol=0, atol=1e-12)
    out, into = torch.arange(24) % 3 > 0, torch.arange(9) != 4
    x[:, 4] = 0
    wanted = by_rows(norm, conv(x))[:, out]
    folded.select(out, into)
    torch.testing.assert_close(folded(x[:, into]), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", [(3, 1), (3, 2), (1, 2)], ids=["3x3", "stride 2", "1x1"])
@pytest.mark.parametrize("per_filter", [False, True])
def test_byte_products_equal_the_sum_in_float64(
    norm: BatchNorm, per_filter: bool, form: tuple[int, int]
) -> None:
    norm = norm.float()
    conv = nn.Conv2d(32, 24, form[0], form[1], form[0] // 2, bias=False)
    gain = torch.rand(24, 1, 1, 1) + 0.1 if per_filter else 0.37
    kept = torch.rand(conv.weight.shape) < 0.5
    conv.weight.data = torch.where(kept, torch.randn(conv.weight.shape).sign() * gain, 0.0)
    folded = FoldedConv(conv, norm, spikes_in=True)
    assert folded.as_bytes
    spikes = (torch.rand(3, 32, 8, 8) < 0.3).float()
    exact = FoldedConv(conv.double(), norm.double())(spikes.double())
    torch.testing.assert_close(folded(spikes).double(), exact, rtol=1e-6, atol=1e-6)
    if not inference.bytes_are_faster(spikes):
        pytest.skip("this processor has no byte dot products: the float path was checked")
    found = folded._integer(spikes)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(copy.deepcopy(folded)(spikes), found)
    folded.select(torch.arange(24) < 20, torch.arange(32) < 32)
    assert torch.equal(folded(spikes), found[:, :20])


def test_bytes_are_for_binary_weights_and_float32_alone(norm: BatchNorm) -> None:
    real = nn.Conv2d(32, 24, 3, bias=False)
    assert not FoldedConv(real, norm.float(), spikes_in=True).as_bytes
    real.weight.data = real.weight.data.sign()
    assert FoldedConv(real, norm, spikes_in=True).as_bytes
    assert not FoldedConv(real, norm, spikes_in=False).as_bytes
    assert not FoldedConv(real.double(), norm.double(), spikes_in=True).as_bytes


def test_rows_of_bytes_are_for_binary_weights_of_float32_alone(norm: BatchNorm) -> None:
    linear = nn.Linear(9, 24)
    assert binary_linear(linear, norm) is None
    linear.weight.data = linear.weight.data.sign() * 0.3
    found = binary_linear(linear, norm)
    assert found is not None and found[0].dtype == torch.int8
    weight, _ = fold_linear(linear, norm)
    torch.testing.assert_close(found[0] * found[1][:, None], weight, rtol=1e-6, atol=1e-7)
    assert binary_linear(linear.double(), norm) is None


def test_loaded_weights_are_the_ones_that_run() -> None:
    def made() -> FoldedConv:
        conv, norm = nn.Conv2d(32, 32, 3, padding=1, bias=False), BatchNorm(32).eval()
        with torch.no_grad():
            conv.weight.copy_(conv.weight.sign() * 0.1)
        return FoldedConv(conv, norm, True)

    x = (torch.rand(2, 32, 8, 8) < 0.3).float()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            a, b = made(), made()
            assert not torch.equal(a(x), b(x))
            a.load_state_dict(b.state_dict())
            assert torch.equal(a(x), b(x))
