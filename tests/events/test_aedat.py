from __future__ import annotations

import struct
import sys
import warnings

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.aedat import (
    as_cifar10_dvs,
    read_aedat2,
    read_aedat4,
    read_aedat31,
    write_aedat31,
)


def test_an_aedat_2_file_comes_back_event_for_event(files, tmp_path):
    for count in (0, 1, 1000):
        events = files.some_events(count)
        files.write_aedat2(tmp_path / "a.aedat", events)
        raw = read_aedat2(tmp_path / "a.aedat")
        assert np.array_equal(raw.events, events) and raw.skipped == {}


def test_sync_pulses_are_no_events_and_are_counted(files, tmp_path):
    events = files.some_events(100)
    files.write_aedat2(tmp_path / "a.aedat", events, special=(0, 50, 99))
    raw = read_aedat2(tmp_path / "a.aedat")
    assert np.array_equal(raw.events, np.delete(events, [0, 50, 99]))
    assert raw.skipped == {"special": 3}


@pytest.mark.fault(21)
def test_a_recording_over_the_clocks_restart_keeps_its_times(files, tmp_path):
    events = files.some_events(100)
    events["t_us"] += 2**32 - 500_000
    events[[40, 60]] = events[[60, 40]]  # out of order around the restart
    files.write_aedat2(tmp_path / "a.aedat", events)
    assert np.array_equal(read_aedat2(tmp_path / "a.aedat").events["t_us"], events["t_us"])


def test_a_first_byte_like_a_comment_sign_would_need_a_larger_address(files, tmp_path):
    # Addresses of a DVS128 begin with two zero bytes, so that no event looks like a comment.
    events = files.some_events(1)
    events[0] = (127, 127, 1, 0x23232323)
    files.write_aedat2(tmp_path / "a.aedat", events)
    assert read_aedat2(tmp_path / "a.aedat").events.tolist() == [(127, 127, 1, 0x23232323)]


@pytest.mark.fault(24)
def test_truncated_foreign_and_empty_files_are_one_clear_error(files, tmp_path):
    path = tmp_path / "a.aedat"
    files.write_aedat2(path, files.some_events(10))
    whole = path.read_bytes()
    start = len(files.AEDAT2_HEADER)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        if cut >= start and (cut - start) % 8 == 0:
            assert len(read_aedat2(path).events) == (cut - start) // 8
            continue
        if 13 < cut < start and whole[cut - 1 : cut] == b"\n":
            assert len(read_aedat2(path).events) == 0  # a header of fewer lines is a header
            continue
        with pytest.raises(DataError, match=r"a\.aedat"):
            read_aedat2(path)
    path.write_bytes(files.AEDAT2_HEADER + b"\x00\x40\x00\x00" + bytes(4))
    with pytest.raises(DataError, match="event 0 has the address 0x400000: not a DVS128 camera"):
        read_aedat2(path)


def test_reading_takes_less_than_ten_times_the_file(files, tmp_path, traced):
    path = tmp_path / "a.aedat"
    files.write_aedat2(path, files.some_events(400_000))
    with traced() as peak:
        read_aedat2(path)
    assert peak.bytes < 10 * path.stat().st_size


def test_upright_cifar10_dvs_swaps_the_axes_counts_from_the_other_end_and_turns_the_sign(
    files, tmp_path
):
    events = files.some_events(3)
    events[0], events[1], events[2] = (0, 0, 0, 1), (127, 0, 1, 2), (5, 20, 1, 3)
    files.write_aedat2(tmp_path / "a.aedat", events)
    raw = read_aedat2(tmp_path / "a.aedat")
    turned = as_cifar10_dvs(raw)
    assert turned.events.tolist() == [(127, 127, 1, 1), (127, 0, 0, 2), (107, 122, 0, 3)]
    assert np.array_equal(raw.events, events)
    assert np.array_equal(as_cifar10_dvs(turned).events, events)


def test_a_file_comes_back_event_for_event_with_other_packets_passed_over(files, tmp_path):
    events = files.some_events(1000)
    for packet, other in ((1, False), (300, True), (5000, True)):
        files.write_aedat31(tmp_path / "a.aedat", events, packet=packet, other=other)
        raw = read_aedat31(tmp_path / "a.aedat")
        assert np.array_equal(raw.events, events) and raw.skipped == {}


def test_events_marked_invalid_are_counted_not_read(files, tmp_path):
    events = files.some_events(100)
    files.write_aedat31(tmp_path / "a.aedat", events, invalid=(0, 7, 99))
    raw = read_aedat31(tmp_path / "a.aedat")
    assert np.array_equal(raw.events, np.delete(events, [0, 7, 99]))
    assert raw.skipped == {"invalid": 3}


