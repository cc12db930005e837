"""Progress lines, clocks and what has been removed."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.layers.patches import PatchSelect, Rate
from spikeformer_lt.layers.subnet import collapse
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets.levels import WeightConfig
from spikeformer_lt.tickets.multisp import MaskController, install_subnets
from spikeformer_lt.training.monitor import EpochProgress, clock, epoch_line, removed
from spikeformer_lt.training.phase import Hook, Hooks, Masked


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (61.4, "0:01:01"), (3600 * 30 + 59, "30:00:59")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_plain_lines_carry_values_speed_and_eta(caplog):
    with (
        caplog.at_level(logging.INFO, "spikeformer_lt"),
        EpochProgress("joint epoch 1/2", 4, 4, 8, every_s=0.0) as bar,
    ):
        bar.bar = None
        bar.step(lambda: {"loss": 1.5})
    (message,) = [r.getMessage() for r in caplog.records]
    for part in ("joint epoch 1/2", "[1/4]", "loss 1.5", "images/s", "ETA"):
        assert part in message


def test_other_ranks_are_silent(caplog):
    with caplog.at_level(logging.INFO), EpochProgress("x", 2, 0, 1, show=False, every_s=0.0) as bar:
        bar.step(lambda: {"loss": 1 / 0})
    assert not caplog.records
    assert bar.done == 1


def test_what_is_removed_is_read_off_the_model():
    model = create_model("spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2)
    assert removed(model) == {"weight_sparsity": 0.0, "patch_sparsity": 0.0}
    config = WeightConfig(sparsity=0.75)
    install_subnets(model.conv_pep, config)
    MaskController(model, config, 0)
    model.patch = PatchSelect(Rate(), 0.5)
    assert removed(model) == {
        "weight_sparsity": pytest.approx(0.75, abs=1e-3),
        "patch_sparsity": 0.5,
    }
    model.patch = PatchSelect(Rate(), 0.314)  # 5 of 16
    assert removed(collapse(model)) == {
        "weight_sparsity": pytest.approx(0.75, abs=1e-3),
        "patch_sparsity": 5 / 16,
    }


def test_a_mask_of_the_search_is_what_counts():
    mask = Mask({"weight": torch.arange(40).view(4, 10) < 10})
    found = removed(nn.Linear(10, 4), Hooks([Hook(), Masked(mask)]).masks())
    assert found == {"weight_sparsity": 0.75, "patch_sparsity": 0.0}


@pytest.mark.parametrize(
    ("network", "masks", "told"),
    [
        ("spikformer_toy", [], "ConvPEP weights"),
        ("spiking_vgg_toy", [], "convolutions' weights"),
        ("spikformer_toy", [Mask({"a": torch.ones(2)})], "masked layers' weights"),
    ],
)
def test_the_log_names_the_weights_as_the_card_does(network, masks, told):
    assert Hooks([Masked(mask) for mask in masks]).weights(create_model(network)) == told


def test_an_epoch_s_line_has_its_row_speed_and_eta():
    row = {
        "phase": "imp-1", "epoch": 2, "train_loss": 1.5, "train_accuracy": 40.0, "firing_rate": 0.1,
        "val_accuracy": None, "weight_sparsity": 0.25, "patch_sparsity": 0.0,
    }  # fmt: skip
    line = epoch_line(row, 5, 120.4, 61.0)
    assert line.startswith("imp-1 epoch 2/5  loss 1.5000  train 40.00 %  val -  ")
    assert "removed: convolutions' weights 25.0 %" in line and line.endswith(
        "120 images/s  ETA 0:01:01"
    )
    assert "val 7.00 %" in epoch_line(row | {"val_accuracy": 7.0}, 5, 1.0, 0.0)
