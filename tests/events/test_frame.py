from __future__ import annotations

import functools
import logging
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import frame as frame_module
from spikeformer_lt.events.frame import (
    EventOptions,
    Framing,
    count_numba,
    count_numpy,
    narrow,
    to_frames,
)
from spikeformer_lt.events.recording import EVENTS, Sensor, make_events
from spikeformer_lt.events.validate import ACTIONS, Policy, validate

SENSOR = Sensor(height=24, width=32)
WAYS = [Framing(8), Framing(8, "n_time_bins"), Framing(8, "time_window", 130_000)]


def by_hand(events, framing, sensor):
    """Frames by the words of Framing's docstring, one event at a time."""
    T, n = framing.T, len(events)
    t0 = int(events["t_us"][0]) if n else 0
    span = int(events["t_us"][-1]) - t0 if n else 0
    if T is None:
        T = span // framing.window_us + 1
    frames = np.zeros((T, 2, sensor.height, sensor.width), np.int64)
    left_out = 0
    for k, (x, y, p, t) in enumerate(events.tolist()):
        if framing.by == "n_event_bins":
            i = min(k // max(1, n // T), T - 1)
        elif framing.by == "n_time_bins":
            i = min((t - t0) // max(1, span // T), T - 1)
        else:
            i = (t - t0) // framing.window_us
        if i < T:
            frames[i, p, y, x] += 1
        else:
            left_out += 1
    return frames, left_out


def on_tonic(events):
    made = np.empty(len(events), [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
    for theirs, ours in (("x", "x"), ("y", "y"), ("t", "t_us"), ("p", "p")):
        made[theirs] = events[ours]
    return made


def tonic_frames(events, sensor, **ways):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tonic.transforms import ToFrame

        make = ToFrame(sensor_size=(sensor.width, sensor.height, 2), **ways)
        return make(on_tonic(events)).astype(np.int64)


@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize("framing", [*WAYS, Framing(None, "time_window", 9_000)])
def test_frames_are_what_the_definition_says(files, framing, kernels, monkeypatch):
    monkeypatch.setenv("SPIKEFORMER_KERNELS", kernels)
    for count, span in (
        (0, 1),
        (1, 1),
        (2, 2),
        (5, 3),
        (7, 1),
        (300, 1_000_000),
        (3001, 1_000_000),
    ):
        events = files.some_events(count, 24, 32, span, seed=count)
        frames, left_out = to_frames(events, framing, SENSOR)
        expected, missing = by_hand(events, framing, SENSOR)
        assert frames.dtype == np.int32 and np.array_equal(frames, expected)
        assert left_out == missing
        binary, _ = to_frames(
            events, Framing(framing.T, framing.by, framing.window_us, "binary"), SENSOR
        )
        assert np.array_equal(binary, expected > 0)


@pytest.mark.parametrize("way", ["n_event_bins", "n_time_bins"])
@pytest.mark.parametrize("t", [(), (7,), (7, 7, 7)])
@pytest.mark.fault(18)
def test_no_event_one_event_and_one_time_have_defined_frames(way, t):
    n = len(t)
    events = make_events(np.full(n, 3), np.full(n, 2), np.ones(n), t)
    frames, left_out = to_frames(events, Framing(4, way), SENSOR)
    assert frames.shape == (4, 2, 24, 32) and frames.dtype == np.int32
    assert (frames.sum(), left_out) == (n, 0)
    by_frame = frames[:, 1, 2, 3].tolist()
    assert by_frame == ([n, 0, 0, 0] if way == "n_time_bins" else [1] * n + [0] * (4 - n))


def test_frames_equal_tonics_on_two_hundred_recordings_but_for_what_tonic_loses(files):
    lost_by_time = lost_by_events = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        T, count = int(rng.integers(1, 17)), int(rng.integers(200, 2000))
        events = files.some_events(count, 24, 32, int(rng.integers(10_000, 2_000_000)), seed)
        # By event bins tonic counts every event where T divides their number: there all is equal.
        whole = events[: count // T * T]
        ours, _ = to_frames(whole, Framing(T), SENSOR)
        assert np.array_equal(ours, tonic_frames(whole, SENSOR, n_event_bins=T))
        for way in ("n_event_bins", "n_time_bins"):
            ours, _ = to_frames(events, Framing(T, way), SENSOR)
            theirs = tonic_frames(events, SENSOR, **{way: T})
            assert np.array_equal(ours[:-1], theirs[:-1])
            more = ours[-1] - theirs[-1]
            # All that differs are events at the end, which tonic leaves out, and never fewer.
            lost = count - theirs.sum()
            tail = np.zeros_like(more)
            last = events[count - lost :]
            np.add.at(tail, (last["p"], last["y"], last["x"]), 1)
            assert np.array_equal(more, tail) and ours.sum() == count
            if way == "n_time_bins":
                assert lost >= 1
                lost_by_time += lost
            else:
                assert lost == count % T
                lost_by_events += lost
    assert lost_by_time and lost_by_events


def test_time_windows_equal_tonics_where_they_are_whole(files):
    for seed in range(20):
        events = files.some_events(500, 24, 32, 1_000_000, seed)
        theirs = tonic_frames(events, SENSOR, time_window=130_000)
        ours, left_out = to_frames(events, Framing(None, "time_window", 130_000), SENSOR)
        assert np.array_equal(ours[: len(theirs)], theirs)
        assert (ours.sum(), left_out) == (500, 0) and theirs.sum() < 500


@pytest.mark.parametrize(
    ("events", "ways", "counted"),
    [
        (make_events([1], [1], [1], [5]), {"n_time_bins": 8}, 0),
        (make_events([1], [1], [1], [5]), {"n_event_bins": 8}, 0),
        (make_events([1] * 9, [1] * 9, [1] * 9, [5] * 9), {"n_time_bins": 8}, 0),
    ],
)
def test_what_tonic_loses_in_silence_is_counted_here(events, ways, counted):
    assert tonic_frames(events, SENSOR, **ways).sum() == counted
    ((way, T),) = ways.items()
    assert to_frames(events, Framing(T, way), SENSOR)[0].sum() == len(events)


def hostile_array(rng):
    """An array with faults of any kind, in one of the forms and types that files have."""
    n = int(rng.choice([0, 1, 2, 3, 10, 40]))
    wild = rng.random() < 0.5
    low, high = (-2, 36) if wild else (0, 24)
    columns = {name: rng.integers(low, high, n) for name in ("x", "y")}
    columns["p"] = rng.integers(-1, 4, n) if wild and rng.random() < 0.5 else rng.integers(0, 2, n)
    times = rng.integers(0, 1 + int(10.0 ** rng.integers(0, 8)), n)
    columns["t_us"] = times if rng.random() < 0.3 else np.sort(times)
    if n and wild:
        for name in rng.choice(list(columns), int(rng.integers(0, 3))):
            place = rng.integers(n)
            columns[name][place] = rng.choice([-1, 2**31, 2**53, 2**62, -(2**62), 128])
        if rng.random() < 0.3:
            name = rng.choice(list(columns))
            columns[name] = columns[name].astype(np.float64)
            columns[name][rng.integers(n)] = rng.choice([np.nan, np.inf, -np.inf, 0.5, 1e300])
    return columns


def kept_by_hand(columns):
    """Rows with no fault but the order, found one by one."""
    good = []
    for row in zip(*(columns[name].tolist() for name in ("x", "y", "p", "t_us")), strict=True):
        x, y, p, t = row
        if all(np.isfinite(v) and v == int(v) for v in row) and (
            0 <= x < 32 and 0 <= y < 24 and p in (0, 1) and 0 <= t < 2**53
        ):
            good.append((int(x), int(y), int(p), int(t)))
    return good


def test_ten_thousand_hostile_arrays_have_no_silent_wrong_result():
    """Sum of frames == events kept, frame by frame by hand on a part, every loss told."""
    rng = np.random.default_rng(1)
    drops = {fault: "drop" for fault, allowed in ACTIONS.items() if "drop" in allowed}
    drop = Policy(**{**drops, "order": "count"}, span="count")
    refused = faulty = 0
    for turn in range(10_000):
        columns = hostile_array(rng)
        good = kept_by_hand(columns)
        n = len(columns["x"])
        events, report = validate(columns, SENSOR, drop)
        assert (report.given, report.kept) == (n, len(good))
        assert bool(set(report.faults) - {"order", "span"}) == (len(good) < n)
        faulty += bool(report.faults)
        framing = WAYS[turn % 3]
        frames, left_out = to_frames(events, framing, SENSOR)
        assert int(frames.sum()) + left_out == len(good)
        pixels = np.zeros((2, 24, 32), int)
        for x, y, p, _ in good:
            pixels[p, y, x] += 1
        if not left_out:
            assert np.array_equal(frames.sum(0), pixels)
        if turn % 20 == 0:
            assert np.array_equal(frames, by_hand(events, framing, SENSOR)[0])
            try:
                strict, _ = validate(columns, SENSOR)
                assert np.array_equal(strict, events)
            except DataError:
                refused += 1
                assert report.faults
    assert faulty > 2000 and refused > 100


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 31), st.integers(0, 23), st.integers(0, 1), st.integers(0, 2**53 - 1)
        ),
        max_size=30,
    ),
    st.integers(1, 20),
    st.sampled_from(["n_event_bins", "n_time_bins"]),
)
def test_events_are_conserved_whatever_their_times(rows, T, way):
    rows.sort(key=lambda row: row[3])
    events = make_events(*(np.array([row[i] for row in rows], np.int64) for i in range(4)))
    frames, left_out = to_frames(events, Framing(T, way), SENSOR)
    assert left_out == 0 and frames.sum() == len(rows) and frames.shape[0] == T
    assert np.array_equal(frames, by_hand(events, Framing(T, way), SENSOR)[0])


@pytest.mark.fault(21)
def test_memory_never_follows_the_times():
    events = make_events([1, 1], [1, 1], [0, 1], [0, 2**53 - 1])
    for way in ("n_event_bins", "n_time_bins"):
        assert to_frames(events, Framing(8, way), SENSOR)[0].sum() == 2
    frames, left_out = to_frames(events, Framing(8, "time_window", 2**60), SENSOR)
    assert (frames.sum(), left_out) == (2, 0)
    with pytest.raises(DataError, match="are 9007199254741 frames, more than 4096"):
        to_frames(events, Framing(None, "time_window", 1000), SENSOR)
    with pytest.raises(ConfigError, match=r"T=4096 on a sensor of 4096x4096 is not allowed"):
        to_frames(events, Framing(4096), Sensor(4096, 4096))


@pytest.mark.fault(25)
def test_counts_pass_the_limit_of_int16_that_tonic_wraps_at():
    n = 40_000
    events = make_events(np.zeros(n), np.zeros(n), np.ones(n), np.arange(n))
    frames, _ = to_frames(events, Framing(1), SENSOR)
    assert frames[0, 1, 0, 0] == n
    assert tonic_frames(events, SENSOR, n_event_bins=1)[0, 1, 0, 0] == n - 2**16
    assert narrow(frames).dtype == np.uint16


@pytest.mark.parametrize("kernels", ["numba", "torch"])
@pytest.mark.parametrize(
    ("field", "value"), [("x", 32), ("x", 65535), ("y", 24), ("p", 2), ("p", 255)]
)
@pytest.mark.fault(19)
def test_an_invalid_event_is_refused_not_written_beside_the_frame(
    files, field, value, kernels, monkeypatch
):
    monkeypatch.setenv("SPIKEFORMER_KERNELS", kernels)
    events = files.some_events(100, 24, 32)
    events[field][70] = value
    with pytest.raises(
        DataError, match=f"event 70 has .*{field}={value}.*not on a sensor of 24x32"
    ):
        to_frames(events, Framing(4), SENSOR)


def test_what_did_not_pass_the_gate_is_refused(files):
    with pytest.raises(DataError, match="give what validate"):
        to_frames(on_tonic(files.some_events(10)), Framing(4), SENSOR)
    with pytest.raises(DataError, match="out of order"):
        to_frames(files.some_events(10, 24, 32)[::-1], Framing(4), SENSOR)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"T": 0}, "T=0 is not allowed"),
        ({"T": -1}, "T=-1 is not allowed"),
        ({"T": True}, "T=True is not allowed"),
        ({"T": 2.0}, "T=2.0 is not allowed"),
        ({"T": 4097}, "1 to 4096"),
        ({"T": None}, "only time_window has it"),
        ({"by": "n_time_bin"}, "did you mean 'n_time_bins'"),
        ({"values": "sum"}, "counts or binary"),
        ({"by": "time_window"}, "window_us=None is not allowed"),
        ({"window_us": 5}, "belongs to time_window"),
        ({"by": "time_window", "window_us": 0}, "1 microsecond or more"),
        ({"by": "time_window", "window_us": 1.5}, "1 microsecond or more"),
    ],
)
def test_an_impossible_framing_is_refused_by_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        Framing(**fields)


