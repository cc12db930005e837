from __future__ import annotations

import pytest

from spikeformer_lt.errors import DataError
from spikeformer_lt.events import split
from spikeformer_lt.events.split import Sample, find_shared


def put(tmp_path, contents):
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)


def test_the_same_bytes_in_two_parts_are_found_and_in_one_part_are_not(tmp_path):
    long = bytes(5000)
    put(
        tmp_path,
        {
            "a": b"one", "b": b"one", "c": b"two", "d": b"one",
            "e": long + b"1", "f": long + b"2", "g": long + b"1",
        },
    )  # fmt: skip
    parts = {
        "train": [Sample("a"), Sample("b"), Sample("e")],
        "test": [Sample("c"), Sample("d"), Sample("f"), Sample("g")],
    }
    assert find_shared(tmp_path, parts) == [("a", "d"), ("e", "g")]
    assert find_shared(tmp_path, {"train": parts["train"]}) == []


def test_only_files_of_one_size_and_one_beginning_are_read_whole(tmp_path, monkeypatch):
    put(tmp_path, {"a": b"1", "b": b"22", "c": b"x" * 9000, "d": b"y" * 9000, "e": b"y" * 9000})
    read = []
    whole = split._hash

    def told(path, length):
        if length is None:
            read.append(path.name)
        return whole(path, length)

    monkeypatch.setattr(split, "_hash", told)
    samples = [Sample(name) for name in "abcde"]
    assert find_shared(tmp_path, {"train": samples[:4], "test": samples[4:]}) == [("d", "e")]
    assert read == ["d", "e"]


def test_stretches_of_one_file_are_no_copies(tmp_path):
    put(tmp_path, {"a": b"1"})
    parts = {"train": [Sample("a", 0, 5)], "val": [Sample("a", 5, 9)]}
    assert find_shared(tmp_path, parts) == []


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*gone.*No such file"):
        find_shared(tmp_path, {"train": [Sample("gone")]})
