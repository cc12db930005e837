"""A small network in which every layer fires, and images for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt import Ticket, create_dataset, create_model
from spikeformer_lt.mask import Mask


def make_lively(**sizes):
    torch.manual_seed(0)
    model = create_model(
        "spikformer_toy", **{"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2,
                             **sizes}
    )  # fmt: skip
    for module in model.modules():
        if type(module).__name__ == "BatchNorm":
            nn.init.constant_(module.bias, 1.2)
            nn.init.constant_(module.weight, 2.0)
    for _ in range(40):  # BatchNorm statistics of real activity: every layer fires
        model.train()(torch.rand(8, 3, 16, 16))
    return model.eval()


@pytest.fixture
def build():
    """Makes a small network in which every layer fires, with options of its own."""
    return make_lively


@pytest.fixture
def lively():
    return make_lively()


@pytest.fixture(scope="session")
def probe():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(4, 3, 16, 16, generator=generator) for _ in range(2)]


def save_untrained(folder, **provenance):
    args = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
    torch.manual_seed(0)
    model = create_model("spikformer_toy", num_classes=10, **args)
    known = {
        "model": {"name": "spikformer_toy", "args": args},
        "dataset": "digits",
        "split_sha256": create_dataset("digits", image_size=16, limit_test=30).split_sha256,
        "data": {"image_size": 16, "limit_test": 30},
        **provenance,
    }
    known = {name: value for name, value in known.items() if value is not None}
    mask = Mask({k: torch.ones_like(v).bool() for k, v in model.state_dict().items() if v.ndim > 3})
    Ticket(mask, model.state_dict(), known).save(folder / "ticket")
    return model


@pytest.fixture
def saved():
    """Saves a run with an untrained ticket into a folder."""
    return save_untrained
