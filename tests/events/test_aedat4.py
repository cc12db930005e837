from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.aedat import read_aedat4


def test_a_file_comes_back_event_for_event(files, tmp_path):
    pytest.importorskip("aedat", reason="the optional package aedat is not installed")
    events = files.some_events(1000)
    events["t_us"] += 1_600_000_000_000_000  # DV writes the time of day
    files.write_aedat4(tmp_path / "a.aedat4", events)
    assert np.array_equal(read_aedat4(tmp_path / "a.aedat4").events, events)


def refusal(path):
    try:
        assert len(read_aedat4(path).events) <= 100
    except DataError as fault:
        return str(fault)
    return ""


def test_every_cut_and_any_garbage_is_one_error_that_names_the_file(files, tmp_path):
    pytest.importorskip("aedat", reason="the optional package aedat is not installed")
    path = tmp_path / "a.aedat4"
    files.write_aedat4(path, files.some_events(100), packet=40)
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
        assert not message or "a.aedat4" in message
        refused += bool(message)
    assert refused > len(whole) // 11


def test_other_files_are_called_what_they_are_without_the_package(tmp_path):
    path = tmp_path / "a.aedat4"
    for content, words in ((b"", "is empty"), (b"<html>", "an HTML or XML page"), (b"abc", "text")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_aedat4(path)


def test_what_the_package_would_end_the_process_for_is_refused_before(files, tmp_path, monkeypatch):
    path = tmp_path / "a.aedat4"
    files.write_aedat4(path, files.some_events(100), packet=40)
    whole = bytearray(path.read_bytes())
    monkeypatch.setitem(sys.modules, "aedat", None)  # it is not even asked
    header = int.from_bytes(whole[14:18], "little")
    for place, words in ((18 + header + 7, "breaks off"), (17, "breaks off"), (400, "is no text")):
        hit = bytearray(whole)
        hit[place] ^= 0x80
        path.write_bytes(hit)
        with pytest.raises(DataError, match=rf"a\.aedat4.*{words}"):
            read_aedat4(path)


def test_a_missing_package_is_an_instruction(files, tmp_path, monkeypatch):
    files.write_aedat4(tmp_path / "a.aedat4", files.some_events(5))
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(DataError, match=r"pip install 'spikeformer_lt\[aedat\]'"):
        read_aedat4(tmp_path / "a.aedat4")


class PanicException(BaseException):
    """As pyo3's, which is no Exception."""


def stand_in(monkeypatch, decoder):
    module = types.ModuleType("aedat")
    module.Decoder = decoder
    monkeypatch.setitem(sys.modules, "aedat", module)


def test_a_panic_of_the_compiled_package_is_an_error_and_a_ctrl_c_is_not(
    files, tmp_path, monkeypatch
):
    files.write_aedat4(tmp_path / "a.aedat4", files.some_events(5))

    def panic(path):
        raise PanicException("range end index 8 out of range\nfor slice of length 4")

    stand_in(monkeypatch, panic)
    with pytest.raises(DataError, match=r"a\.aedat4.*PanicException.*range end index") as caught:
        read_aedat4(tmp_path / "a.aedat4")
    assert "\n" not in str(caught.value)

    def interrupt(path):
        raise KeyboardInterrupt

    stand_in(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        read_aedat4(tmp_path / "a.aedat4")


def test_the_first_stream_of_events_is_read_and_others_are_not(files, tmp_path, monkeypatch):
    kind = [("t", "<i8"), ("x", "<u2"), ("y", "<u2"), ("on", "?")]
    rows = np.array([(5, 1, 2, True), (6, 3, 4, False)], kind)

    class Decoder:
        streams = {0: {"type": "frame"}, 2: {"type": "events"}, 1: {"type": "events"}}  # noqa: RUF012

        def __init__(self, path):
            pass

        def id_to_stream(self):
            return self.streams

        def __iter__(self):
            yield {"stream_id": 0, "frame": None}
            yield {"stream_id": 1, "events": rows}
            yield {"stream_id": 2, "events": rows[:1]}

    files.write_aedat4(tmp_path / "a.aedat4", files.some_events(5))
    stand_in(monkeypatch, Decoder)
    assert read_aedat4(tmp_path / "a.aedat4").events.tolist() == [(1, 2, 1, 5), (3, 4, 0, 6)]
    Decoder.streams = {0: {"type": "frame"}}
    with pytest.raises(DataError, match="has no stream of events"):
        read_aedat4(tmp_path / "a.aedat4")
