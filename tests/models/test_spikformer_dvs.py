"""Spikformers for event frames."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.registry import create_model


@pytest.mark.parametrize(("size", "tokens"), [(16, 1), (32, 4), (64, 16), (128, 64)])
def test_any_sensor_that_the_stem_divides_is_taken(size, tokens):
    model = create_model("spikformer_dvs", image_size=size, embed_dim=16, num_heads=2, T=2)
    assert model.num_tokens == tokens
    assert model(torch.rand(2, 2, 2, size, size)).shape == (2, 2, 10)


def test_a_sensor_that_it_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match="35x35 is not a multiple of the ConvPEP stride 16"):
        create_model("spikformer_dvs", image_size=35)


def test_sizes_of_the_published_model():
    model = create_model("spikformer_dvs", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 2_566_666
    assert (model.T, model.num_tokens, model.num_heads) == (16, 64, 16)


def test_the_small_one_is_small():
    model = create_model("spikformer_dvs_toy")
    assert sum(p.numel() for p in model.parameters()) < 150_000
    assert (model.T, model.num_tokens) == (8, 16)
