from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.__main__ import main
from spikeformer_lt.events.check import Checked, DataReport, check_dataset, check_folder
from spikeformer_lt.events.recording import Sensor
from spikeformer_lt.events.validate import Report


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


@pytest.mark.fault(18)
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


@pytest.mark.fault(26)
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
    with pytest.raises(ConfigError, match="a set of recordings; these are still images"):
        check_dataset("digits", tmp_path)


def recording(key, part="train", label="cat", **fields):
    values = {"given": 100, "kept": 100, "duration_us": 500_000, **fields}
    return Checked(part, label, key, Report(key, **values), extent=(30, 20))


CLEAN = DataReport(
    "a set",
    (
        recording("1"),
        recording("2", kept=300, duration_us=1_500_000),
        recording("3", "test", "dog"),
    ),
    "abc123",
)


def test_a_clean_report_has_a_line_for_each_part_and_class():
    text = CLEAN.text()
    assert CLEAN.clean and "no faults" in text and "split sha256: abc123" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("train", "test"))]
    assert rows == [
        ["train", "cat", "2", "200", "0.500", "1.000", "1.500", "200"],
        ["test", "dog", "1", "100", "0.500", "0.500", "0.500", "200"],
    ]
    assert "largest coordinates: 20 rows, 30 columns" in text


def test_each_fault_is_a_line_with_sum_files_and_the_first():
    faulty = [
        recording(
            str(i), faults={"order": i}, examples={"order": f"event {i}: t_us=3"},
            skipped={"special": 2},
        )
        for i in (4, 5)
    ]  # fmt: skip
    broken = Checked("train", "dog", "x.npy", None, "x.npy is empty")
    empty = recording("e.npy", kept=1, duration_us=0)
    report = DataReport("s", (*CLEAN.recordings, *faulty, broken, empty), "h", (("a", "b"),))
    text = report.text()
    assert not report.clean and "no faults" not in text
    assert "order: 9 events in 2 recordings; first: 4: event 4: t_us=3" in text
    assert "passed over as special: 4 entries" in text
    assert "unreadable: 1\n  x.npy is empty" in text
    assert "nothing to see: 1\n  e.npy: one time" in text
    assert "the same in two parts: 1\n  a = b" in text
    assert "train  dog" in text and "none can be read" in text


def test_each_kind_of_fault_alone_makes_a_report_not_clean():
    for odd in (
        recording("1", faults={"order": 1}, examples={"order": "event 0"}),
        recording("1", kept=0, duration_us=0),
        Checked("train", "cat", "1", None, "broken"),
    ):
        assert not DataReport("s", (odd,), "h").clean
    assert not DataReport("s", (recording("1"),), "h", (("a", "b"),)).clean


def test_long_lists_are_cut_in_the_text_and_whole_in_the_json():
    broken = tuple(Checked("train", "a", f"{i}.npy", None, f"{i}.npy is empty") for i in range(50))
    report = DataReport("s", broken, "h")
    assert report.text().count("is empty") == 20
    told = json.loads(json.dumps(report.as_dict()))
    assert len(told["recordings"]) == 50 and told["recordings"][3]["error"] == "3.npy is empty"
    told = CLEAN.as_dict()
    assert told["clean"] and told["recordings"][0]["rate_hz"] == 200


@pytest.mark.fault(81)
def test_files_that_are_no_recordings_are_named(tmp_path):
    for name in ("a.csv", "b.csv", "c.mat", "README.txt"):
        (tmp_path / name).write_text("0.1 1 2 1\n")
    with pytest.raises(DataError, match=r"its files: 2 of \.csv, 1 of \.mat; unpack archives"):
        check_folder(tmp_path)


@pytest.mark.fault(80)
def test_times_in_another_unit_are_doubted(files, tmp_path):
    events = files.some_events(2000, span_us=500_000)
    files.write_npy(tmp_path / "cat" / "0.npy", events)
    assert check_folder(tmp_path).clean
    for ticks in (1000, 1_000_000):
        report = check_folder(tmp_path, microseconds_per_tick=ticks)
        assert not report.clean
        if ticks == 1000:
            assert "doubtful times: 1\n  cat/0.npy: 2000 events in 499" in report.text()
    events = files.some_events(20_000, span_us=500_000)
    files.write_npy(tmp_path / "cat" / "0.npy", events, ticks=1000)
    report = check_folder(tmp_path)  # milliseconds as microseconds: 500 of them
    assert not report.clean and "use unit=us, ms or s" in report.text()


