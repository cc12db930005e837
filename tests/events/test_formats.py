from __future__ import annotations

import io
import warnings
import zipfile

import numpy as np
import pytest

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import formats
from spikeformer_lt.events.formats import (
    FileReader,
    form_of,
    read_bin,
    read_dat,
    read_evt,
    read_hdf5,
    read_npy,
    read_npz,
    read_trials,
    read_txt,
)
from spikeformer_lt.events.recording import FIELDS, Sensor, columns_of
from spikeformer_lt.events.split import Sample
from spikeformer_lt.events.validate import validate

SENSOR = Sensor(128, 128)


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint64", "float32", "float64"])
@pytest.mark.fault(23)
def test_plain_arrays_come_back_event_for_event_from_any_type(files, tmp_path, dtype):
    events = files.some_events(300, span_us=30_000)
    files.write_npy(tmp_path / "a.npy", events, dtype=dtype)
    raw = read_npy(tmp_path / "a.npy")
    assert np.array_equal(validate(raw.events, SENSOR)[0], events)


@pytest.mark.fault(23)
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


@pytest.mark.fault(21)
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
@pytest.mark.fault(23)
def test_another_form_is_refused_with_the_files_name(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        read_npy(tmp_path / "a.npy")


@pytest.mark.fault(24)
def test_every_cut_and_every_surplus_is_refused(files, tmp_path):
    path = tmp_path / "a.npy"
    files.write_npy(path, files.some_events(4))
    whole = path.read_bytes()
    for content in [*(whole[:cut] for cut in range(len(whole))), whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.npy"):
            read_npy(path)


@pytest.mark.fault(82)
def test_a_header_that_tells_of_terabytes_allocates_nothing(tmp_path, traced):
    path = tmp_path / "a.npy"
    rows = [("x", "<V0"), ("y", "<V0"), ("p", "<V0"), ("t", "<V0")]
    for descr, shape in (
        *(("<i4", shape) for shape in ((10**12, 4), (-5, 4), (2**40, 2**40), (True, 4))),
        *(("<V0", (10**12, 4)), ("<U0", (10**15, 4)), (rows, (10**14,))),
    ):
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        path.write_bytes(buffer.getvalue() + bytes(16 if descr == "<i4" else 0))
        with traced() as peak, pytest.raises(DataError, match="truncated or damaged|are no events"):
            read_npy(path)
        assert peak.bytes < 1_000_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<html></html>", "an HTML or XML page"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x93NUMPY\x01\x00\x0a\x00{'descr': ", "damaged header"),
        (b"\x93NUMPY\x01\x00\x12\x00__import__('os')  ", "damaged header"),
        (b"\x93NUMPY\x09\x09\x00\x00", "damaged header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{'descr': ", "damaged header"),
    ],
)
@pytest.mark.fault(24)
def test_another_kind_of_file_is_called_what_it_is(tmp_path, content, words):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_npy(tmp_path / "a.npy")
    assert "a.npy" in str(caught.value)


def test_a_file_comes_back_event_for_event(files, tmp_path):
    events = files.some_events(1000, 34, 34, 300_000)
    files.write_bin(tmp_path / "a.bin", events)
    raw = read_bin(tmp_path / "a.bin")
    assert np.array_equal(raw.events, events) and raw.skipped == {}


def test_clock_marks_move_all_later_times_and_are_counted(files, tmp_path):
    events = files.some_events(500, 34, 34, 300_000)
    files.write_bin(tmp_path / "a.bin", events, overflow_every=1)
    raw = read_bin(tmp_path / "a.bin")
    assert np.array_equal(raw.events, events)
    assert raw.skipped == {"overflow": int(events["t_us"][-1]) // 2**13}


def test_tonics_reader_gives_the_same(files, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tonic.io import read_mnist_file
    kind = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    for overflow in (0, 1):
        files.write_bin(tmp_path / "a.bin", files.some_events(400, 180, 240, 300_000), overflow)
        ours, theirs = (
            read_bin(tmp_path / "a.bin").events,
            read_mnist_file(tmp_path / "a.bin", kind),
        )
        for name, other in (("x", "x"), ("y", "y"), ("p", "p"), ("t_us", "t")):
            assert np.array_equal(ours[name], theirs[other])


@pytest.mark.fault(24)
def test_a_cut_event_is_an_error_and_a_cut_between_events_is_fewer_events(files, tmp_path):
    path = tmp_path / "a.bin"
    files.write_bin(path, files.some_events(20, 34, 34))
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        if cut % 5 == 0:
            assert len(read_bin(path).events) == cut // 5
        else:
            with pytest.raises(DataError, match=rf"a\.bin.*{cut} bytes are no multiple of 5"):
                read_bin(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>" + b"<p>gone</p>" * 10, "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 4, "a Git LFS pointer"),
        (b"404: not found, ask somebody else\n" * 5, "a text file"),
    ],
)
def test_texts_are_no_recordings(tmp_path, content, words):
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_bin(tmp_path / "a.bin")


