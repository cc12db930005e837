"""Every picture of a run of images and of a run of events."""

from __future__ import annotations

import shutil

import pytest
import torch

from spikeformer_lt import Ticket, create_dataset, create_model
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.finished import open_run
from spikeformer_lt.reports.run_page import draw_run
from spikeformer_lt.tickets import MultiSpConfig, model_from_ticket, set_activation, set_patches


def event_ticket(folder):
    """A ticket for event clips with half of the patches removed, not trained."""
    from dataclasses import asdict, replace

    splits = create_dataset("moving_digits", limit_train=40, limit_test=8)
    x = next(iter(splits.test))[0]
    T, channels, size = x.shape[0], x.shape[1], x.shape[-1]
    args = {"image_size": size, "in_channels": channels, "T": T, "num_heads": 2, "depth": 1}
    args |= {"embed_dim": 16, "v_threshold": 0.2}
    torch.manual_seed(0)
    model = create_model("spikformer_toy", num_classes=10, **args)
    config = MultiSpConfig()
    config = replace(config, patches=replace(config.patches, sparsity=0.5))
    set_activation(model, config.activation)
    set_patches(model, config.patches)
    mask = Mask({k: torch.ones_like(v).bool() for k, v in model.state_dict().items() if v.ndim > 3})
    known = {
        "model": {"name": "spikformer_toy", "args": args},
        "search": "multisp",
        "config": asdict(config),
        "dataset": "moving_digits",
        "split_sha256": splits.split_sha256,
        "data": {"limit_train": 40, "limit_test": 8},
    }
    Ticket(mask, model.state_dict(), known).save(folder / "ticket")


def test_a_ticket_of_a_convolutional_network_is_drawn(tmp_path):
    args = {"image_size": 16, "T": 2}
    torch.manual_seed(0)
    model = create_model("spiking_vgg_toy", num_classes=10, **args)
    known = {
        "model": {"name": "spiking_vgg_toy", "args": args},
        "search": "early_bird",
        "mask_distances": [[], [0.25], [0.25, 0.125]],
        "dataset": "digits",
        "split_sha256": create_dataset("digits", image_size=16, limit_test=30).split_sha256,
        "data": {"image_size": 16, "limit_test": 30},
    }
    mask = Mask({k: torch.ones_like(v).bool() for k, v in model.state_dict().items() if v.ndim > 3})
    Ticket(mask, model.state_dict(), known).save(tmp_path / "run" / "ticket")
    run = open_run(tmp_path / "run", model_from_ticket)
    pictures, energy = draw_run(run, tmp_path / "plots", images=4)
    names = {picture.name for picture in pictures}
    assert {"raster.png", "membrane.png", "mask-distances.png"} <= names
    assert ("energy-bars.png" in names) == (not energy.dead)
    assert sum(name.startswith("kernels-layers") for name in names) == 4
    assert not any("kept" in name for name in names)
    assert [row.operation for row in energy.layers] == ["convolution"] * 4 + ["linear"]


@pytest.mark.parametrize("images", [6])
def test_a_ticket_of_events_is_drawn_with_its_clip(tmp_path, images):
    event_ticket(tmp_path / "run")
    run = open_run(tmp_path / "run", model_from_ticket)
    forwards = []
    run.model.register_forward_hook(lambda module, x, y: forwards.append(len(x[0])))
    pictures, energy = draw_run(run, tmp_path / "plots", images=images)
    assert forwards == [images]  # one pass for operations, pictures and accuracies
    names = {picture.name for picture in pictures}
    assert {"kept-clip.png", "kept-clip.gif", "kept-patches.png", "keep-frequency.png"} <= names
    assert {"raster.png", "membrane.png", "layer-rates.png"} <= names
    assert energy.dead and "energy-bars.png" not in names  # nobody trained it: no headline
    assert "training.png" not in names and "confusion.png" not in names  # a ticket alone
    assert sum(name.startswith("kernels-") for name in names) == 5
    for picture in pictures:
        assert picture.stat().st_size > 1000
        assert picture.with_suffix(".csv").exists()
    assert energy.samples == images
    shutil.rmtree(tmp_path / "plots")