@pytest.mark.fault(25)
def test_narrow_keeps_every_count_in_the_smallest_type():
    for most, kind in (
        (0, "uint8"),
        (255, "uint8"),
        (256, "uint16"),
        (65535, "uint16"),
        (65536, "int32"),
    ):
        frames = np.zeros((1, 2, 3, 3), np.int32)
        frames[0, 1, 2, 2] = most
        small = narrow(frames)
        assert small.dtype.name == kind and np.array_equal(small, frames)


def test_without_numba_numpy_counts_and_says_so_once(files, monkeypatch, caplog):
    monkeypatch.setattr(
        frame_module, "_compiled", functools.cache(frame_module._compiled.__wrapped__)
    )
    monkeypatch.setitem(sys.modules, "numba", None)
    events = files.some_events(5000, 24, 32)
    with caplog.at_level(logging.WARNING):
        first, _ = to_frames(events, Framing(4), SENSOR)
        to_frames(events, Framing(4), SENSOR)
    assert first.sum() == 5000
    assert len([r for r in caplog.records if "numba failed" in r.message]) == 1
    monkeypatch.setenv("SPIKEFORMER_KERNELS", "numba")
    with pytest.raises(ConfigError, match="use auto or torch"):
        to_frames(events, Framing(4), SENSOR)
    monkeypatch.setenv("SPIKEFORMER_KERNELS", "fast")
    with pytest.raises(ConfigError, match="auto, torch or numba"):
        to_frames(events, Framing(4), SENSOR)