@pytest.mark.parametrize("head", [b"\x80\x03", b"PK\x03\x04", b"\x1f\x8b", b"AB"])
def test_events_that_begin_like_another_kind_of_file_are_still_events(tmp_path, head):
    (tmp_path / "a.bin").write_bytes((head + bytes(3))[:5] * 4)
    assert len(read_bin(tmp_path / "a.bin").events) == 4


@pytest.mark.fault(80)
def test_a_field_t_us_is_in_microseconds_whatever_the_unit(files, tmp_path):
    """`t` and plain columns are in the unit that is named."""
    events = files.some_events(200, span_us=100_000)
    np.save(tmp_path / "own.npy", events)
    files.write_npz(tmp_path / "a.npz", events)
    files.write_hdf5(tmp_path / "a.h5", events)
    own = FileReader(tmp_path, "npy", microseconds_per_tick=1000)(Sample("own.npy"))
    assert np.array_equal(own.events["t_us"], events["t_us"])
    for name in ("a.npz", "a.h5"):
        scaled = FileReader(tmp_path, "auto", microseconds_per_tick=1000)(Sample(name))
        assert np.array_equal(scaled.events["t_us"], events["t_us"] * 1000)


@pytest.mark.fault(80)
def test_fractions_of_a_second_are_rounded_to_microseconds(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 1, 1, 0.0], [1, 1, 0, 0.123457]]))
    raw = read_npy(tmp_path / "a.npy", microseconds_per_tick=1_000_000)
    assert validate(raw.events, SENSOR)[0]["t_us"].tolist() == [0, 123_457]


@pytest.mark.fault(80)
def test_a_unit_that_is_given_goes_for_fractions_too(tmp_path):
    import h5py

    times = np.array([0.0, 299_420.5])
    with h5py.File(tmp_path / "a.h5", "w") as store:
        for name, column in (("xs", [1, 2]), ("ys", [1, 2]), ("ps", [0, 1]), ("ts", times)):
            store[f"events/{name}"] = column
    np.savetxt(tmp_path / "a.txt", [(time, 1, 1, 1) for time in times])
    for name in ("a.h5", "a.txt"):
        for unit, factor in (("us", 1), ("ms", 1000), (None, 1_000_000)):
            read = FileReader(tmp_path, "auto").reading(unit, None)(Sample(name))
            assert np.allclose(read.events["t_us"], times * factor, atol=0.5)


def test_a_unit_and_columns_belong_to_tables(tmp_path):
    reader = FileReader(tmp_path, "npy", microseconds_per_tick=1000).reading("us", "t,x,y,p")
    assert reader.columns == ("t_us", "x", "y", "p") and reader.microseconds_per_tick == 1
    assert FileReader(tmp_path, "npy").reading(None, None) == FileReader(tmp_path, "npy")
    for words in ({"unit": "us", "columns": None}, {"unit": None, "columns": "x,y,p,t"}):
        with pytest.raises(ConfigError, match="bin files say that themselves"):
            FileReader(tmp_path, "bin").reading(**words)
    for text in ("x,y,p", "x,y,p,t,t", "x,y,p,time", ""):
        with pytest.raises(ConfigError, match="x, y, p and t, each once"):
            FileReader(tmp_path, "npy").reading(None, text)