def test_the_headers_count_of_restarts_is_the_high_part_of_the_time(files, tmp_path):
    events = files.some_events(500)
    events["t_us"] += 3 * 2**31 - 500_000
    files.write_aedat31(tmp_path / "a.aedat", events)
    assert np.array_equal(read_aedat31(tmp_path / "a.aedat").events, events)


def test_a_stretch_has_its_beginning_and_not_its_end(files, tmp_path):
    events = files.some_events(1000)
    files.write_aedat31(tmp_path / "a.aedat", events)
    t = events["t_us"]
    for start, end in (
        (0, 2**40),
        (200_000, 500_000),
        (int(t[5]), int(t[9])),
        (2_000_000, 3_000_000),
    ):
        expected = events[(t >= start) & (t < end)]
        assert np.array_equal(read_aedat31(tmp_path / "a.aedat", start, end).events, expected)


def refusal31(path):
    try:
        assert len(read_aedat31(path).events) in (0, 4, 8, 10)
    except DataError as fault:
        return str(fault)
    return ""


@pytest.mark.fault(24)
def test_every_cut_is_one_error_that_names_the_file_or_falls_between_packets(files, tmp_path):
    path = tmp_path / "a.aedat"
    files.write_aedat31(path, files.some_events(10), packet=4)
    whole = path.read_bytes()
    clean = 0
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        message = refusal31(path)
        clean += not message
        assert not message or ("a.aedat" in message and "\n" not in message)
    # After each line of the header but within the first, and after 5 of 6 packets.
    assert clean == len(files.AEDAT31_HEADER.splitlines()) + 5


@pytest.mark.parametrize(
    "header",
    [
        (1, 1, 8, 4, 0, -1, 0, 0),
        (1, 1, 8, 4, 0, 5, 6, 6),
        (1, 1, 0, 4, 0, 5, 5, 5),
        (1, 1, 12, 4, 0, 5, 5, 5),
        (1, 1, 8, 4, -1, 5, 5, 5),
        (-1, 1, 8, 4, 0, 5, 5, 5),
        (3, 1, 2**30, 4, 0, 2**30, 1, 1),
    ],
)
def test_an_impossible_packet_is_refused_before_anything_is_allocated(
    files, tmp_path, traced, header
):
    path = tmp_path / "a.aedat"
    path.write_bytes(files.AEDAT31_HEADER + struct.pack("<hhiiiiii", *header) + bytes(40))
    refused = pytest.raises(DataError, match=r"a\.aedat.*packet at byte \d+ is impossible")
    with traced() as peak, refused:
        read_aedat31(path)
    assert peak.bytes < 1_000_000


def test_garbage_after_the_header_is_an_error_or_events_never_a_crash(files, tmp_path):
    path = tmp_path / "a.aedat"
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        path.write_bytes(files.AEDAT31_HEADER + rng.bytes(int(rng.integers(1, 200))))
        with pytest.raises(DataError, match=r"a\.aedat"):
            read_aedat31(path)
        refused += 1
    assert refused == 200


def test_a_stretch_of_a_long_file_takes_the_memory_of_the_stretch(files, tmp_path, traced):
    path = tmp_path / "a.aedat"
    files.write_aedat31(path, files.some_events(300_000), packet=4096)
    with traced() as peak:
        read_aedat31(path, 0, 10_000)
    assert peak.bytes < path.stat().st_size / 4


def test_aedat_2_in_its_place_is_called_that(files, tmp_path):
    files.write_aedat2(tmp_path / "a.aedat", files.some_events(5))
    with pytest.raises(DataError, match=r"not an AEDAT 3\.1 file but AEDAT of version '2\.0'"):
        read_aedat31(tmp_path / "a.aedat")


@pytest.fixture(params=["none", "lz4", "zstd"])
def packing(request):
    if request.param != "none":
        package = {"lz4": "lz4.frame", "zstd": "zstandard"}[request.param]
        pytest.importorskip(package, reason=f"the optional package {package} is not installed")
    return request.param


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.fault(81)
def test_an_aedat_4_file_comes_back_event_for_event(files, tmp_path, packing, index):
    events = files.some_events(1000)
    events["t_us"] += 1_600_000_000_000_000  # DV writes the time of day
    files.write_aedat4(tmp_path / "a.aedat4", events, packing=packing, index=index)
    assert np.array_equal(read_aedat4(tmp_path / "a.aedat4").events, events)