def test_the_numpy_path_ignores_events_after_the_last_edge(files):
    events = files.some_events(100, 24, 32)
    events["x"][60:] = 500  # invalid, but in no frame
    frames = np.zeros((2, 2, 24, 32), np.int32)
    edges = np.array([0, 30, 60], np.int64)
    assert count_numpy(events["x"], events["y"], events["p"], edges, frames) == -1
    assert frames.sum() == 60 and events.dtype == EVENTS


@pytest.mark.parametrize("count", [0, 1, 17, 5000])
def test_the_kernel_equals_numpy_on_strided_and_contiguous_columns(files, count):
    events = files.some_events(count, 20, 30, seed=count)
    edges = np.sort(np.random.default_rng(count).integers(0, count + 1, 6))
    edges[0] = 0
    for copy in (lambda column: column, np.ascontiguousarray):
        columns = [copy(events[name]) for name in ("x", "y", "p")]
        ours, theirs = (np.zeros((5, 2, 20, 30), np.int32) for _ in range(2))
        assert count_numba(*columns, edges, ours) == -1
        assert count_numpy(*columns, edges, theirs) == -1
        assert np.array_equal(ours, theirs) and ours.sum() == edges[-1]


@pytest.mark.parametrize(("field", "value"), [("x", 30), ("y", 20), ("p", 2)])
def test_the_first_event_off_the_frame_is_named_and_nothing_is_written_for_it(files, field, value):
    events = files.some_events(50, 20, 30)
    events[field][[20, 40]] = value
    frames = np.zeros((1, 2, 20, 30), np.int32)
    edges = np.array([0, 50])
    assert count_numba(events["x"], events["y"], events["p"], edges, frames) == 20
    assert frames.sum() == 20