def test_tables_in_hdf5_are_found_in_a_group_at_the_top_or_as_fields(files, tmp_path):
    events = files.some_events(100)
    for group, table in (("events", False), ("/", False), ("events", True), ("CD/events", True)):
        files.write_hdf5(tmp_path / "a.h5", events, group, table)
        raw = read_hdf5(tmp_path / "a.h5")
        assert np.array_equal(validate(raw.events, SENSOR)[0], events)


def test_hdf5_packed_by_a_plug_in_that_is_not_there_is_not_called_damaged(tmp_path):
    """As Prophesee's files are, whose filter HDF5 does not bring."""
    import h5py

    kind = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((100,))
    plan.set_filter(0x8ECF, h5py.h5z.FLAG_OPTIONAL)
    with h5py.File(tmp_path / "a.hdf5", "w") as store:
        space, kind = h5py.h5s.create_simple((100,)), h5py.h5t.py_create(kind)
        made = h5py.h5d.create(store.create_group("CD").id, b"events", kind, space, plan)
        made.write_direct_chunk((0,), bytes(400))
    if h5py.h5z.filter_avail(0x8ECF):
        pytest.skip("the plug-in is there")
    with pytest.raises(DataError, match=r"a\.hdf5' is packed with .* 36559, .*hdf5_ecf$"):
        read_hdf5(tmp_path / "a.hdf5")


def test_hdf5_without_columns_of_its_own_is_refused(files, tmp_path):
    import h5py

    path = tmp_path / "a.h5"
    files.write_hdf5(tmp_path / "other.h5", files.some_events(10))
    for name, place in (("x", "/etc/passwd"), ("events", "other.h5")):
        with h5py.File(path, "w") as store:
            store[name] = h5py.ExternalLink(place, "/events")
        with pytest.raises(DataError, match=r"a\.h5.*no field 'x'"):
            read_hdf5(path)
    with h5py.File(path, "w") as store:
        store.create_dataset("x", (8,), "u1", external=[(str(tmp_path / "other.h5"), 0, 8)])
    with pytest.raises(DataError, match="'x' is .*needed are numbers .* in the file itself"):
        read_hdf5(path)
    for odd in (["a"], 3, np.zeros((8, 2)), h5py.Empty("f")):
        with h5py.File(path, "w") as store:
            store.create_dataset("p", data=odd)
        with pytest.raises(DataError, match="'p' is .*needed are numbers in one dimension"):
            read_hdf5(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    with pytest.raises(DataError, match=r"a\.h5.*is damaged"):
        read_hdf5(path)


def test_an_archive_of_many_arrays_lists_some_and_reads_none_twice(tmp_path):
    path, member = tmp_path / "a.npz", io.BytesIO()
    np.save(member, np.zeros(3))
    names = [f"a{i}.npy" for i in range(500)], ["x.npy", "y.npy", "x.npy", "p.npy", "t.npy"]
    for listed, words in zip(names, ("no field 'x'", "'x.npy', is there"), strict=True):
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in listed:
                archive.writestr(name, member.getvalue())
        with pytest.raises(DataError, match=words) as caught:
            read_npz(path)
        assert len(str(caught.value)) < 400
    np.savez(path, x=[1], y=[2], p=[0], t=[3], label=[7])
    assert validate(read_npz(path).events, SENSOR)[1].kept == 1


def bomb_npz(path):
    np.savez_compressed(path, x=np.zeros(2**24, "i4"), y=[1], p=[1], t=[1])


def bomb_hdf5(path):
    import h5py

    with h5py.File(path, "w") as store:
        for name in "xypt":
            store.create_dataset(f"events/{name}", (2**38,), "i8", chunks=(1024,))


def bomb_header(path):
    buffer = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(buffer, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", buffer.getvalue() + bytes(64))


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (bomb_npz, "a.npz", "unpack to more than"),
        (bomb_header, "a.npz", "truncated or damaged"),
        (bomb_hdf5, "a.h5", "unpack to more than"),
    ],
)
@pytest.mark.fault(82)
def test_what_unpacks_to_far_more_than_its_size_is_refused_before_it_is(
    tmp_path, traced, make, name, words
):
    make(tmp_path / name)
    with traced() as peak, pytest.raises(DataError, match=words):
        FileReader(tmp_path, "auto")(Sample(name))
    assert peak.bytes < 20_000_000


