from __future__ import annotations

import warnings

import numpy as np
import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.formats import read_bin


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
