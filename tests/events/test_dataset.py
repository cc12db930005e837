from __future__ import annotations

import logging
import os
import shutil
import warnings
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.cache import FrameCache, MemoryCache
from spikeformer_lt.events.dataset import EventFrames, Source, event_splits
from spikeformer_lt.events.formats import FileReader
from spikeformer_lt.events.frame import EventDataOptions, EventOptions
from spikeformer_lt.events.recording import Raw, Sensor, make_events
from spikeformer_lt.events.split import Sample, Split, hold_out, limited
from spikeformer_lt.images.loader import eval_loader

SENSOR = Sensor(128, 128)


@pytest.fixture
def folder(files, tmp_path):
    for i in range(6):
        files.write_npy(tmp_path / f"{i}.npy", files.some_events(500 + i, seed=i))
    return tmp_path


def data_set(folder, options=None, size=128, cache=None):
    samples = [Sample(f"{i}.npy", label=i % 3) for i in range(6)]
    source = Source(FileReader(folder, "npy"), SENSOR, root=folder)
    return EventFrames("made", samples, source, options or EventOptions(T=4), size, cache=cache)


def test_an_item_is_frames_of_floats_and_a_label(folder):
    data = data_set(folder)
    frames, label = data[4]
    assert frames.shape == (4, 2, 128, 128) and frames.dtype == torch.float32
    assert frames.sum() == 504 and label == 1 and isinstance(label, int)
    assert data.labels.tolist() == [0, 1, 2, 0, 1, 2] and data.labels.dtype == torch.int64
    assert len(data) == 6 and data.classes == ("0", "1", "2")
    assert torch.equal(data[-2][0], frames)
    for index in (6, -7):
        with pytest.raises(IndexError, match="made has 6 recordings"):
            data[index]


def test_any_size_holds_every_event(folder):
    for size in (16, 48, 64, 128, 160):
        frames, _ = data_set(folder, size=size)[0]
        assert frames.shape == (4, 2, size, size) and frames.sum() == 500
    binary = data_set(folder, EventOptions(T=4, values="binary"), size=16)[0][0]
    assert set(binary.unique().tolist()) == {0.0, 1.0}


def test_a_second_look_comes_from_the_cache_and_is_the_same(folder, tmp_path):
    for cache in (MemoryCache(), FrameCache(tmp_path / "cache", "made", {})):
        data = data_set(folder, cache=cache)
        first = [data[i][0] for i in range(6)]
        calls = []
        object.__setattr__(data.source, "read", Counting(data.source.read, calls))
        assert all(torch.equal(data[i][0], first[i]) for i in range(6))
        assert calls == []
        assert data.counts(0).dtype == np.uint8


@dataclass(frozen=True)
class Counting:
    """A reader that notes what it reads."""

    inner: FileReader
    calls: list[str] = field(default_factory=list)

    def __call__(self, sample):
        self.calls.append(sample.path)
        return self.inner(sample)

    def fingerprint(self, sample):
        return self.inner.fingerprint(sample)


@pytest.mark.fault(30)
def test_a_file_that_changed_is_read_again(folder, tmp_path, files):
    data = data_set(folder, cache=FrameCache(tmp_path / "cache", "made", {}))
    assert data[0][0].sum() == 500
    files.write_npy(folder / "0.npy", files.some_events(300, seed=9))
    assert data[0][0].sum() == 300


@pytest.mark.fault(31)
def test_a_damaged_cache_entry_is_made_again_and_a_full_disk_costs_no_recording(
    folder, tmp_path, monkeypatch, caplog
):
    cache = FrameCache(tmp_path / "cache", "made", {})
    data = data_set(folder, cache=cache)
    first = data[0][0]
    (entry,) = cache.folder.glob("??/*.frames")
    whole = entry.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:40], b""):
        entry.write_bytes(damaged)
        assert torch.equal(data[0][0], first)
        assert entry.read_bytes() == whole

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        assert [data[i][0].sum() for i in range(6)] == [500, 501, 502, 503, 504, 505]
    assert "No space left" in caplog.text
    assert list(cache.folder.glob("??/*.frames")) == [entry]


