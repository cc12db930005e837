from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from spikeformer_lt.datasets import ncaltech101 as module
from spikeformer_lt.errors import DataError
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.registry import create_dataset

REPORT = EventOptions(T=4, incomplete="report", cache="none")


def put(files, home, classes=3, count=20):
    seed = 0
    for k in range(classes):
        for i in range(1, count + 1):
            seed += 1
            events = files.some_events(60 + seed, 180, 240, 300_000, seed)
            files.write_bin(home / f"class{k}" / f"image_{i:04d}.bin", events)


def test_classes_are_the_folders_and_the_last_tenth_of_each_is_the_test(files, tmp_path):
    put(files, tmp_path / "Caltech101")
    splits = create_dataset("ncaltech101", root=str(tmp_path), events=REPORT)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [48, 6, 6]
    assert splits.train.classes == ("class0", "class1", "class2")
    assert [s.path for s in splits.test.samples[:2]] == [
        "class0/image_0019.bin", "class0/image_0020.bin"
    ]  # fmt: skip
    events, report = splits.test.events(0)
    assert np.array_equal(events, files.some_events(79, 180, 240, 300_000, 19))
    assert report.faults == {} and splits.test[0][0].shape == (4, 2, 240, 240)


def test_recordings_are_scaled_down_without_losing_an_event(files, tmp_path):
    put(files, tmp_path / "Caltech101")
    splits = create_dataset("ncaltech101", root=str(tmp_path), image_size=48, events=REPORT)
    frames, _ = splits.test[0]
    assert frames.shape == (4, 2, 48, 48) and frames.sum() == 79
    rows = frames.sum((0, 1, 3)).nonzero().flatten()
    assert rows.min() >= 6 and rows.max() < 42  # 180 of 240 rows, in the middle


def test_an_incomplete_set_is_refused(files, tmp_path):
    put(files, tmp_path / "Caltech101", count=3)
    with pytest.raises(DataError, match="ncaltech101 has 3 classes of 101"):
        create_dataset("ncaltech101", root=str(tmp_path))


@pytest.mark.parametrize("name", ["N-Caltech101-archive.zip", "Caltech101.zip"])
@pytest.mark.parametrize("nested", [True, False])
def test_the_archive_is_unpacked_with_or_without_a_zip_inside(
    files, tmp_path, monkeypatch, name, nested
):
    put(files, tmp_path / "made" / "Caltech101")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for file in sorted((tmp_path / "made").rglob("*.bin")):
            packed.write(file, file.relative_to(tmp_path / "made"))
    data = buffer.getvalue()
    if nested:
        outer = io.BytesIO()
        with zipfile.ZipFile(outer, "w") as packed:
            packed.writestr("N-Caltech101-archive/Caltech101.zip", data)
        data = outer.getvalue()
    root = tmp_path / "root"
    root.mkdir()
    (root / name).write_bytes(data)
    made = replace(module.ARCHIVE, md5=hashlib.md5(data).hexdigest())
    monkeypatch.setattr(module, "ARCHIVE", made)
    splits = create_dataset("ncaltech101", root=str(root), events=REPORT)
    assert len(splits.test) == 6


def test_a_missing_set_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match="66201824eabb0239c7ab992480b50ba3"):
        create_dataset("ncaltech101", root=str(tmp_path))
