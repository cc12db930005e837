from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events.aedat import read_comments, read_exactly
from spikeformer_lt.events.recording import (
    EVENTS,
    Sensor,
    columns_of,
    fit,
    make_events,
    opened,
)


def test_an_event_takes_sixteen_aligned_bytes_in_the_order_of_the_contract():
    assert EVENTS.names == ("x", "y", "p", "t_us")
    assert EVENTS.itemsize == 16
    assert all(EVENTS.fields[name][1] % EVENTS[name].itemsize == 0 for name in EVENTS.names)


def test_a_sensor_is_written_and_read_rows_first():
    assert Sensor.parse("180x240") == Sensor(height=180, width=240)
    assert str(Sensor(180, 240)) == "180x240"


@pytest.mark.parametrize(
    "text", ["128", "128x", "x", "0x5", "-1x5", "1.5x2", "1x2x3", "٣x٣", "9999x1"]
)
def test_another_form_of_sensor_is_refused(text):
    with pytest.raises(ConfigError, match="is not allowed"):
        Sensor.parse(text)


def test_a_side_is_a_whole_number():
    for side in (True, 1.0, 0, 4097, "8"):
        with pytest.raises(ConfigError, match="whole number"):
            Sensor(side, 8)


def test_all_three_forms_give_the_same_columns(sample_events):
    plain = np.stack([sample_events[name].astype(np.int64) for name in EVENTS.names], 1)
    tonic = np.empty(len(plain), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "?")])
    for name, theirs in (("x", "x"), ("y", "y"), ("p", "p"), ("t_us", "t")):
        tonic[theirs] = sample_events[name]
    mapping = {name: sample_events[name] for name in EVENTS.names}
    turned = plain[:, [3, 0, 1, 2]]
    forms = [columns_of(form, "made") for form in (sample_events, plain, tonic, mapping)] + [
        columns_of(turned, "made", ("t_us", "x", "y", "p"))
    ]
    for columns in forms:
        assert list(columns) == list(EVENTS.names)
        for name in EVENTS.names:
            assert np.array_equal(columns[name], sample_events[name])


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (np.zeros((5, 3)), r"array \[5, 3\] of float64.*\[N, 4\]"),
        (np.zeros(5), r"\[N, 4\]"),
        (np.zeros((2, 2), EVENTS), r"shape \[2, 2\]"),
        (np.zeros(5, [("x", "i4"), ("y", "i4"), ("t", "i8")]), "no field 'p'"),
        (
            np.zeros(5, [("x", "i4"), ("y", "i4"), ("sign", "i4"), ("t", "i8")]),
            "no field 'p'; found: 'x', 'y', 'sign'",
        ),
        (np.zeros(5, [("x", "U3"), ("y", "i4"), ("p", "i4"), ("t", "i8")]), "field 'x' is <U3"),
        (np.zeros(5, [("x", "c8"), ("y", "i4"), ("p", "i4"), ("t", "i8")]), "field 'x' is complex"),
        (
            np.zeros(5, [("x", "i4", 2), ("y", "i4"), ("p", "i4"), ("t", "i8")]),
            r"'x' is int32 \[5, 2\]",
        ),
        ({"x": [1], "y": [1], "p": [1], "t_us": [1, 2]}, "different length"),
        ([1, 2, 3], "events are list"),
    ],
)
@pytest.mark.fault(23)
def test_wrong_fields_types_and_shapes_are_refused_by_name(events, message):
    with pytest.raises(DataError, match=message) as caught:
        columns_of(events, "that file")
    assert str(caught.value).startswith("that file")


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_fitting_loses_no_event_and_leaves_the_square_for_none(height, width, size, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, width, 50), rng.integers(0, height, 50)
    x[:2], y[:2] = (0, width - 1), (0, height - 1)  # both corners
    events = make_events(x, y, np.zeros(50), np.arange(50))
    moved = fit(events, Sensor(height, width), size)
    assert len(moved) == 50
    assert moved["x"].max() < size and moved["y"].max() < size
    # Order along both axes is kept, and one scale serves both.
    for name in ("x", "y"):
        order = np.argsort(events[name], kind="stable")
        assert (np.diff(moved[name][order].astype(int)) >= 0).all()
    if size >= max(height, width):
        shift_x, shift_y = (size - width) // 2, (size - height) // 2
        assert np.array_equal(moved["x"], events["x"] + shift_x)
        assert np.array_equal(moved["y"], events["y"] + shift_y)


def test_half_the_size_joins_blocks_of_four_pixels():
    grid = np.stack(np.meshgrid(np.arange(128), np.arange(128)), -1).reshape(-1, 2)
    events = make_events(grid[:, 0], grid[:, 1], np.ones(len(grid)), np.arange(len(grid)))
    moved = fit(events, Sensor(128, 128), 64)
    counts = np.zeros((64, 64), int)
    np.add.at(counts, (moved["y"], moved["x"]), 1)
    assert (counts == 4).all()
    assert fit(events, Sensor(128, 128), 128) is events


def test_a_missing_an_empty_and_a_wrong_kind_of_path_are_named(tmp_path):
    (tmp_path / "empty.bin").touch()
    for path, words in (
        (tmp_path / "gone.bin", "No such file"),
        (tmp_path / "empty.bin", "is empty"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(DataError, match=words) as caught, opened(path):
            pass
        assert str(path) in str(caught.value)


def test_an_error_while_reading_is_the_files_too(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot read .*a\.bin"), opened(path):
        raise OSError(5, "Input/output error")


def test_a_file_gives_its_size_and_says_where_it_breaks_off(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    with opened(path) as (file, size):
        assert size == 10
        assert read_exactly(file, 6, path, "a packet") == b"012345"
        with pytest.raises(DataError, match="a packet at byte 6 needs 6 bytes, 4 are left"):
            read_exactly(file, 6, path, "a packet")


def header(tmp_path, content, version="2."):
    path = tmp_path / "a.aedat"
    path.write_bytes(content)
    with opened(path) as (file, _):
        lines = read_comments(file, path, version)
        return lines, file.read()


def test_a_header_ends_at_the_first_byte_that_is_no_comment(tmp_path):
    lines, rest = header(tmp_path, b"#!AER-DAT2.0\r\n# one\r\n\x00\x01#\n")
    assert lines == ["#!AER-DAT2.0", "# one"] and rest == b"\x00\x01#\n"


@pytest.mark.parametrize("mark", [b"#!END-HEADER\r\n", b"# End of ASCII Header\r\n"])
def test_an_announced_end_holds_even_if_the_data_begin_like_a_comment(tmp_path, mark):
    lines, rest = header(tmp_path, b"#!AER-DAT2.0\r\n" + mark + b"#\x01\x02\x03")
    assert len(lines) == 2 and rest == b"#\x01\x02\x03"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html>no such file</html>", "an HTML or XML page"),
        (b"#!AER-DAT3.1\r\n", "AEDAT of version '3.1'"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\x00\x01\x02\x03", "unknown binary data"),
        (b"#!AER-DAT2.0\r\n# no end", "breaks off in its header"),
        (b"#!AER-DAT2.0\r\n#" + b"a" * 2_000_000, "breaks off in its header"),
    ],
)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, content, words):
    with pytest.raises(DataError, match=words) as caught:
        header(tmp_path, content)
    assert "a.aedat" in str(caught.value)
