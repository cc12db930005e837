from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.cache import FrameCache, MemoryCache
from spikeformer_lt.events.dataset import Source, event_splits
from spikeformer_lt.events.formats import FileReader
from spikeformer_lt.events.frame import EventDataOptions, EventOptions
from spikeformer_lt.events.recording import Sensor
from spikeformer_lt.events.split import Sample, Split, hold_out


@pytest.fixture
def folder(files, tmp_path):
    for i in range(40):
        files.write_npy(
            tmp_path / "set" / f"{i:02d}.npy", files.some_events(100 + i, 20, 32, seed=i)
        )
    return tmp_path / "set"


def split():
    samples = [Sample(f"{i:02d}.npy", label=i % 2) for i in range(40)]
    train, val = hold_out("made", samples[:30], 0.2)
    return Split("made", ("a", "b"), tuple(train), tuple(val), tuple(samples[30:]))


def made(folder, events=None, augment="none", **more):
    source = Source(FileReader(folder, "npy"), Sensor(20, 32), root=folder)
    options = EventDataOptions(events=events or EventOptions(T=4, cache="none"), **more)
    return event_splits(split(), source, options, augment)


def parts(splits):
    return splits.train, splits.val, splits.test


def test_the_parts_are_a_whole_splits_of_events(folder):
    splits = made(folder, augment="tet_dvs")
    assert (splits.name, splits.kind, splits.augment) == ("made", "events", "tet_dvs")
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (2, 2, 32)
    assert (splits.mean, splits.std) == ((0.0, 0.0), (1.0, 1.0))
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [24, 6, 10]
    assert splits.split_sha256 == split().sha256
    frames, label = splits.test[0]
    assert frames.shape == (4, 2, 32, 32) and frames.dtype == torch.float32 and label == 0
    assert splits.train.name == "made train" and splits.train.classes == ("a", "b")


def test_a_limited_run_is_a_part_of_the_full_one(folder):
    full = made(folder)
    part = made(folder, limit_train=8, limit_test=4)
    assert [len(p) for p in parts(part)] == [8, 2, 4]
    for small, whole in zip(parts(part), parts(full), strict=True):
        assert set(small.samples) <= set(whole.samples)
    assert torch.bincount(part.train.labels).tolist() == [4, 4]
    assert part.split_sha256 != full.split_sha256
    for wrong in ({"limit_train": 0}, {"limit_train": 25}, {"limit_test": 11}):
        with pytest.raises(ConfigError, match="is not allowed"):
            made(folder, **wrong)


def test_another_size_is_another_frame(folder):
    assert made(folder, image_size=48).train[0][0].shape == (4, 2, 48, 48)
    for size in (0, 1025):
        with pytest.raises(ConfigError, match=f"image_size={size}"):
            made(folder, image_size=size)


def test_the_cache_is_in_the_root_in_memory_where_asked_or_nowhere(folder, tmp_path):
    auto = made(folder, EventOptions(T=4)).train.cache
    assert isinstance(auto, FrameCache) and auto.folder.parent == folder / ".frames"
    named = made(folder, EventOptions(T=4, cache=str(tmp_path / "c"))).train.cache
    assert isinstance(named, FrameCache) and named.folder.parent == tmp_path / "c"
    assert made(folder).train.cache is None
    source = Source(FileReader(folder, "npy"), Sensor(20, 32))
    in_memory = event_splits(split(), source, EventDataOptions(events=EventOptions(T=4)))
    assert isinstance(in_memory.train.cache, MemoryCache)


CHANGES = [
    {"T": 5}, {"by": "n_time_bins"}, {"by": "time_window", "window_us": 9}, {"values": "binary"},
    {"bad_events": "drop"}, {"empty": "zero"},
]  # fmt: skip


def test_every_parameter_is_in_the_caches_key(folder):
    def key(image_size=None, reader=None, sensor=None, name="made", **options):
        reader = reader or FileReader(folder, "npy")
        source = Source(reader, sensor or Sensor(20, 32), root=folder)
        whole = split()
        renamed = Split(name, whole.classes, whole.train, whole.val, whole.test)
        given = EventOptions(**{"T": 4, **options})
        options = EventDataOptions(events=given, image_size=image_size)
        return event_splits(renamed, source, options).train.cache.key

    keys = [key(), *(key(**change) for change in CHANGES), key(image_size=48), key(name="else")]
    keys.append(key(sensor=Sensor(21, 32)))
    keys.append(key(reader=FileReader(folder, "npy", microseconds_per_tick=1000)))
    keys.append(key(reader=FileReader(folder, "npy", ("t_us", "x", "y", "p"))))
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    # Where the set lies, and which recordings are in which part, is no part of what a frame is.
    assert key(reader=FileReader(folder / "..", "npy")) == keys[0]


def test_a_split_file_is_written_then_kept_to(folder, tmp_path):
    options = EventOptions(T=4, cache="none", split_file=str(tmp_path / "split.json"))
    first = made(folder, options)
    assert (tmp_path / "split.json").is_file()
    assert made(folder, options).split_sha256 == first.split_sha256
    text = (tmp_path / "split.json").read_text()
    (tmp_path / "split.json").write_text(text.replace('["val"', '["train"', 1))
    with pytest.raises(DataError, match=r"split\.json.* was edited"):
        made(folder, options)


def test_the_splits_hash_is_told(folder, caplog):
    with caplog.at_level(logging.INFO):
        found = made(folder)
    assert f"split sha256 {found.split_sha256}" in caplog.text


def test_a_recording_in_train_and_test_is_told_or_refused(folder, caplog):
    (folder / "35.npy").write_bytes((folder / f"{split().train[0].path}").read_bytes())
    with caplog.at_level(logging.WARNING):
        made(folder)
    assert "1 recordings are in two parts" in caplog.text and "35.npy" in caplog.text
    with pytest.raises(DataError, match=r"35\.npy; to accept them use duplicates=report"):
        made(folder, duplicates="refuse")
    with pytest.raises(ConfigError, match="duplicates='drop'"):
        made(folder, duplicates="drop")


def test_empty_recordings_are_skipped_told_and_out_of_the_hash(folder, caplog):
    for name in ("01.npy", "35.npy"):
        np.save(folder / name, np.zeros((0, 4), np.int32))
    full = made(folder)
    with caplog.at_level(logging.WARNING):
        found = made(folder, EventOptions(T=4, cache="none", empty="skip"))
    assert sum(len(p) for p in parts(found)) == 38
    assert "1 empty recordings skipped" in caplog.text
    assert found.split_sha256 != full.split_sha256
    assert all(p[i][0].sum() > 0 for p in (found.val, found.test) for i in range(len(p)))
