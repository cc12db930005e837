"""Sizes are counted as they lie on disk, against a bound that is counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from spikeformer_lt import Mask, Ticket, create_model
from spikeformer_lt.export.api import size_table, sizes
from spikeformer_lt.export.file import read_packed
from spikeformer_lt.layers.neuron import BatchNorm
from spikeformer_lt.layers.subnet import SubnetConv2d, collapse, get_masks, rankings, set_masks


def test_the_bound_is_that_of_the_formula(write_packed, tmp_path: Path) -> None:
    kept = torch.arange(400).view(20, 20) % 4 == 0
    weight = torch.where(kept, torch.randn(20, 20).sign() * 2, 0.0)
    write_packed(tmp_path, Ticket(Mask({"w": kept}), {"w": weight, "b": torch.randn(7)}, {}))
    (whole,) = sizes(read_packed(tmp_path), tmp_path)
    entropy = 400 * (-0.25 * math.log2(0.25) - 0.75 * math.log2(0.75))
    assert whole.bound == pytest.approx((entropy + 100 + 32) / 8 + 28)
    assert whole.fp32 == 4 * 407 and whole.tensors == 2
    assert whole.packed == sum(path.stat().st_size for path in tmp_path.iterdir())


DVS: dict[str, object] = {"T": 16, "image_size": 128, "in_channels": 2, "embed_dim": 256}
DVS |= {"num_heads": 16, "pools": (True,) * 4}


@pytest.mark.parametrize(
    ("options", "sparsity", "precision", "smaller"),
    [
        ({}, 0.5, "fp32", 20),
        ({}, 0.9, "fp32", 50),
        ({}, 0.9, "bf16", 50),
        (DVS, 0.5, "fp32", 20),
        (DVS, 0.9, "fp32", 48.5),  # its information bound is 48.2x
        (DVS, 0.9, "bf16", 50),
    ],
)
def test_the_published_size_meets_the_targets(
    options: dict[str, object],
    sparsity: float,
    precision: str,
    smaller: float,
    write_packed,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = create_model("spikformer_cifar", depth=1, **options)
    for norm in (m for m in model.modules() if isinstance(m, BatchNorm)):  # as after a training
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3)
        torch.nn.init.normal_(norm.running_mean)
        norm.running_var.normal_(0.0, 0.5).exp_()
    for i, (_, unit) in enumerate(model.conv_pep.units()):
        binary = i > 0 or model.in_channels == 2  # the first convolution of a picture reads pixels
        unit.conv = SubnetConv2d(unit.conv, "weights", binary=binary)
    set_masks(model, Mask.from_scores(rankings(model), sparsity, scope="layer"))
    mask = get_masks(model)
    ticket = Ticket(mask, collapse(model).state_dict(), {})
    write_packed(tmp_path, ticket, precision)
    stem, rest, whole = sizes(read_packed(tmp_path), tmp_path)

    assert stem.smaller >= smaller
    assert max(size.over_bound for size in (stem, rest, whole)) < 0.1
    assert "ConvPEP" in size_table([stem, rest, whole])
