from __future__ import annotations

import json

from spikeformer_lt.events.check import Checked, DataReport
from spikeformer_lt.events.validate import Report


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
