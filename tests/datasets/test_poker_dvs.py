from __future__ import annotations

import logging
import tarfile

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.registry import create_dataset

REPORT = EventOptions(T=4, incomplete="report", cache="none")
# Of the published recordings.
SHA256 = "e09869038f2bdf50142ee669fd1962932a055eaefb467dba05d3f2467deacb89"


@pytest.fixture
def root(files, tmp_path):
    seed = 0
    for part, count in (("train", 12), ("test", 5)):
        for label in ("cl", "he", "di", "sp"):
            for i in range(count):
                seed += 1
                events = files.some_events(60 + seed, 35, 35, 20_000, seed)
                path = tmp_path / f"pips_{part}" / label / f"{i}.npy"
                files.write_npy(path, events, columns=("t_us", "x", "y", "p"), dtype=np.uint64)
    return tmp_path


def test_a_whole_set_in_its_true_form_is_read_event_for_event(root, files):
    splits = create_dataset("poker_dvs", root=str(root), image_size=48)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [44, 4, 20]
    assert torch.bincount(splits.val.labels).tolist() == [1] * 4
    assert (splits.kind, splits.num_classes, splits.image_size) == ("events", 4, 48)
    assert splits.train.classes == ("cl", "he", "di", "sp")
    assert splits.split_sha256 == SHA256  # it is of the names, which are the published ones
    number = [s.path for s in splits.test.samples].index("pips_test/cl/0.npy")
    events, report = splits.test.events(number)
    assert np.array_equal(events, files.some_events(109, 35, 35, 20_000, 49))
    assert splits.test[number][0].sum() == 109 and report.faults == {}
    assert files.same_from_files(splits)


def test_a_file_more_or_less_is_an_error_with_counts_or_a_warning(root, caplog):
    (root / "pips_train/he/3.npy").unlink()
    with pytest.raises(DataError, match="47 recordings of 48: cl 12, he 11, di 12, sp 12"):
        create_dataset("poker_dvs", root=str(root))
    with caplog.at_level(logging.WARNING):
        create_dataset("poker_dvs", root=str(root), events=REPORT)
    assert "he 11" in caplog.text


def test_foreign_folders_are_refused_and_desktop_leavings_are_not(root):
    (root / "pips_train/.DS_Store").touch()
    (root / "pips_train/readme.txt").touch()
    create_dataset("poker_dvs", root=str(root), events=REPORT)
    (root / "pips_train/spades").mkdir()
    (root / "pips_train/spades/0.npy").touch()
    with pytest.raises(DataError, match=r"spades/0\.npy.* is no class"):
        create_dataset("poker_dvs", root=str(root), events=REPORT)


def test_a_missing_set_says_what_to_put_where(tmp_path):
    for download in (False, True):
        with pytest.raises(DataError, match="412bcfb96826e4fcb290558e8c150aae") as caught:
            create_dataset("poker_dvs", root=str(tmp_path), download=download)
        assert str(tmp_path) in str(caught.value) and "moving_digits" in str(caught.value)


def test_another_archive_of_that_name_is_not_unpacked(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for part in ("train", "test"):
        with tarfile.open(other / f"pips_{part}.tar.gz", "w:gz") as tar:
            tar.add(root / f"pips_{part}", f"pips_{part}")
    with pytest.raises(DataError, match=r"pips_train\.tar\.gz.* has md5"):
        create_dataset("poker_dvs", root=str(other))
    assert sorted(p.name for p in other.iterdir()) == ["pips_test.tar.gz", "pips_train.tar.gz"]


@pytest.mark.data
def test_the_published_archives_are_unpacked_and_read(shared, tmp_path):
    source = shared / "data" / "poker_dvs"
    if not source.is_dir():
        pytest.skip(f"no folder {source}")
    for archive in source.glob("*.tar.gz"):
        (tmp_path / archive.name).write_bytes(archive.read_bytes())
    splits = create_dataset("poker_dvs", root=str(tmp_path), image_size=32)
    assert splits.split_sha256 == SHA256
    total = 0
    for part in (splits.train, splits.val, splits.test):
        for i in range(len(part)):
            events, report = part.events(i)
            assert report.faults == {} and part[i][0].sum() == len(events)
            total += len(events)
    assert total == 207_416
