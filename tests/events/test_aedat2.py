from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events import aedat
from spikeformer_lt.events.aedat import as_cifar10_dvs, read_aedat2


def test_a_file_comes_back_event_for_event_whatever_the_chunk(files, tmp_path, monkeypatch):
    events = files.some_events(1000)
    files.write_aedat2(tmp_path / "a.aedat", events)
    for chunk in (7, 1000, 1 << 18):
        monkeypatch.setattr(aedat, "_CHUNK", chunk)
        raw = read_aedat2(tmp_path / "a.aedat")
        assert np.array_equal(raw.events, events) and raw.skipped == {}


def test_sync_pulses_are_no_events_and_are_counted(files, tmp_path):
    events = files.some_events(100)
    files.write_aedat2(tmp_path / "a.aedat", events, special=(0, 50, 99))
    raw = read_aedat2(tmp_path / "a.aedat")
    assert np.array_equal(raw.events, np.delete(events, [0, 50, 99]))
    assert raw.skipped == {"special": 3}


def test_a_recording_over_the_clocks_restart_keeps_its_times(files, tmp_path):
    events = files.some_events(100)
    events["t_us"] += 2**32 - 500_000
    files.write_aedat2(tmp_path / "a.aedat", events)
    assert np.array_equal(read_aedat2(tmp_path / "a.aedat").events["t_us"], events["t_us"])


def test_a_first_byte_like_a_comment_sign_would_need_a_larger_address(files, tmp_path):
    # Addresses of a DVS128 begin with two zero bytes, so that no event looks like a comment.
    events = files.some_events(1)
    events[0] = (127, 127, 1, 0x23232323)
    files.write_aedat2(tmp_path / "a.aedat", events)
    assert read_aedat2(tmp_path / "a.aedat").events.tolist() == [(127, 127, 1, 0x23232323)]


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


def test_reading_takes_less_than_three_times_the_file(files, tmp_path):
    path = tmp_path / "a.aedat"
    files.write_aedat2(path, files.some_events(400_000))
    tracemalloc.start()
    read_aedat2(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The chunk's own arrays come on top; they do not grow with the file.
    assert peak < 3 * path.stat().st_size + 40 * aedat._CHUNK


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