@pytest.mark.parametrize("chunk", [7, 1 << 14])
def test_evt_3_is_the_same_whatever_the_chunk_and_over_the_clocks_restart(
    files, tmp_path, monkeypatch, chunk
):
    monkeypatch.setattr(formats, "_CHUNK", chunk)
    events = files.some_events(2000, 20, 128, 300_000)
    events["t_us"] = events["t_us"] // 400 * 400
    events = np.sort(events, order=["t_us", "y", "p", "x"])
    events = events[np.append(True, events[1:] != events[:-1])]
    events["t_us"] += 2**24 - 150_000
    files.write_evt3(tmp_path / "a.raw", events)
    found = read_evt(tmp_path / "a.raw").events
    assert np.array_equal(found, events)


def test_a_word_that_begins_like_a_header_is_a_word(files, tmp_path):
    """The camera's older files have no line that ends the header."""
    events = files.some_events(50, 20, 128)
    events["t_us"] += 0x25 << 12  # the low byte of the first word is a %
    files.write_evt3(tmp_path / "a.raw", events)
    whole = (tmp_path / "a.raw").read_bytes().replace(b"% end\n", b"")
    assert whole.split(b"3.0\n")[1].startswith(b"%")
    (tmp_path / "a.raw").write_bytes(whole)
    assert np.array_equal(read_evt(tmp_path / "a.raw").events, events)


def test_the_clock_of_a_dat_file_runs_over_wherever_its_events_are(tmp_path):
    """40,000 events in 4 h 46 min, and one that is late, against numpy's reading of the clock."""
    drawn = np.random.default_rng(0)
    words = drawn.integers(0, 2**29, (40_000, 2)).astype(np.uint32)
    times = np.cumsum(drawn.integers(0, 2 * 429_000, 40_000))
    times += 2**32 - 9 - times[0]
    times[20_000] -= 600_000
    words[:, 0] = times % 2**32
    (tmp_path / "a.dat").write_bytes(b"% Version 2\n" + bytes([12, 8]) + words.tobytes())
    events = read_dat(tmp_path / "a.dat").events
    assert np.array_equal(events["t_us"], times)
    assert np.array_equal(times, np.unwrap(words[:, 0].astype(np.int64), period=1 << 32))
    data = words[:, 1].astype(np.int64)
    for name, expected in (("x", data & 0x3FFF), ("y", data >> 14 & 0x3FFF), ("p", data >> 28)):
        assert np.array_equal(events[name], expected), name


def test_another_version_or_kind_of_prophesees_files_is_named(files, tmp_path):
    for header, words in (
        (b"% evt 2.1\n", "is in EVT '2.1'"),
        (b"% Date 2020\n", "is in no EVT form"),
        (b"RIFF....", "no Prophesee recording"),
        (b"% evt 3.0", "breaks off in its header"),
        (b"% evt 3.0\n% end\n\x00", "breaks off: 1 bytes are no multiple of 2"),
    ):
        (tmp_path / "a.raw").write_bytes(header)
        with pytest.raises(DataError, match=words):
            read_evt(tmp_path / "a.raw")
    files.write_dat(tmp_path / "a.dat", files.some_events(3))
    whole = (tmp_path / "a.dat").read_bytes()
    for content, words in (
        (whole.replace(b"Version 2", b"Version 1"), "version 1"),
        (whole.replace(b"\x0c\x08", b"\x0e\x08"), "kind 14"),
        (whole[:-1], "23 bytes are no multiple of 8"),
    ):
        (tmp_path / "a.dat").write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_dat(tmp_path / "a.dat")


@pytest.mark.fault(82)
def test_what_never_ends_is_not_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "a.npy")
    for read in (lambda: read_npy(tmp_path / "a.npy"), lambda: read_bin("/dev/zero")):
        with pytest.raises(DataError, match="no regular file but a pipe, a socket or a device"):
            read()


CSV = "class,startTime_usec,endTime_usec\r\n1,100,200\r\n2,200,300\r\n2,350,400\r\n"


@pytest.fixture
def home(tmp_path):
    for name in ("user01_led", "user24_natural_light"):
        (tmp_path / f"{name}.aedat").touch()
        (tmp_path / f"{name}_labels.csv").write_text(CSV)
    (tmp_path / "trials_to_train.txt").write_text("user01_led.aedat\n\n")
    (tmp_path / "trials_to_test.txt").write_text("user24_natural_light.aedat")
    return tmp_path


