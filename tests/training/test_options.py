"""Options that all recipes share."""

from __future__ import annotations

from spikeformer_lt.training.options import SPLIT_OPTIONS, DataConfig, ModelConfig, load_splits


def test_only_sizes_that_were_set_reach_the_model():
    assert ModelConfig().args() == {"T": 4}
    assert ModelConfig(embed_dim=64, T=2).args() == {"T": 2, "embed_dim": 64}
    assert ModelConfig(neuron="relu").args() == {"T": 4, "neuron": "relu"}


def test_splits_follow_the_options():
    config = DataConfig(name="digits", image_size=16, limit_train=50, limit_test=20)
    data = load_splits(config)
    assert (len(data.train), len(data.test), data.image_size) == (50, 20, 16)
    assert load_splits(config).split_sha256 == data.split_sha256
    assert all(hasattr(config, name) for name in SPLIT_OPTIONS)
