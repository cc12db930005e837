"""Options that all recipes share."""

from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.options import (
    SPLIT_OPTIONS,
    DataConfig,
    EventDataConfig,
    ModelConfig,
    load_splits,
    split_options,
)


def test_only_sizes_that_were_set_reach_the_model():
    assert ModelConfig().args() == {"T": 4}
    assert ModelConfig(embed_dim=64, T=2).args() == {"T": 2, "embed_dim": 64}
    assert ModelConfig(neuron="relu").args() == {"T": 4, "neuron": "relu"}
    assert ModelConfig(decay_input=False).args() == {"T": 4, "decay_input": False}


def test_splits_follow_the_options():
    config = DataConfig(name="digits", image_size=16, limit_train=50, limit_test=20)
    data = load_splits(config, 4)
    assert (len(data.train), len(data.test), data.image_size) == (50, 20, 16)
    assert load_splits(config, 4).split_sha256 == data.split_sha256
    assert all(hasattr(config, name) for name in SPLIT_OPTIONS)


def test_recordings_become_as_many_frames_as_the_model_has_steps():
    config = EventDataConfig(name="moving_digits", limit_train=20, limit_test=10, values="binary")
    data = load_splits(config, 3)
    frames, _ = data.train[0]
    assert (data.kind, frames.shape) == ("events", (3, 2, 32, 32))
    assert frames.unique().tolist() == [0, 1]
    assert split_options(config)["values"] == "binary"
    assert (
        load_splits(DataConfig(name="moving_digits", limit_train=20), 5).train[0][0].shape[0] == 5
    )


def test_event_options_are_refused_for_still_images():
    with pytest.raises(ConfigError, match=r"data.values.*'binary'.*digits are still images"):
        load_splits(EventDataConfig(name="digits", values="binary"), 4)