def test_stretches_have_their_file_times_class_from_0_and_person(home):
    parts = read_trials(home, 11)
    name = "user01_led.aedat"
    assert parts["train"] == [
        Sample(name, 100, 200, 0, "1"),
        Sample(name, 200, 300, 1, "1"),
        Sample(name, 350, 400, 1, "1"),
    ]  # fmt: skip
    assert [s.group for s in parts["test"]] == ["24"] * 3


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("12,100,200", "line 2: '12,100,200' is no class"),
        ("0,100,200", "is no class"),
        ("1,200,200", "later end"),
        ("1,300,200", "later end"),
        ("1,-5,200", "is no class"),
        ("1,1e3,2e3", "is no class"),
        ("1,2", "is no class"),
        ("=cmd(),1,2", "is no class"),
    ],
)
def test_a_wrong_line_is_named_with_its_file_and_number(home, line, words):
    (home / "user01_led_labels.csv").write_text(f"class,start,end\n{line}\n")
    with pytest.raises(DataError, match=r"user01_led_labels\.csv") as caught:
        read_trials(home, 11)
    assert words in str(caught.value)


def test_missing_files_and_names_that_lead_elsewhere_are_refused(home):
    (home / "user24_natural_light.aedat").unlink()
    with pytest.raises(DataError, match=r"user24.*is missing; trials_to_test\.txt lists it"):
        read_trials(home, 11)
    (home / "user01_led_labels.csv").unlink()
    with pytest.raises(DataError, match=r"cannot read .*user01_led_labels\.csv"):
        read_trials(home, 11)
    for name in ("../user01_led.aedat", "/etc/passwd", "user01_led.aedat.exe", "led.aedat"):
        (home / "trials_to_train.txt").write_text(name)
        with pytest.raises(DataError, match=r"trials_to_train\.txt'?, line 1"):
            read_trials(home, 11)
    (home / "trials_to_train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read .*trials_to_train"):
        read_trials(home, 11)


