from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.aedat import read_aedat31


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


def refusal(path):
    try:
        assert len(read_aedat31(path).events) in (0, 4, 8, 10)
    except DataError as fault:
        return str(fault)
    return ""


def test_every_cut_is_one_error_that_names_the_file_or_falls_between_packets(files, tmp_path):
    path = tmp_path / "a.aedat"
    files.write_aedat31(path, files.some_events(10), packet=4)
    whole = path.read_bytes()
    clean = 0
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        message = refusal(path)
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
def test_an_impossible_packet_is_refused_before_anything_is_allocated(files, tmp_path, header):
    path = tmp_path / "a.aedat"
    path.write_bytes(files.AEDAT31_HEADER + struct.pack("<hhiiiiii", *header) + bytes(40))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"a\.aedat.*packet at byte \d+ is impossible"):
        read_aedat31(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


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


def test_a_stretch_of_a_long_file_takes_the_memory_of_the_stretch(files, tmp_path):
    path = tmp_path / "a.aedat"
    files.write_aedat31(path, files.some_events(300_000), packet=4096)
    tracemalloc.start()
    read_aedat31(path, 0, 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4


def test_aedat_2_in_its_place_is_called_that(files, tmp_path):
    files.write_aedat2(tmp_path / "a.aedat", files.some_events(5))
    with pytest.raises(DataError, match=r"not an AEDAT 3\.1 file but AEDAT of version '2\.0'"):
        read_aedat31(tmp_path / "a.aedat")
