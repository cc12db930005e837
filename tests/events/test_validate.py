from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.recording import EVENTS, Sensor
from spikeformer_lt.events.validate import ACTIONS, TIME_LIMIT_US, Policy, Report, validate

SENSOR = Sensor(height=34, width=40)


def raw(x=(1, 2, 3), y=(1, 2, 3), p=(0, 1, 0), t=(10, 20, 30)):
    """Columns in the widest types that hold the values."""
    return {"x": np.array(x), "y": np.array(y), "p": np.array(p), "t_us": np.array(t)}


def test_a_clean_recording_passes_unchanged_with_a_full_report(sample_events):
    events, report = validate(sample_events, Sensor(128, 128), source="clean.npy")
    assert events.dtype == EVENTS and np.array_equal(events, sample_events)
    assert (report.source, report.given, report.kept, report.dropped) == (
        "clean.npy",
        1000,
        1000,
        0,
    )
    assert report.faults == {} and report.line() == "no faults" and report.empty == ""
    assert report.on == sample_events["p"].sum()
    assert report.duration_us == sample_events["t_us"][-1] - sample_events["t_us"][0]
    assert report.rate_hz == pytest.approx(1000e6 / report.duration_us)


# fault: (columns, the event that is named, field, value) of rows 19 to 23 of the fault table
FAULTS = {
    "coordinates": [
        (raw(x=(1, -1, 3)), "event 1: x=-1, must be in [0, 40)"),
        (raw(x=(1, 2, 40)), "event 2: x=40, must be in [0, 40)"),
        (raw(y=(34, 0, 0)), "event 0: y=34, must be in [0, 34)"),
        (raw(x=np.array([1, 2**40, 3])), f"event 1: x={2**40}"),
        (raw(x=np.array([1.0, -1.0, 3.0])), "event 1: x=-1"),
    ],
    "polarity": [
        (raw(p=(0, -1, 1)), "event 1: p=-1, must be 0 or 1"),
        (raw(p=(0, 1, 2)), "event 2: p=2, must be 0 or 1"),
        (raw(p=np.array([3, 0, 1], np.uint8)), "event 0: p=3, must be 0 or 1"),
    ],
    "time": [
        (raw(t=(-5, 1, 2)), "event 0: t_us=-5"),
        (raw(t=(0, 1, 2**62)), f"event 2: t_us={2**62}"),
        (raw(t=np.array([0, 1, 2**64 - 1], np.uint64)), f"event 2: t_us={2**64 - 1}"),
        (raw(t=np.array([0.0, 1e300, 2.0])), "event 1: t_us="),
    ],
    "fractional": [
        (raw(x=(1.0, 2.5, 3.0)), "event 1: x=2.5, must be a whole number"),
        (raw(t=(1.0, 2.0, 3.25)), "event 2: t_us=3.25, must be a whole number"),
    ],
    "nonfinite": [
        (raw(x=(1.0, np.nan, 3.0)), "event 1: x=nan, must be a finite number"),
        (raw(t=(1.0, 2.0, np.inf)), "event 2: t_us=inf, must be a finite number"),
    ],
    "span": [
        (raw(t=(0, 1, 3_600_000_001)), "event 2: t_us=3600000001, must be within 3600000000 us")
    ],
    "order": [(raw(t=(5, 9, 7)), "event 2: t_us=7, must be no earlier")],
}
CASES = [(fault, columns, words) for fault, rows in FAULTS.items() for columns, words in rows]


def test_every_fault_of_the_policy_is_tested_here():
    assert set(FAULTS) == set(ACTIONS)


@pytest.mark.parametrize(("fault", "columns", "words"), CASES)
def test_a_refused_fault_names_file_event_value_and_limit(fault, columns, words):
    with pytest.raises(DataError) as caught:
        validate(columns, SENSOR, Policy(**{fault: "error"}), "a file")
    message = str(caught.value)
    assert message.startswith("a file: ") and words in message
    assert f"{fault}=" in message and "1 of 3 events" in message


@pytest.mark.parametrize(
    ("fault", "columns", "words"), [case for case in CASES if "drop" in ACTIONS[case[0]]]
)
def test_a_dropped_fault_costs_that_event_only_and_is_told(fault, columns, words):
    events, report = validate(columns, SENSOR, Policy(**{fault: "drop"}), "a file")
    assert report.faults == {fault: 1} and words in report.line()
    assert (report.given, report.kept, report.dropped) == (3, 2, 1) and len(events) == 2


def test_counted_faults_keep_the_events_in_the_stated_way():
    events, report = validate(raw(x=(1.0, 2.9, 3.0)), SENSOR, Policy(fractional="count"))
    assert events["x"].tolist() == [1, 2, 3] and report.faults == {"fractional": 1}
    events, report = validate(raw(p=(-1, 3, 0)), SENSOR, Policy(polarity="count"))
    assert events["p"].tolist() == [0, 1, 0] and report.faults == {"polarity": 2}
    events, report = validate(raw(t=(0, 1, 2**52)), SENSOR, Policy(span="count"))
    assert len(events) == 3 and report.faults == {"span": 1}