@pytest.mark.fault(80)
def test_a_data_sets_unit_and_columns_are_its_own_unless_given(files, tmp_path, capsys):
    for folder, people in (("ibmGestureTrain", range(1, 9)), ("ibmGestureTest", (24,))):
        for person in people:
            for label in range(2):
                events = files.some_events(900, seed=10 * person + label)
                path = tmp_path / folder / f"user{person:02d}_led" / f"{label}.npy"
                files.write_npy(path, events, columns=("t_us", "x", "y", "p"))
    command = ["check", str(tmp_path), "--data", "dvs128_recordings"]
    assert main(command) == 1
    assert main([*command, "--columns", "t,x,y,p"]) == 1
    assert "doubtful times: 18" in capsys.readouterr().out
    assert main([*command, "--columns", "t,x,y,p", "--unit", "us"]) == 0
    assert main(["check", str(tmp_path), "--columns", "x,y,p"]) == 2
    assert "columns='x,y,p' is not allowed" in capsys.readouterr().err


@pytest.fixture
def recordings(files, tmp_path):
    for i in range(3):
        files.write_npy(tmp_path / "cat" / f"{i}.npy", files.some_events(50 + i, seed=i))
    return tmp_path


def test_a_clean_folder_is_0_a_fault_1_and_wrong_input_2(recordings, capsys):
    assert main(["check", str(recordings), "--sensor", "128x128"]) == 0
    assert "no faults" in capsys.readouterr().out
    assert main(["check", str(recordings), "--sensor", "64x64"]) == 1
    out = capsys.readouterr().out
    assert "coordinates:" in out and "must be in [0, 64)" in out
    for wrong in (
        [str(recordings / "gone")],
        [str(recordings), "--sensor", "0"],
        [str(recordings), "--data", "x"],
        [str(recordings), "--data", "digits"],
        [str(recordings), "--data", "moving_digits", "--sensor", "4x4"],
        [str(recordings), "--image-size", "8"],
        ["x" * 5000],
    ):
        assert main(["check", *wrong]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
    with pytest.raises(DataError):
        main(["check", str(recordings / "gone"), "--debug"])
    with pytest.raises(SystemExit, match="2"):
        main(["check"])


def test_names_that_are_no_text_are_told_escaped(recordings, capsys):
    os.rename(recordings / "cat", os.fsencode(recordings) + b"/\xff")
    assert main(["check", str(recordings)]) == 0
    assert "\\udcff" in capsys.readouterr().out.encode("utf-8").decode()


def test_json_columns_and_unit_are_options(recordings, capsys):
    rows = np.array([[0, 1, 2, 1], [7, 3, 4, 0]], np.int32)
    np.save(recordings / "cat" / "9.npy", rows)
    for i in range(3):
        (recordings / "cat" / f"{i}.npy").unlink()
    assert (
        main(["check", str(recordings), "--columns", "t_us,x,y,p", "--unit", "ms", "--json"]) == 0
    )
    (told,) = json.loads(capsys.readouterr().out)["recordings"]
    assert (told["duration_us"], told["kept"], told["on"], told["class"]) == (7000, 2, 1, "cat")


def test_the_callers_logging_stays_as_it_was(recordings):
    log = logging.getLogger("spikeformer_lt")
    level = log.level
    main(["check", str(recordings)])
    main(["check", str(recordings / "gone")])
    assert log.level == level


@pytest.mark.recipe
def test_it_runs_as_a_user_types_it(forks, recordings):
    (recordings / "cat" / "0.npy").write_bytes(b"")
    done = forks.start("-m", "spikeformer_lt.events", "check", recordings)
    out, err = done.communicate()
    assert (done.returncode, err) == (1, "")
    assert "unreadable: 1" in out and "0.npy' is empty" in out
