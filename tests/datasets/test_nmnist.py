from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from spikeformer_lt.datasets import nmnist as module
from spikeformer_lt.errors import DataError
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.registry import create_dataset

REPORT = EventOptions(T=4, incomplete="report", cache="none")


def put(files, home, train=10, test=2):
    seed = 0
    for part, count in (("Train", train), ("Test", test)):
        for digit in range(10):
            for _ in range(count):
                seed += 1
                path = home / part / str(digit) / f"{seed:05d}.bin"
                files.write_bin(path, files.some_events(60 + seed, 34, 34, 300_000, seed))


@pytest.mark.parametrize("place", ["NMNIST", "N-MNIST", "", "x/NMNIST"])
def test_the_folders_are_found_where_users_put_them(files, tmp_path, place):
    put(files, tmp_path / place)
    splits = create_dataset("nmnist", root=str(tmp_path), events=REPORT)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [90, 10, 20]
    assert (splits.num_classes, splits.image_size) == (10, 34)
    events, _ = splits.test.events(0)
    assert splits.test.samples[0].path == "Test/0/00101.bin"
    assert np.array_equal(events, files.some_events(161, 34, 34, 300_000, 101))
    assert splits.test[0][0].sum() == 161
    assert files.same_from_files(splits)


@pytest.mark.fault(26)
def test_the_published_counts_are_asked_for_class_by_class(files, tmp_path):
    put(files, tmp_path, train=1, test=1)
    with pytest.raises(
        DataError, match="nmnist Train has 10 recordings of 60000: 0 1 of 5923, 1 1"
    ):
        create_dataset("nmnist", root=str(tmp_path))
    assert [sum(counts) for counts in module.COUNTS.values()] == [60_000, 10_000]


def test_both_archives_are_unpacked_under_either_name(files, tmp_path, monkeypatch):
    put(files, tmp_path / "made")
    archives = []
    for archive in module.ARCHIVES:
        path = tmp_path / archive.name.lower()
        with zipfile.ZipFile(path, "w") as packed:
            part = archive.name.removesuffix(".zip")
            for file in sorted((tmp_path / "made" / part).rglob("*.bin")):
                packed.write(file, file.relative_to(tmp_path / "made"))
        archives.append(replace(archive, md5=hashlib.md5(path.read_bytes()).hexdigest()))
    monkeypatch.setattr(module, "ARCHIVES", tuple(archives))
    root = tmp_path / "root"
    root.mkdir()
    for archive in archives:
        (tmp_path / archive.name.lower()).rename(root / archive.name.lower())
    splits = create_dataset("nmnist", root=str(root), events=REPORT)
    assert len(splits.test) == 20 and (root / "NMNIST" / "Train").is_dir()


def test_a_missing_set_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match="20959b8e626244a1b502305a9e6e2031") as caught:
        create_dataset("nmnist", root=str(tmp_path))
    assert "Train.zip" in str(caught.value) and "--data.download" in str(caught.value)
