from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.formats import read_npy
from spikeformer_lt.events.recording import Sensor
from spikeformer_lt.events.validate import validate

SENSOR = Sensor(128, 128)


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint64", "float32", "float64"])
def test_plain_arrays_come_back_event_for_event_from_any_type(files, tmp_path, dtype):
    events = files.some_events(300, span_us=30_000)
    files.write_npy(tmp_path / "a.npy", events, dtype=dtype)
    raw = read_npy(tmp_path / "a.npy")
    assert np.array_equal(validate(raw.events, SENSOR)[0], events)


def test_structured_arrays_and_other_orders_and_column_major_do_too(files, tmp_path):
    events = files.some_events(300)
    np.save(tmp_path / "own.npy", events)
    tonic = np.empty(300, [("x", "<i2"), ("y", "<i2"), ("p", "?"), ("t", "<i8")])
    for theirs, ours in (("x", "x"), ("y", "y"), ("p", "p"), ("t", "t_us")):
        tonic[theirs] = events[ours]
    np.save(tmp_path / "tonic.npy", tonic)
    plain = np.stack([events[name].astype("<i8") for name in ("t_us", "x", "y", "p")], 1)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(plain))
    for name in ("own", "tonic", "fortran"):
        raw = read_npy(tmp_path / f"{name}.npy", ("t_us", "x", "y", "p"))
        assert np.array_equal(validate(raw.events, SENSOR)[0], events)


def test_milliseconds_become_microseconds_without_wrapping(files, tmp_path):
    events = files.some_events(300)
    files.write_npy(tmp_path / "a.npy", events, ticks=1000)
    times = read_npy(tmp_path / "a.npy", microseconds_per_tick=1000).events["t_us"]
    assert np.array_equal(times, events["t_us"] // 1000 * 1000)
    # Times that would wrap in the file's own type, or in any, are refused by the gate.
    rows = np.array([[1, 1, 1, 0], [1, 1, 1, 2_200_000]], np.int32)
    np.save(tmp_path / "long.npy", rows)
    long = read_npy(tmp_path / "long.npy", microseconds_per_tick=1000)
    assert validate(long.events, SENSOR)[0]["t_us"].tolist() == [0, 2_200_000_000]
    for kind, huge in (("i8", 2**62), ("i8", -(2**62)), ("u8", 2**64 - 1)):
        wild = np.array([[1, 1, 1, 0], [1, 1, 1, huge]], kind)
        np.save(tmp_path / "wild.npy", wild)
        with pytest.raises(DataError, match="event 1: t_us="):
            validate(read_npy(tmp_path / "wild.npy", microseconds_per_tick=1000).events, SENSOR)


@pytest.mark.parametrize(
    "array",
    [np.zeros((5, 3), "i4"), np.zeros(5, "i4"), np.zeros((5, 4), "U2"), np.zeros((), "i4")],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_another_form_is_refused_with_the_files_name(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        read_npy(tmp_path / "a.npy")


def test_every_cut_and_every_surplus_is_refused(files, tmp_path):
    path = tmp_path / "a.npy"
    files.write_npy(path, files.some_events(4))
    whole = path.read_bytes()
    for content in [*(whole[:cut] for cut in range(len(whole))), whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy"):
            read_npy(path)


def test_a_header_that_tells_of_terabytes_allocates_nothing(tmp_path):
    path = tmp_path / "a.npy"
    for shape in ((10**12, 4), (-5, 4), (2**40, 2**40)):
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "<i4", "fortran_order": False, "shape": shape}
        )
        path.write_bytes(buffer.getvalue() + bytes(16))
        tracemalloc.start()
        with pytest.raises(DataError, match="truncated or damaged"):
            read_npy(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<html></html>", "an HTML or XML page"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x93NUMPY\x01\x00\x0a\x00{'descr': ", "damaged header"),
        (b"\x93NUMPY\x01\x00\x12\x00__import__('os')  ", "damaged header"),
        (b"\x93NUMPY\x09\x09\x00\x00", "damaged header"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, content, words):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_npy(tmp_path / "a.npy")
    assert "a.npy" in str(caught.value)
