from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from spikeformer_lt.datasets import cifar10_dvs as module
from spikeformer_lt.errors import DataError
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.registry import create_dataset

REPORT = EventOptions(T=4, incomplete="report", cache="none")


def put(files, home, suffix, count=10):
    write = {"aedat": files.write_aedat2, "aedat4": files.write_aedat4}[suffix]
    seed = 0
    for name in module.CLASSES:
        for i in range(count):
            seed += 1
            events = files.some_events(60 + seed, seed=seed)
            write(home / name / f"cifar10_{name}_{i}.{suffix}", events)


def test_the_original_is_read_upright_in_the_fields_split(files, tmp_path):
    put(files, tmp_path / "CIFAR10DVS", "aedat", 20)
    splits = create_dataset("cifar10_dvs", root=str(tmp_path), events=REPORT)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [160, 20, 20]
    assert torch.bincount(splits.test.labels).tolist() == [2] * 10
    assert splits.train.classes[0] == "airplane" and splits.augment == "spikformer_dvs"
    # Sorted by characters: of 0 to 19 the last two are 8 and 9.
    assert [s.path for s in splits.test.samples[:2]] == [
        "airplane/cifar10_airplane_8.aedat", "airplane/cifar10_airplane_9.aedat"
    ]  # fmt: skip
    events, report = splits.test.events(0)
    straight = files.some_events(69, seed=9)
    assert report.faults == {} and np.array_equal(events["t_us"], straight["t_us"])
    assert np.array_equal(events["x"], 127 - straight["y"])
    assert np.array_equal(events["y"], 127 - straight["x"])
    assert np.array_equal(events["p"], 1 - straight["p"])
    assert files.same_from_files(splits)


def test_half_the_size_keeps_every_event(files, tmp_path):
    put(files, tmp_path, "aedat")
    splits = create_dataset("cifar10_dvs", root=str(tmp_path), image_size=64, events=REPORT)
    frames, _ = splits.test[0]
    assert frames.shape == (4, 2, 64, 64) and frames.sum() == splits.test.events(0)[1].kept


def test_tonics_files_are_read(files, tmp_path):
    put(files, tmp_path, "aedat4")
    splits = create_dataset("cifar10_dvs", root=str(tmp_path), events=REPORT)
    assert len(splits.test) == 10
    events, _ = splits.test.events(0)
    assert np.array_equal(events, files.some_events(70, seed=10))
    assert files.same_from_files(splits)


@pytest.mark.fault(26)
def test_two_kinds_two_places_missing_classes_and_files_are_refused(files, tmp_path):
    put(files, tmp_path, "aedat", 10)
    with pytest.raises(DataError, match="100 recordings of 10000: airplane 10 of 1000"):
        create_dataset("cifar10_dvs", root=str(tmp_path))
    extra = tmp_path / "bird" / "x.aedat4"
    files.write_aedat4(extra, files.some_events(5))
    with pytest.raises(DataError, match="both AEDAT 2 files .* and AEDAT 4 files"):
        create_dataset("cifar10_dvs", root=str(tmp_path), events=REPORT)
    extra.unlink()
    (tmp_path / "other").mkdir()
    (tmp_path / "truck").rename(tmp_path / "other" / "truck")
    with pytest.raises(DataError, match="the folders of the classes lie in"):
        create_dataset("cifar10_dvs", root=str(tmp_path), events=REPORT)


@pytest.mark.parametrize("tonic", [False, True])
def test_archives_of_either_source_are_unpacked(files, tmp_path, monkeypatch, tonic):
    put(files, tmp_path / "made", "aedat", 3)
    inner = {}
    for name in module.CLASSES:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as packed:
            for file in sorted((tmp_path / "made" / name).iterdir()):
                packed.write(file, f"{name}/{file.name}")
        inner[f"{name}.zip"] = buffer.getvalue()
    root = tmp_path / "root"
    root.mkdir()
    if tonic:
        with zipfile.ZipFile(root / "CIFAR10DVS.zip", "w") as packed:
            for name, data in inner.items():
                packed.writestr(name, data)
        md5 = hashlib.md5((root / "CIFAR10DVS.zip").read_bytes()).hexdigest()
        monkeypatch.setattr(module, "TONIC", replace(module.TONIC, md5=md5))
    else:
        for name, data in inner.items():
            (root / name).write_bytes(data)
        archives = [replace(a, md5=hashlib.md5(inner[a.name]).hexdigest()) for a in module.ORIGINAL]
        monkeypatch.setattr(module, "ORIGINAL", tuple(archives))
    options = EventOptions(T=4, incomplete="report", cache="none")
    splits = create_dataset("cifar10_dvs", root=str(root), val_fraction=0.4, events=options)
    assert sum(len(p) for p in (splits.train, splits.val)) == 30 and len(splits.test) == 0


def test_a_missing_set_names_all_ten_archives_and_the_working_address(tmp_path):
    with pytest.raises(DataError) as caught:
        create_dataset("cifar10_dvs", root=str(tmp_path))
    assert all(f"{name}.zip" in str(caught.value) for name in module.CLASSES)
    urls = {a.url for a in (*module.ORIGINAL, module.TONIC)}
    assert len(urls) == 11
    assert all(url.startswith("https://api.figshare.com/v2/file/download/") for url in urls)
