"""IDX files, written in their true form, damaged, and read."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.images.files import read_idx

VALUES = np.random.default_rng(0).integers(256, size=(3, 4, 5), dtype=np.uint8)


def idx(values: np.ndarray, kind: int = 8, sizes: tuple[int, ...] | None = None) -> bytes:
    shape = values.shape if sizes is None else sizes
    head = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + values.tobytes()


def read(path: Path, content: bytes, **options) -> torch.Tensor:
    path.write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    return read_idx(path, md5=md5, **{"dims": 3, **options})


def test_values_come_back_in_their_places(tmp_path: Path) -> None:
    found = read(tmp_path / "a.gz", gzip.compress(idx(VALUES)))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), VALUES)
    line = np.arange(7, dtype=np.uint8)
    assert read(tmp_path / "b.gz", gzip.compress(idx(line)), dims=1).tolist() == list(range(7))


def test_another_hash_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match=r"a\.gz.*has md5.*was not used"):
        read_idx(tmp_path / "a.gz", md5="0" * 32, dims=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(VALUES), "not a whole gzip file"),
        (gzip.compress(idx(VALUES))[:-9], "not a whole gzip file: it ends too soon"),
        (gzip.compress(idx(VALUES)) + b"more", "it goes on behind its end"),
        (gzip.compress(b""), "does not begin like one"),
        (gzip.compress(idx(VALUES)[:15]), "does not begin like one"),
        (gzip.compress(b"\1" + idx(VALUES)[1:]), "does not begin like one"),
        (gzip.compress(idx(VALUES, kind=13)), r"type 13 in 3 dimensions.*bytes \(type 8\) in 3"),
        (gzip.compress(idx(VALUES[0])), "in 2 dimensions"),
        (gzip.compress(idx(VALUES)[:-1]), r"sizes \[3, 4, 5\], 60 values, but holds 59"),
        (gzip.compress(idx(VALUES) + b"!"), "60 values, but holds 61"),
        (gzip.compress(idx(VALUES, sizes=(2**32 - 1,) * 3)), "but holds 60"),
        (gzip.compress(idx(VALUES[:0])), "0 values, but holds 0"),
        (gzip.compress(bytes(5000)), "unpacks to more than the 1000 bytes allowed"),
    ],
    ids=range(13),
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"images\.gz.*{message}"):
        read(tmp_path / "images.gz", content, max_bytes=1000)