@pytest.mark.fault(19)
def test_a_bad_event_is_refused_dropped_or_counted_and_always_told(folder, files, caplog):
    events = files.some_events(100)
    rows = np.stack([events[n].astype(np.int64) for n in events.dtype.names], 1)
    rows[50, 0] = 128
    np.save(folder / "0.npy", rows)
    with pytest.raises(DataError, match=r"0\.npy.*event 50: x=128"):
        data_set(folder)[0]
    for action in ("drop", "count"):
        caplog.clear()
        data = data_set(folder, EventOptions(T=4, bad_events=action))
        with caplog.at_level(logging.WARNING):
            assert data[0][0].sum() == 99
        assert "coordinates 1 (event 50: x=128" in caplog.text and "0.npy" in caplog.text
    assert data.events(0)[1].faults == {"coordinates": 1}


@pytest.mark.parametrize("rows", [[], [(1, 2, 1, 5)], [(1, 2, 1, 5)] * 3])
@pytest.mark.fault(18)
def test_a_recording_with_nothing_to_see_is_refused_or_defined(folder, rows):
    np.save(folder / "0.npy", np.array(rows, np.int64).reshape(-1, 4))
    with pytest.raises(DataError, match=r"0\.npy.*use empty=zero or empty=skip"):
        data_set(folder)[0]
    frames, _ = data_set(folder, EventOptions(T=4, empty="zero"))[0]
    assert frames.shape == (4, 2, 128, 128) and frames.dtype == torch.float32
    assert frames.sum() == len(rows)


def test_loaders_give_the_counts_unchanged_whatever_the_workers(folder):
    data = data_set(folder)
    for workers in (0, 2):
        batches = list(eval_loader(data, 4, workers=workers))
        frames = torch.cat([batch[0] for batch in batches])
        assert torch.equal(frames, torch.stack([data[i][0] for i in range(6)]))
        assert torch.cat([batch[1] for batch in batches]).tolist() == data.labels.tolist()


@pytest.mark.fault(24)
def test_a_fault_in_a_worker_is_an_error_with_the_files_name(folder):
    (folder / "3.npy").write_bytes(b"<html>not here</html>")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"3\.npy.*an HTML or XML page"):
            list(eval_loader(data_set(folder), 2, workers=workers))


@pytest.mark.fault(24)
def test_a_panic_in_a_worker_does_not_end_the_run_silently(folder):
    class Panic(BaseException):
        pass

    class Reader:
        def __call__(self, sample):
            raise Panic("range end index")

        def fingerprint(self, sample):
            return ""

    data = EventFrames("made", [Sample("a")], Source(Reader(), SENSOR), EventOptions(T=4), 128)
    with pytest.raises(DataError, match="made: cannot read sample 0: Panic"):
        list(eval_loader(data, 1, workers=1))


def test_events_after_the_last_window_are_told_once(caplog):
    events = make_events([1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 5, 100])

    class Reader:
        def __call__(self, sample):
            return Raw(events)

        def fingerprint(self, sample):
            return ""

    options = EventOptions(T=2, by="time_window", window_us=10)
    data = EventFrames("made", [Sample("a"), Sample("b")], Source(Reader(), SENSOR), options, 128)
    with caplog.at_level(logging.INFO):
        assert data[0][0].sum() == data[1][0].sum() == 2
    (line,) = caplog.messages
    assert "'a': 1 of 3 events after the last of 2 windows;" in line