@pytest.mark.fault(81)
def test_a_recording_of_inivations_own_writer_comes_back_event_for_event(tmp_path):
    dv = pytest.importorskip("dv_processing", reason="the package dv-processing is not installed")
    rng = np.random.default_rng(0)
    for packing in (dv.CompressionType.NONE, dv.CompressionType.LZ4, dv.CompressionType.ZSTD):
        config = dv.io.MonoCameraWriter.Config("DVXplorer_sample")
        config.addEventStream((640, 480))
        config.addFrameStream((640, 480))
        config.compression = packing
        writer = dv.io.MonoCameraWriter(str(tmp_path / "a.aedat4"), config)
        rows = []
        for k in range(5):
            store = dv.EventStore()
            for t in np.sort(rng.integers(0, 10_000, 300)).tolist():
                row = (int(rng.integers(640)), int(rng.integers(480)), bool(rng.integers(2)))
                rows.append((*row, 1_600_000_000_000_000 + 10_000 * k + t))
                store.push_back(rows[-1][3], *row)
            writer.writeEvents(store)
            writer.writeFrame(dv.Frame(rows[-1][3], np.full((480, 640), k, np.uint8)))
        del writer  # it writes the index
        assert read_aedat4(tmp_path / "a.aedat4").events.tolist() == rows


def refusal(path):
    try:
        assert len(read_aedat4(path).events) <= 100
    except DataError as fault:
        return str(fault)
    return ""


@pytest.mark.fault(24)
def test_every_cut_and_any_garbage_is_one_error_that_names_the_file(files, tmp_path, packing):
    path = tmp_path / "a.aedat4"
    files.write_aedat4(path, files.some_events(100), packet=40, packing=packing)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[:cut] for cut in range(0, len(whole), 11)]
    for _ in range(200):
        hit = bytearray(whole)
        hit[rng.integers(14, len(whole))] ^= 1 << rng.integers(8)
        broken.append(bytes(hit))
    refused = 0
    for content in broken:
        path.write_bytes(content)
        message = refusal(path)
        assert not message or ("a.aedat4" in message and "\n" not in message)
        refused += bool(message)
    assert refused > len(whole) // 11


@pytest.mark.parametrize("where", ["header", "packet", "vtable", "count", "string"])
@pytest.mark.fault(82)
def test_lengths_and_offsets_that_lead_out_are_refused_before_anything_is_allocated(
    files, tmp_path, traced, where
):
    path = tmp_path / "a.aedat4"
    files.write_aedat4(path, files.some_events(100), packet=40)
    whole = bytearray(path.read_bytes())
    end = 18 + int.from_bytes(whole[14:18], "little")  # of the header
    place = {"header": 14, "packet": end + 4, "vtable": 18 + 20, "count": end + 40, "string": 58}
    whole[place[where] : place[where] + 4] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(whole)
    with traced() as peak, pytest.raises(DataError, match=r"a\.aedat4"):
        read_aedat4(path)
    assert peak.bytes < 1_000_000


@pytest.mark.fault(82)
def test_a_packet_that_unpacks_to_far_more_than_its_size_is_refused(
    files, tmp_path, traced, packing
):
    if packing == "none":
        pytest.skip("nothing is packed")
    events = np.zeros(400_000, files.some_events(1).dtype)
    path = tmp_path / "bomb.aedat4"
    files.write_aedat4(path, events, packet=len(events), packing=packing)
    assert path.stat().st_size < 40_000
    refused = pytest.raises(DataError, match=r"bomb\.aedat4.*unpack to more than \d+")
    with traced() as peak, refused:
        read_aedat4(path)
    assert peak.bytes < 20_000_000


