from __future__ import annotations

from spikeformer_lt.events.validate import Report


def test_a_line_tells_each_fault_with_its_first_event_and_what_was_left_out():
    report = Report(
        "a.npy", given=10, kept=7, faults={"coordinates": 3, "order": 2},
        examples={"coordinates": "event 4: x=-1", "order": "event 5: t_us=3"},
        duration_us=2_000_000,
    )  # fmt: skip
    assert report.line() == (
        "coordinates 3 (event 4: x=-1); order 2 (event 5: t_us=3); 3 of 10 events left out"
    )
    assert report.dropped == 3
    assert report.rate_hz == 3.5
    assert report.empty == ""


def test_nothing_is_divided_by_a_duration_of_zero():
    assert Report("a.npy", given=1, kept=1).rate_hz == 0
    assert Report("a.npy", given=1, kept=1).empty == "one time"
    assert Report("a.npy", given=0, kept=0).empty == "no event"
    assert Report("a.npy", given=0, kept=0).line() == "no faults"
