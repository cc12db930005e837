"""A small network in which every layer fires, and images for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt import create_model


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
def lively():
    return make_lively()


@pytest.fixture(scope="session")
def probe():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(4, 3, 16, 16, generator=generator) for _ in range(2)]