def test_edges_beyond_the_events_are_an_error_of_ours(files):
    events = files.some_events(5)
    with pytest.raises(AssertionError):
        count_numba(
            events["x"], events["y"], events["p"],
            np.array([0, 6]), np.zeros((1, 2, 128, 128), np.int32),
        )  # fmt: skip


def test_options_become_the_framing_they_name():
    assert EventOptions().framing == Framing(16, "n_event_bins")
    options = EventOptions(T=10, by="time_window", window_us=5000, values="binary")
    assert options.framing == Framing(10, "time_window", 5000, "binary")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"T": 0}, "T=0"),
        ({"T": None, "by": "time_window", "window_us": 5}, "T=None"),
        ({"by": "events"}, "by='events'"),
        ({"by": "time_window"}, "window_us=None"),
        ({"bad_events": "ignore"}, "bad_events='ignore'"),
        ({"empty": "zeros"}, "did you mean 'zero'"),
        ({"incomplete": "ok"}, "error or report"),
        ({"cache": ""}, "cache=''"),
        ({"unit": "mss"}, "did you mean 'ms'"),
        ({"columns": "x,y,t"}, "columns='x,y,t'"),
    ],
)
def test_an_impossible_option_is_refused_when_it_is_given(fields, words):
    with pytest.raises(ConfigError, match=words):
        EventOptions(**fields)


def test_bad_events_goes_over_the_sets_own_policy_and_leaves_its_facts():
    own = Policy(order="error", signed_polarity=True, longest_us=5)
    assert EventOptions().policy(own) is own
    dropped = EventOptions(bad_events="drop").policy(own)
    assert {getattr(dropped, fault) for fault in ACTIONS if fault != "span"} == {"drop"}
    assert dropped.span == "count" and dropped.signed_polarity and dropped.longest_us == 5
    counted = EventOptions(bad_events="count").policy()
    for fault, allowed in ACTIONS.items():
        assert getattr(counted, fault) == ("count" if "count" in allowed else "drop")
