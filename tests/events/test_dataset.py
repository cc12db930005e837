from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.cache import FrameCache, MemoryCache
from spikeformer_lt.events.dataset import EventFrames, Source
from spikeformer_lt.events.formats import FileReader
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.events.recording import Raw, Sensor, make_events
from spikeformer_lt.events.split import Sample
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


def test_a_file_that_changed_is_read_again(folder, tmp_path, files):
    data = data_set(folder, cache=FrameCache(tmp_path / "cache", "made", {}))
    assert data[0][0].sum() == 500
    files.write_npy(folder / "0.npy", files.some_events(300, seed=9))
    assert data[0][0].sum() == 300


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


def test_a_fault_in_a_worker_is_an_error_with_the_files_name(folder):
    (folder / "3.npy").write_bytes(b"<html>not here</html>")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"3\.npy.*an HTML or XML page"):
            list(eval_loader(data_set(folder), 2, workers=workers))


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


def test_events_after_the_last_window_are_told(caplog):
    events = make_events([1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 5, 100])

    class Reader:
        def __call__(self, sample):
            return Raw(events)

        def fingerprint(self, sample):
            return ""

    options = EventOptions(T=2, by="time_window", window_us=10)
    data = EventFrames("made", [Sample("a")], Source(Reader(), SENSOR), options, 128)
    with caplog.at_level(logging.INFO):
        assert data[0][0].sum() == 2
    assert "1 events after the last window" in caplog.text


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
