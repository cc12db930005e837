"""Objects of tonic's classes, or with the same attributes, as splits: `events.tonic`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import EventOptions, tonic_dataset
from spikeformer_lt.events.tonic import TonicReader

OPTIONS = {"events": EventOptions(T=4, by="n_time_bins", cache="auto"), "image_size": 64}


@pytest.fixture
def gestures(files, tmp_path, monkeypatch):
    """Makes objects of tonic.datasets.DVSGesture on files in true form."""
    import tonic.datasets

    for part, people in (("ibmGestureTrain", range(1, 5)), ("ibmGestureTest", (24,))):
        for seed, (person, label) in enumerate(np.ndindex(len(people), 11)):
            path = tmp_path / "DVSGesture" / part / f"user{people[person]:02d}_led" / f"{label}.npy"
            files.write_npy(path, files.some_events(200, seed=seed + people[0]), ticks=1000)
    monkeypatch.setattr(tonic.datasets.DVSGesture, "_check_exists", lambda self: True)
    return lambda **how: tonic.datasets.DVSGesture(str(tmp_path), **how)


def test_an_object_of_tonic_becomes_splits_with_its_own_transform(gestures):
    from tonic.transforms import CropTime

    first = CropTime(max=450_000)
    whole, half = (
        tonic_dataset(gestures(**how), gestures(train=False, **how), **OPTIONS)
        for how in ({}, {"transform": first})
    )
    assert [len(part) for part in (whole.train, whole.val, whole.test)] == [33, 11, 11]
    assert whole.split_sha256 == half.split_sha256 and whole.name == "DVSGesture"
    assert whole.preprocess.classes[0] == "Hand clapping"
    assert {sample.group for sample in whole.val.samples} < {"01", "02", "03", "04"}
    both = [splits.test[0][0].sum() for splits in (whole, half)]
    assert 0 < both[1] < 0.7 * both[0]
    again = tonic_dataset(gestures(), gestures(train=False), **OPTIONS)
    assert again.test.cache.key == whole.test.cache.key != half.test.cache.key
    assert torch.equal(again.test[0][0], whole.test[0][0])
    with pytest.raises(ConfigError, match="target_transform of DVSGesture is not allowed"):
        tonic_dataset(gestures(target_transform=lambda label: 0), **OPTIONS)
    nameless = tonic_dataset(gestures(transform=lambda events: first(events)), **OPTIONS)
    assert nameless.test.cache is None  # nothing tells one function from another
    assert len(nameless.test) == 0 or nameless.test[0][0].sum() > 0


def test_what_lacks_targets_or_a_sensor_is_refused_and_what_is_in_memory_is_read(files):
    class Held:
        """Events in memory, in no order, one of them twice."""

        def __init__(self):
            self.data = [files.some_events(60, 20, 20, seed=seed % 29) for seed in range(30)]
            self.targets = [("left", "right")[seed % 2] for seed in range(30)]

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.data[index], self.targets[index]

    held = Held()
    with pytest.raises(DataError, match="says no sensor_size"):
        tonic_dataset(held)
    held.sensor_size = (20, 20, 2)
    splits = tonic_dataset(held, events=EventOptions(T=2))
    assert splits.train.classes == ("left", "right") and splits.image_size == 20
    assert isinstance(splits.train.source.read, TonicReader)
    turned = Held()
    turned.data, turned.targets, turned.sensor_size = (
        held.data[::-1],
        held.targets[::-1],
        (20, 20, 2),
    )
    other = tonic_dataset(turned, events=EventOptions(T=2))
    assert other.split_sha256 == splits.split_sha256
    assert torch.equal(other.test[1][0], splits.test[1][0])
    held.targets = held.targets[1:]
    with pytest.raises(DataError, match="29 targets for 30 recordings"):
        tonic_dataset(held)


class InMemory:
    """Events in memory, behind `data` that may tell nothing of them."""

    sensor_size = (20, 20, 2)

    def __init__(self, recordings, targets, data=None):
        self.recordings, self.targets = recordings, targets
        self.data = recordings if data is None else data

    def __len__(self):
        return len(self.recordings)

    def __getitem__(self, index):
        return self.recordings[index], self.targets[index]


def test_a_recording_that_train_and_test_share_is_told_in_memory_too(files, caplog):
    recordings = [files.some_events(60, 20, 20, seed=seed) for seed in range(20)]
    sets = [InMemory(some, [0, 1] * 10) for some in (recordings, recordings[::-1])]
    tonic_dataset(*sets, events=EventOptions(T=2))
    assert "recordings are in two parts, byte for byte" in caplog.text
    with pytest.raises(DataError, match="20 recordings are in two parts"):
        tonic_dataset(*sets, events=EventOptions(T=2), duplicates="refuse")


def test_frames_of_what_tells_nothing_are_not_cached_and_odd_targets_are_told(
    files, tmp_path, caplog
):
    one, other = ([files.some_events(60, 20, 20, seed=s + n) for s in range(20)] for n in (0, 90))
    events = EventOptions(T=2, cache=str(tmp_path))
    made = [
        tonic_dataset(InMemory(some, [0, 1] * 10, range(20)), events=events).train[0][0]
        for some in (one, other)
    ]
    assert not torch.equal(*made)
    named = InMemory(one, [1, 2] * 10)
    named.classes = ["left", "right"]
    splits = tonic_dataset(named, events=EventOptions(T=2))
    assert len(splits.train.classes) == 3
    assert "targets reach 2: they are no numbers, from 0, of ('left', 'right')" in caplog.text
