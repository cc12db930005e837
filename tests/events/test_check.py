from __future__ import annotations

import numpy as np
import pytest

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.check import check_dataset, check_folder
from spikeformer_lt.events.recording import Sensor


@pytest.fixture
def folder(files, tmp_path):
    top = tmp_path / "set"
    seed = 0
    for part, count in (("Train", 3), ("Test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                seed += 1
                events = files.some_events(900 + seed, seed=seed)
                files.write_npy(top / part / name / f"{i}.npy", events)
    return top


def test_a_clean_folder_is_counted_by_part_and_class(folder):
    report = check_folder(folder, Sensor(128, 128))
    assert report.clean and len(report.recordings) == 10
    counts = [(c.part, c.label) for c in report.recordings]
    assert counts.count(("train", "cat")) == 3 and counts.count(("test", "dog")) == 2
    assert all(c.extent == (128, 128) for c in report.recordings)


def test_every_fault_is_found_none_stops_the_reading(folder, files):
    rows = np.array([[1, 1, 1, 5], [128, 1, 1, 6], [1, 1, 3, 7], [1, 1, 0, 2]], np.int64)
    np.save(folder / "Train/cat/0.npy", rows)
    (folder / "Train/cat/1.npy").write_bytes(b"<html>gone</html>")
    np.save(folder / "Train/dog/0.npy", rows[:1])
    np.save(folder / "Train/dog/1.npy", rows[:0])
    (folder / "Test/dog/0.npy").write_bytes((folder / "Train/cat/2.npy").read_bytes())
    report = check_folder(folder, Sensor(128, 128))
    assert not report.clean and len(report.recordings) == 10
    by_key = {c.key: c for c in report.recordings}
    # Out of range by one, polarity 3 counted as on, and one late: told apart.
    assert by_key["Train/cat/0.npy"].report.faults == {"coordinates": 1, "polarity": 1, "order": 1}
    assert "an HTML or XML page" in by_key["Train/cat/1.npy"].error
    assert by_key["Train/cat/1.npy"].report is None
    assert by_key["Train/dog/0.npy"].report.empty == "one time"
    assert by_key["Train/dog/1.npy"].report.empty == "no event"
    assert report.shared == (("Train/cat/2.npy", "Test/dog/0.npy"),)


def test_persons_folders_have_the_class_in_the_files_name(files, tmp_path):
    for person in ("user01_led", "user02_lab"):
        for label in (0, 1):
            files.write_npy(
                tmp_path / "ibmGestureTest" / person / f"{label}.npy",
                files.some_events(50 + label, seed=int(person[5])), ticks=1000,
            )  # fmt: skip
    report = check_folder(tmp_path, microseconds_per_tick=1000)
    assert {(c.part, c.label) for c in report.recordings} == {("test", "0"), ("test", "1")}


@pytest.mark.parametrize(
    ("above", "part"),
    [
        ("train", "train"), ("Test", "test"), ("ibmGestureTest", "test"), ("pips_test", "test"),
        ("latest", "train"), ("contest", "train"), ("val", "val"), ("Validation", "val"),
        ("my-valid", "val"), ("interval", "train"), ("values", "train"), ("carnival", "train"),
    ],
)  # fmt: skip
def test_a_part_is_a_word_in_a_folders_name(files, tmp_path, above, part):
    files.write_npy(tmp_path / above / "a" / "1.npy", files.some_events(10))
    assert check_folder(tmp_path).recordings[0].part == part


def test_all_forms_in_one_folder_are_read(files, tmp_path):
    events = files.some_events(200, span_us=100_000)
    for name, form in (
        ("a.npy", "npy"),
        ("a.bin", "bin"),
        ("a.aedat", "aedat2"),
        ("b.aedat", "aedat31"),
    ):
        getattr(files, f"write_{form}")(tmp_path / "x" / name, events)
    report = check_folder(tmp_path)
    assert [c.report.kept for c in report.recordings] == [200] * 4


def test_a_folder_without_recordings_or_none_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no recording"):
        check_folder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        check_folder(tmp_path / "gone")


def test_a_data_set_is_reported_in_the_parts_that_training_takes(files, tmp_path):
    seed = 0
    for part, count in (("train", 6), ("test", 2)):
        for label in ("cl", "he", "di", "sp"):
            for i in range(count):
                seed += 1
                events = files.some_events(60 + seed, 35, 35, 20_000, seed)
                path = tmp_path / f"pips_{part}" / label / f"{i}.npy"
                files.write_npy(path, events, columns=("t_us", "x", "y", "p"))
    rows = np.array([[5, 99, 1, 1], [6, 1, 1, 1]], np.int64)
    np.save(tmp_path / "pips_train" / "cl" / "0.npy", rows)
    report = check_dataset("poker_dvs", tmp_path)
    from spikeformer_lt.events.frame import EventOptions
    from spikeformer_lt.registry import create_dataset

    options = EventOptions(incomplete="report")
    splits = create_dataset("poker_dvs", root=str(tmp_path), events=options)
    assert report.split_sha256 == splits.split_sha256
    assert len(report.recordings) == 32 and not report.clean
    parts = [c.part for c in report.recordings]
    assert [parts.count(p) for p in ("train", "val", "test")] == [
        len(splits.train),
        len(splits.val),
        8,
    ]
    labels = [c.label for c in report.recordings if c.part == "test"]
    assert labels == ["cl", "cl", "he", "he", "di", "di", "sp", "sp"]
    (faulty,) = (c for c in report.recordings if c.report.faults)
    assert faulty.key == "pips_train/cl/0.npy" and faulty.report.faults == {"coordinates": 1}
    with pytest.raises(ConfigError, match="unknown data set"):
        check_dataset("poker", tmp_path)
    with pytest.raises(ConfigError, match="has no keyword 'events'"):
        check_dataset("digits", tmp_path)
