from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.events.recording import EVENTS
from spikeformer_lt.registry import create_dataset, list_datasets

# Of the split as it was first published; a change here changes everybody's numbers.
SHA256 = "f1110871b7699f0370e630a2c4ab13522ba21c9d6d20a5a2e7b656aef744f0f8"


@pytest.fixture(scope="module")
def splits():
    return create_dataset("moving_digits")


def test_it_is_registered_and_whole_without_any_file(splits):
    assert "moving_digits" in list_datasets()
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [1293, 145, 359]
    assert (splits.kind, splits.num_classes, splits.in_channels, splits.image_size) == (
        "events", 10, 2, 32
    )  # fmt: skip
    assert splits.split_sha256 == SHA256 and splits.augment == "moving_digits"
    for part in (splits.train, splits.val, splits.test):
        assert torch.bincount(part.labels, minlength=10).min() >= 13


def test_the_test_digits_are_those_of_the_images(splits):
    images = create_dataset("digits")
    assert [int(s.path[6:]) for s in splits.test.samples] == images.test.indices.tolist()
    assert splits.test.labels.tolist() == images.test.labels.tolist()


def test_a_recording_is_real_in_form_and_the_same_each_time(splits):
    events, report = splits.train.events(0)
    assert events.dtype == EVENTS and report.faults == {} and not report.empty
    assert 500 < len(events) < 20_000 and report.duration_us <= 300_000
    again, _ = create_dataset("moving_digits").train.events(0)
    assert np.array_equal(again, events)
    frames, label = splits.train[0]
    assert frames.shape == (16, 2, 32, 32) and frames.sum() == len(events)
    assert label == splits.train.labels[0]


def test_digits_can_be_told_apart_by_a_nearest_mean(splits):
    """The frames hold their digit: far better than the 10 % of a guess, without any training."""

    def mean_frames(part, picks):
        return torch.stack([part[i][0].sum((0, 1)).flatten() for i in picks])

    picks = [i for k in range(10) for i in (splits.train.labels == k).nonzero()[:8, 0].tolist()]
    means = mean_frames(splits.train, picks).view(10, 8, -1).mean(1)
    tests = range(60)
    guesses = torch.cdist(mean_frames(splits.test, tests), means).argmin(1)
    assert (guesses == splits.test.labels[:60]).float().mean() > 0.4


def test_size_steps_and_limits_are_options():
    options = EventOptions(T=4, by="n_time_bins", values="binary")
    splits = create_dataset(
        "moving_digits", image_size=48, limit_train=20, limit_test=10, events=options
    )
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [20, 2, 10]
    frames, _ = splits.val[0]
    assert frames.shape == (4, 2, 48, 48) and set(frames.unique().tolist()) == {0.0, 1.0}
    for size in (8, 33, 136):
        with pytest.raises(ConfigError, match=f"image_size={size} is not allowed"):
            create_dataset("moving_digits", image_size=size)


def test_frames_can_be_kept_on_disk(tmp_path):
    options = EventOptions(T=4, cache=str(tmp_path))
    first = create_dataset("moving_digits", limit_train=10, events=options).train[0][0]
    assert len(list(tmp_path.rglob("*.frames"))) == 1
    again = create_dataset("moving_digits", limit_train=10, events=options).train[0][0]
    assert torch.equal(first, again)