def test_upright_pictures_and_stretches_and_milliseconds(files, tmp_path):
    events = files.some_events(200)
    files.write_aedat2(tmp_path / "a.aedat", events)
    turned = FileReader(tmp_path, "cifar10_dvs")(Sample("a.aedat")).events
    assert np.array_equal(turned["x"], 127 - events["y"])
    files.write_aedat31(tmp_path / "b.aedat", events)
    half = FileReader(tmp_path, "aedat31")(Sample("b.aedat", 0, 500_000)).events
    assert np.array_equal(half, events[events["t_us"] < 500_000])
    files.write_npy(tmp_path / "a.npy", events, ticks=1000)
    reader = FileReader(tmp_path, "npy", microseconds_per_tick=1000)
    assert np.array_equal(reader(Sample("a.npy")).events["t_us"], events["t_us"] // 1000 * 1000)


def test_a_fingerprint_changes_with_the_file(files, tmp_path):
    import os

    reader = FileReader(tmp_path, "npy")
    files.write_npy(tmp_path / "a.npy", files.some_events(5))
    first = reader.fingerprint(Sample("a.npy"))
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    assert reader.fingerprint(Sample("a.npy")) != first
    with pytest.raises(DataError, match=r"gone\.npy"):
        reader.fingerprint(Sample("gone.npy"))


def test_what_is_no_recording_is_called_what_it_is(tmp_path):
    (tmp_path / "a.aedat").write_bytes(b"<html>")
    with pytest.raises(DataError, match="not AEDAT 2, 3.1 or 4 but an HTML or XML page"):
        form_of(tmp_path / "a.aedat")
    with pytest.raises(DataError, match="has no name of a recording"):
        form_of(tmp_path / "a.doc")
    with pytest.raises(ConfigError, match="did you mean 'aedat31'"):
        FileReader(tmp_path, "aedat3")


def test_what_a_reader_depends_on_is_in_its_repr_and_where_it_lies_is_not(tmp_path):
    told = repr(FileReader(tmp_path, "npy", ("t_us", "x", "y", "p"), 1000))
    assert "1000" in told and "'t_us', 'x'" in told and str(tmp_path) not in told


def test_texts_tell_their_columns_by_names_options_or_seconds(tmp_path):
    path = tmp_path / "a.txt"
    want = {"x": [3, 4], "y": [5, 6], "p": [0, 1], "t_us": [1_500_000, 2_000_000]}
    for text, options in (
        ("t_us,x,y,p\n1500000,3,5,0\n2000000,4,6,1\n", ()),
        ("% sensor\nx y p t\n3 5 0 1500\n4 6 1 2000", (FIELDS, 1000)),
        ("1500 0 3 5\n2000 1 4 6\n", (("t_us", "p", "x", "y"), 1000)),
        ("3\t5\t0\t1500000\n\n4\t6\t1\t2000000\n", ()),
        ("1.5 3 5 0 # first\n2.0 4 6 1\n", ()),
        ("# Küche\n3.0e0 5.0e0 0.0e0 1.5e6\n4.0e0 6.0e0 1.0e0 2.0e6\n", ()),  # as np.savetxt
        ("\ufefft x y p\n1500000 3 5 0\n2000000 4 6 1\n", ()),
    ):
        path.write_text(text, "utf-8")
        found = read_txt(path, *options).events
        assert {name: column.tolist() for name, column in found.items()} == want
    path.write_text("0 3 5 0\n0.25 4 6 1\n")  # a first time that is whole
    assert read_txt(path).events["t_us"].tolist() == [0, 250_000]
    assert read_txt(path, FIELDS, 1000).events["t_us"].tolist() == [0, 250], "unit=ms is kept"
    for text, words in (
        ("1 2 3\n", r"needed is \[N, 4\]"), ("1 2 3 4\n1 2\n", "its lines cannot be read"),
        ("a b c d\n1 2 3 4\n", "no field 'x'; found: 'a', 'b'"), ("1 2 3 x\n", "cannot be read"),
        ("One of a camera\n", "no field 'x'; found: 'One'"),
        ("x y p t q\n1 2 3 4\n", "q' over lines of 4"),
        ("<html>", "no text of events but an HTML"), ("\0\1", "no text of events but unknown"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            read_txt(path)


def test_the_columns_xs_of_hdf5_have_seconds(tmp_path):
    import h5py

    for kind, times in (("f8", [0.5, 1.25]), ("i8", [500_000, 1_250_000])):
        with h5py.File(tmp_path / "a.h5", "w") as store:
            for name, values in (("xs", [1, 2]), ("ys", [3, 4]), ("ps", [0, 1])):
                store[f"events/{name}"] = np.array(values, "i2")
            store["events/ts"] = np.array(times, kind)
        found = read_hdf5(tmp_path / "a.h5").events
        assert found["t_us"].tolist() == [500_000, 1_250_000] and found["y"].tolist() == [3, 4]
        milli = read_hdf5(tmp_path / "a.h5", 1000).events["t_us"]
        assert milli.tolist() == [round(1000 * time) for time in times], "unit=ms is kept"


@pytest.mark.parametrize("form", ["npy", "npz", "h5", "txt"])
@pytest.mark.parametrize("names", ["x y polarity timestamp", "x y pol ts", "X y p timestamps"])
def test_fields_that_others_name_in_their_way_are_found(files, tmp_path, form, names):
    events = files.some_events(200)
    own = names.replace("X", "xs").split()
    columns = dict(zip(own, (events[n].astype("i8") for n in FIELDS), strict=True))
    path = tmp_path / f"a.{form}"
    if form == "npy":
        rows = np.empty(len(events), [(name, "i8") for name in own])
        for name, column in columns.items():
            rows[name] = column
        np.save(path, rows)
    elif form == "npz":
        np.savez(path, **columns, label=np.int64(3))
    elif form == "h5":
        with pytest.importorskip("h5py").File(path, "w") as store:
            for name, column in columns.items():
                store[f"events/{name}"] = column
    else:
        lines = [
            "\t".join(own),
            *(" ".join(map(str, row)) for row in zip(*columns.values(), strict=True)),
        ]
        path.write_text("\n".join(lines))
    found = columns_of(FileReader(tmp_path, "auto")(Sample(path.name)).events, path.name)
    for name in FIELDS:
        assert (found[name] == events[name]).all(), name