def test_other_files_are_called_what_they_are(tmp_path):
    path = tmp_path / "a.aedat4"
    for content, words in ((b"", "is empty"), (b"<html>", "an HTML or XML page"), (b"abc", "text")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_aedat4(path)


@pytest.mark.parametrize("package", ["lz4", "zstandard"])
def test_a_missing_package_is_an_instruction(files, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    files.write_aedat4(tmp_path / "a.aedat4", files.some_events(5), number=1 + 2 * (package > "m"))
    with pytest.raises(DataError, match=rf"{package}.*pip install 'spikeformer_lt\[aedat\]'"):
        read_aedat4(tmp_path / "a.aedat4")


def test_the_first_stream_of_events_is_read_and_others_are_not(files, tmp_path):
    events = files.some_events(90)
    files.write_aedat4(tmp_path / "a.aedat4", events, packet=30, streams=("FRME", "EVTS", "EVTS"))
    assert np.array_equal(read_aedat4(tmp_path / "a.aedat4").events, events[30:60])
    files.write_aedat4(tmp_path / "a.aedat4", events, streams=("FRME",))
    with pytest.raises(DataError, match="has no stream of events"):
        read_aedat4(tmp_path / "a.aedat4")


CHIPS = [
    ("eu.seebetter.ini.chips.davis.Davis346red", 346, 260),
    ("eu.seebetter.ini.chips.davis.DAVIS240C", 240, 180),
]


@pytest.mark.fault(81)
def test_an_event_that_begins_like_a_comment_is_an_event(files, tmp_path):
    """Row 140 of a DAVIS makes the first byte of an address a #."""
    events = files.some_events(300, 260, 346)
    events["y"][:3] = 140
    files.write_aedat2(tmp_path / "a.aedat", events, chip="davis.Davis346red")
    assert (tmp_path / "a.aedat").read_bytes().split(b"346red\r\n")[1].startswith(b"#")
    assert np.array_equal(read_aedat2(tmp_path / "a.aedat").events, events)


@pytest.mark.parametrize(("chip", "width", "height"), CHIPS)
@pytest.mark.fault(81)
def test_a_davis_recording_is_read_by_the_headers_chip(files, tmp_path, chip, width, height):
    events = files.some_events(300, height, width)
    files.write_aedat2(tmp_path / "a.aedat", events, chip=chip)
    raw = read_aedat2(tmp_path / "a.aedat")
    assert np.array_equal(raw.events, events) and raw.skipped == {}


def test_samples_of_a_davis_that_are_no_events_are_counted(files, tmp_path):
    events = files.some_events(30, 260, 346)
    files.write_aedat2(tmp_path / "a.aedat", events, chip="davis.Davis346B", special=(0, 7))
    raw = read_aedat2(tmp_path / "a.aedat")
    assert np.array_equal(raw.events, np.delete(events, [0, 7])) and raw.skipped == {"special": 2}


@pytest.mark.fault(81)
def test_another_chip_is_refused_by_its_name(files, tmp_path):
    files.write_aedat2(tmp_path / "a.aedat", files.some_events(5), chip="x.chips.CochleaAMS1c")
    with pytest.raises(DataError, match=r"its chip is 'CochleaAMS1c'; DVS128 and DAVIS cameras"):
        read_aedat2(tmp_path / "a.aedat")


def test_tonics_readers_give_the_same_but_for_its_turns(files, tmp_path):
    """tonic 1.7.0 turns a DAVIS upside down; of AEDAT 3.1 it still reads words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tonic import io
    events, path = files.some_events(500, 260, 346), tmp_path / "a.aedat"
    events["y"][0] = 0  # tonic takes a first byte of # for a comment
    files.write_aedat2(path, events, chip="eu.seebetter.ini.chips.davis.Davis346red")
    ours, theirs = read_aedat2(path).events, io.read_davis_346(path)[2]
    turned = {"x": 345 - theirs["x"], "y": 259 - theirs["y"], "p": theirs["p"]}
    for name, other in {**turned, "t_us": theirs["t"]}.items():
        assert np.array_equal(ours[name].astype(int), other.astype(int))
    files.write_aedat31(path, events, other=False)
    words = io.get_aer_events_from_file(path, 3.1, len(files.AEDAT31_HEADER))
    ours, address = read_aedat31(path).events, words["address"]
    found = {"x": address >> 17, "y": address >> 2 & 0x7FFF, "p": address >> 1 & 1}
    for name, other in {**found, "t_us": words["timeStamp"]}.items():
        assert np.array_equal(ours[name].astype(int), other.astype(int))


def test_packed_aedat_3_is_refused(files, tmp_path):
    files.write_aedat31(tmp_path / "a.aedat", files.some_events(5))
    whole = (tmp_path / "a.aedat").read_bytes()
    (tmp_path / "a.aedat").write_bytes(whole.replace(b"Format: RAW", b"Format: Serial-TS"))
    with pytest.raises(DataError, match="has the format 'Serial-TS'; RAW is read"):
        read_aedat31(tmp_path / "a.aedat")


@pytest.mark.parametrize("start", [0, 2**31 - 500_000])
def test_written_aedat31_is_as_another_writer_has_it_over_a_turn_of_the_clock(
    files, tmp_path, start
):
    events = files.some_events(9000)
    events["t_us"] += start
    write_aedat31(tmp_path / "ours.aedat", events, "a comment")
    files.write_aedat31(tmp_path / "theirs.aedat", events, packet=4096, other=False)
    ours, theirs = ((tmp_path / f"{who}.aedat").read_bytes() for who in ("ours", "theirs"))
    assert b"#a comment\r\n" in ours
    if not start:  # the other writer begins a packet of full length after a turn
        assert ours.split(b"#!END-HEADER\r\n")[1] == theirs.split(b"#!END-HEADER\r\n")[1]
    for who in ("ours", "theirs"):
        assert np.array_equal(read_aedat31(tmp_path / f"{who}.aedat").events, events)
    write_aedat31(tmp_path / "none.aedat", events[:0])
    assert len(read_aedat31(tmp_path / "none.aedat").events) == 0