def test_events_out_of_order_are_sorted_stably_and_counted():
    columns = raw(x=(1, 2, 3, 4), y=(0,) * 4, p=(0,) * 4, t=(30, 10, 30, 10))
    events, report = validate(columns, SENSOR)
    assert events["x"].tolist() == [2, 4, 1, 3]
    assert report.faults == {"order": 2} and report.kept == 4
    events, report = validate(columns, SENSOR, Policy(order="drop"))
    assert events["x"].tolist() == [1, 3] and report.dropped == 2


def test_a_reversed_recording_gives_the_frames_of_the_straight_one(sample_events):
    unique = sample_events.copy()
    unique["t_us"] = np.arange(1000) * 1000
    events, report = validate(unique[::-1], Sensor(128, 128))
    assert np.array_equal(events, unique) and report.faults == {"order": 999}


def test_minus_one_is_off_only_where_it_is_declared():
    policy = Policy(signed_polarity=True)
    events, report = validate(raw(p=(-1, 1, -1)), SENSOR, policy)
    assert events["p"].tolist() == [0, 1, 0] and report.faults == {}
    with pytest.raises(DataError, match="event 1: p=0, must be -1 or 1"):
        validate(raw(p=(-1, 0, 1)), SENSOR, policy)


def test_the_named_position_is_the_files_after_earlier_drops():
    columns = raw(x=(99, 1, 1, 1), y=(1,) * 4, p=(0, 0, 0, 7), t=(1, 2, 3, 4))
    with pytest.raises(DataError, match="event 3: p=7"):
        validate(columns, SENSOR, Policy(coordinates="drop"))


def test_a_file_of_another_camera_is_told_by_its_extent(files):
    events = files.some_events(height=260, width=346)
    with pytest.raises(DataError, match=r"sensor being 34x40; the file's x is \d+ to 34\d"):
        validate(events, SENSOR)


@pytest.mark.parametrize(
    ("t", "empty"), [((), "no event"), ((5,), "one time"), ((5, 5, 5), "one time"), ((5, 6), "")]
)
def test_a_recording_with_nothing_to_see_says_so(t, empty):
    n = len(t)
    events, report = validate(raw(np.zeros(n, int), np.zeros(n, int), np.zeros(n, int), t), SENSOR)
    assert len(events) == n and report.empty == empty
    assert report.rate_hz == (0 if empty else pytest.approx(2e6))


def test_a_policy_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="coordinates='count' is not allowed"):
        Policy(coordinates="count")
    with pytest.raises(ConfigError, match="did you mean 'drop'"):
        Policy(order="dropp")
    with pytest.raises(ConfigError, match="longest_us"):
        Policy(longest_us=0)


numbers = st.one_of(
    st.integers(-3, 45),
    st.sampled_from([2**31, 2**53, 2**62, -(2**62), 2**63 - 1]),
)
reals = st.one_of(numbers, st.floats(allow_nan=True, allow_infinity=True))


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=12), st.booleans())
def test_whatever_is_let_through_is_valid_and_accounted_for(rows, strict):
    check_gate(np.array(rows, np.int64).reshape(-1, 4), strict)


@given(st.lists(st.tuples(reals, reals, reals, reals), max_size=8), st.booleans())
def test_the_same_holds_for_floats(rows, strict):
    check_gate(np.array(rows, np.float64).reshape(-1, 4), strict)


def check_gate(array, strict):
    drops = {fault: "drop" for fault, allowed in ACTIONS.items() if "drop" in allowed}
    policy = Policy() if strict else Policy(**drops, span="count")
    before = array.copy()
    try:
        events, report = validate(array, SENSOR, policy)
    except DataError:
        assert strict
        return
    assert np.array_equal(array, before, equal_nan=True)
    assert report.given == len(array) and report.kept == len(events)
    assert (events["x"] < SENSOR.width).all() and (events["y"] < SENSOR.height).all()
    assert (events["p"] <= 1).all() and (np.diff(events["t_us"]) >= 0).all()
    assert ((events["t_us"] >= 0) & (events["t_us"] < TIME_LIMIT_US)).all()
    # Every event left is one of the file's, and each is left at most as often as it was there.
    have = [tuple(row) for row in array.tolist()]
    for row in events.tolist():
        have.remove(tuple(float(v) if array.dtype.kind == "f" else v for v in row))
    assert report.dropped == len(have)
    assert bool(report.faults) == bool(len(have) or (np.diff(array[:, 3]) < 0).any()) or (
        report.faults.keys() == {"span"}
    )


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