@pytest.mark.data
def test_real_recordings_give_tonics_frames(shared, tmp_path):
    """200 of the DVS128 recordings; tonic lacks the events after its last border."""
    import tarfile

    archive = shared / "data" / "dvs128_objects.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no file {archive}")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tonic.transforms import ToFrame
    from spikeformer_lt.events.split import scan

    paths = scan(tmp_path, (".npy",))[:200]
    assert len(paths) == 200
    reader = FileReader(tmp_path, "npy", microseconds_per_tick=1000)
    source = Source(reader, SENSOR, root=tmp_path)
    kind = [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")]
    for way in ("n_event_bins", "n_time_bins"):
        samples = [Sample(path) for path in paths]
        data = EventFrames("real", samples, source, EventOptions(T=16, by=way), 128)
        theirs = ToFrame(sensor_size=(128, 128, 2), **{way: 16})
        for i in range(0, 200, 1 if way == "n_event_bins" else 4):
            events, report = data.events(i)
            assert not report.faults
            made = np.empty(len(events), kind)
            for name, ours in (("x", "x"), ("y", "y"), ("t", "t_us"), ("p", "p")):
                made[name] = events[ours]
            counts, other = data.counts(i).astype(int), theirs(made).astype(int)
            assert np.array_equal(counts[:-1], other[:-1]) and counts.sum() == len(events)
            assert ((counts - other)[-1] >= 0).all()


@pytest.fixture
def root(files, tmp_path):
    for i in range(40):
        files.write_npy(
            tmp_path / "set" / f"{i:02d}.npy", files.some_events(100 + i, 20, 32, seed=i)
        )
    return tmp_path / "set"


def split():
    samples = [Sample(f"{i:02d}.npy", label=i % 2) for i in range(40)]
    train, val = hold_out("made", samples[:30], 0.2)
    return Split("made", ("a", "b"), tuple(train), tuple(val), tuple(samples[30:]))


def made(root, events=None, augment="none", **more):
    source = Source(FileReader(root, "npy"), Sensor(20, 32), root=root)
    options = EventDataOptions(events=events or EventOptions(T=4, cache="none"), **more)
    return event_splits(split(), source, options, augment)


def parts(splits):
    return splits.train, splits.val, splits.test


def test_the_parts_are_a_whole_splits_of_events(root):
    splits = made(root, augment="tet_dvs")
    assert (splits.name, splits.kind, splits.augment) == ("made", "events", "tet_dvs")
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (2, 2, 32)
    assert (splits.mean, splits.std) == ((0.0, 0.0), (1.0, 1.0))
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [24, 6, 10]
    assert splits.split_sha256 == split().sha256
    frames, label = splits.test[0]
    assert frames.shape == (4, 2, 32, 32) and frames.dtype == torch.float32 and label == 0
    assert splits.train.name == "made train" and splits.train.classes == ("a", "b")


def test_a_limited_run_is_a_part_of_the_full_one(root):
    full = made(root)
    part = made(root, limit_train=8, limit_test=4)
    assert [len(p) for p in parts(part)] == [8, 2, 4]
    for small, whole in zip(parts(part), parts(full), strict=True):
        assert set(small.samples) <= set(whole.samples)
    assert torch.bincount(part.train.labels).tolist() == [4, 4]
    assert part.split_sha256 != full.split_sha256
    for wrong in ({"limit_train": 0}, {"limit_train": 25}, {"limit_test": 11}):
        with pytest.raises(ConfigError, match="is not allowed"):
            made(root, **wrong)


def test_another_size_is_another_frame(root):
    assert made(root, image_size=48).train[0][0].shape == (4, 2, 48, 48)
    for size in (0, 1025):
        with pytest.raises(ConfigError, match=f"image_size={size}"):
            made(root, image_size=size)


def test_the_cache_is_in_the_root_in_memory_where_asked_or_nowhere(root, tmp_path):
    auto = made(root, EventOptions(T=4)).train.cache
    assert isinstance(auto, FrameCache) and auto.folder.parent == root / ".frames"
    named = made(root, EventOptions(T=4, cache=str(tmp_path / "c"))).train.cache
    assert isinstance(named, FrameCache) and named.folder.parent == tmp_path / "c"
    assert made(root).train.cache is None
    # Two folders with files of the same names, sizes and dates do not share what a user names.
    other = shutil.copytree(root, tmp_path / "other")
    again, apart = (
        made(home, EventOptions(T=4, cache=str(tmp_path / "c"))).train.cache
        for home in (root, other)
    )
    assert again.key == named.key != apart.key
    source = Source(FileReader(root, "npy"), Sensor(20, 32))
    in_memory = event_splits(split(), source, EventDataOptions(events=EventOptions(T=4)))
    assert isinstance(in_memory.train.cache, MemoryCache)


CHANGES = [
    {"T": 5}, {"by": "n_time_bins"}, {"by": "time_window", "window_us": 9}, {"values": "binary"},
    {"bad_events": "drop"}, {"empty": "zero"}, {"unit": "s"}, {"columns": "x,y,t,p"},
]  # fmt: skip


@pytest.mark.fault(30)
def test_every_parameter_is_in_the_caches_key(root):
    def key(image_size=None, reader=None, sensor=None, name="made", **options):
        reader = reader or FileReader(root, "npy")
        source = Source(reader, sensor or Sensor(20, 32), root=root)
        whole = split()
        renamed = Split(name, whole.classes, whole.train, whole.val, whole.test)
        given = EventOptions(**{"T": 4, **options})
        options = EventDataOptions(events=given, image_size=image_size)
        return event_splits(renamed, source, options).train.cache.key

    keys = [key(), *(key(**change) for change in CHANGES), key(image_size=48), key(name="else")]
    keys.append(key(sensor=Sensor(21, 32)))
    keys.append(key(reader=FileReader(root, "npy", microseconds_per_tick=1000)))
    keys.append(key(reader=FileReader(root, "npy", ("t_us", "x", "y", "p"))))
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    # Where the set lies, and which recordings are in which part, is no part of what a frame is.
    assert key(reader=FileReader(root / "..", "npy")) == keys[0]


def test_a_unit_of_recordings_that_are_made_is_refused():
    class Made:
        """Reads nothing."""

    options = EventDataOptions(events=EventOptions(T=4, unit="ms"))
    with pytest.raises(ConfigError, match="recordings of made are not read from files"):
        event_splits(split(), Source(Made(), Sensor(20, 32)), options)


@pytest.mark.fault(34)
def test_a_split_file_is_written_then_kept_to(root, tmp_path):
    options = EventOptions(T=4, cache="none", split_file=str(tmp_path / "split.json"))
    first = made(root, options)
    assert (tmp_path / "split.json").is_file()
    assert made(root, options).split_sha256 == first.split_sha256
    text = (tmp_path / "split.json").read_text()
    (tmp_path / "split.json").write_text(text.replace('["val"', '["train"', 1))
    with pytest.raises(DataError, match=r"split\.json.* was edited"):
        made(root, options)


@pytest.mark.fault(34)
def test_the_splits_hash_is_told(root, caplog):
    with caplog.at_level(logging.INFO):
        found = made(root)
    assert f"split sha256 {found.split_sha256}" in caplog.text


def test_a_recording_in_train_and_test_is_told_or_refused(root, caplog):
    (root / "35.npy").write_bytes((root / f"{split().train[0].path}").read_bytes())
    with caplog.at_level(logging.WARNING):
        made(root)
    assert "1 recordings are in two parts" in caplog.text and "35.npy" in caplog.text
    with pytest.raises(DataError, match=r"35\.npy; to accept them use duplicates=report"):
        made(root, duplicates="refuse")
    with pytest.raises(ConfigError, match="duplicates='drop'"):
        made(root, duplicates="drop")


def test_a_small_split_says_which_classes_it_leaves_out(caplog):
    samples = [Sample(f"{i:02d}.npy", label=i % 5) for i in range(40)]
    whole = Split("made", tuple("abcde"), *map(tuple, (samples[:20], samples[20:30], samples[30:])))
    with caplog.at_level(logging.WARNING):
        limited(whole, 10, None)
        assert not caplog.text
        limited(whole, 2, None)
    assert "limit_train=2 leaves nothing to train on of 3 classes" in caplog.text
    assert "limit_train=2 leaves nothing to validate of 4 classes" in caplog.text


def test_a_person_in_train_and_test_is_told_or_refused(root, caplog, monkeypatch):
    whole = split()
    people = {part: tuple(replace(s, group=f"{part if i else 'ann'}") for i, s in enumerate(own))
              for part in ("train", "val", "test") if (own := getattr(whole, part))}  # fmt: skip
    monkeypatch.setitem(globals(), "split", lambda: replace(whole, **people))
    with caplog.at_level(logging.WARNING):
        made(root)
    assert "1 persons are in two parts; the first: ann" in caplog.text
    with pytest.raises(DataError, match="first: ann; to accept them use duplicates=report"):
        made(root, duplicates="refuse")


@pytest.mark.fault(18)
def test_empty_recordings_are_skipped_told_and_out_of_the_hash(root, caplog):
    for name in ("01.npy", "35.npy"):
        np.save(root / name, np.zeros((0, 4), np.int32))
    full = made(root)
    with caplog.at_level(logging.WARNING):
        found = made(root, EventOptions(T=4, cache="none", empty="skip"))
    assert sum(len(p) for p in parts(found)) == 38
    assert "1 empty recordings skipped" in caplog.text
    assert found.split_sha256 != full.split_sha256
    assert all(p[i][0].sum() > 0 for p in (found.val, found.test) for i in range(len(p)))


def test_shuffled_time_keeps_the_frames_of_a_recording_and_nothing_else_of_it(folder):
    plain, data = (
        data_set(folder, EventOptions(T=6, shuffle_time=shuffled)) for shuffled in (False, True)
    )
    orders = set()
    for i in range(6):
        frames, shuffled = plain[i][0], data[i][0]
        places = [next(t for t in range(6) if torch.equal(one, frames[t])) for one in shuffled]
        assert sorted(places) == list(range(6)) and torch.equal(data[i][0], shuffled)
        orders.add(tuple(places))
    assert len(orders) > 3  # each recording has an order of its own
