from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spikeformer_lt import registry
from spikeformer_lt.datasets import cifar
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import shared_images
from spikeformer_lt.published import PublishedFile

PER_CLASS = 30  # of the small sets that the tests write


def write_small(root, files, seed=0):
    """Write a small set in the true form and return its table of files."""
    generator = np.random.default_rng(seed)
    (root / files.folder).mkdir(parents=True)

    def written(file):
        count = PER_CLASS * files.num_classes // len(files.train)
        fine = [i % files.num_classes for i in range(count)]
        content = pickle.dumps(
            {
                b"batch_label": b"a batch",
                b"coarse_labels": [99] * count,
                files.label_key.encode(): fine,
                b"data": generator.integers(256, size=(count, 3072), dtype=np.uint8),
            },
            protocol=2,
        )
        (root / files.folder / file.name).write_bytes(content)
        return PublishedFile(file.name, len(content), hashlib.md5(content).hexdigest())

    return dataclasses.replace(
        files,
        train=tuple(written(file) for file in files.train),
        test=tuple(written(file) for file in files.test),
    )


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, tmp_path, monkeypatch):
    table = request.param.upper()
    patched = write_small(tmp_path, getattr(cifar, table))
    monkeypatch.setattr(cifar, table, patched)
    return request.param, tmp_path


def test_a_set_is_read_split_and_described(small):
    name, root = small
    classes = {"cifar10": 10, "cifar100": 100}[name]
    splits = registry.create_dataset(name, root=str(root))
    held = PER_CLASS // 10
    assert torch.bincount(splits.train.labels).tolist() == [PER_CLASS - held] * classes
    assert torch.bincount(splits.val.labels).tolist() == [held] * classes
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (classes, 3, 32)
    assert (splits.kind, splits.augment) == ("static", "spikformer_cifar")
    again = registry.create_dataset(name, root=str(root), image_size=32)
    assert again.split_sha256 == splits.split_sha256


def test_options_reach_the_splits(small):
    name, root = small
    full = registry.create_dataset(name, root=str(root))
    part = registry.create_dataset(
        name, root=str(root), limit_train=200, limit_test=40, val_fraction=0.2
    )
    assert (len(part.train), len(part.test)) == (200, 40)
    assert part.split_sha256 != full.split_sha256
    with pytest.raises(ConfigError, match="image_size=64"):
        registry.create_dataset(name, root=str(root), image_size=64)


@pytest.mark.fault(32)
def test_a_tampered_batch_is_refused_and_its_payload_does_not_run(small):
    name, root = small

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(root / "ran"),)

    (victim,) = (root / getattr(cifar, name.upper()).folder).glob("test*")
    victim.write_bytes(pickle.dumps({"data": Payload()}))
    with pytest.raises(DataError, match=r"test.*has md5 .*was not used"):
        registry.create_dataset(name, root=str(root))
    assert not (root / "ran").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_missing_set_says_what_to_put_where(tmp_path, name):
    files = getattr(cifar, name.upper())
    with pytest.raises(DataError) as caught:
        registry.create_dataset(name, root=str(tmp_path))
    text = str(caught.value)
    for file in (files.archive, *files.train, *files.test):
        assert f"{file.name} ({file.size} bytes, md5 {file.md5}" in text
    assert f"{name} is not in " in text
    assert "--data.name digits" in text


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_table_is_that_of_torchvision(name):
    import torchvision.datasets

    theirs = getattr(torchvision.datasets, name.upper())
    ours = getattr(cifar, name.upper())
    assert (ours.folder, ours.archive.url) == (theirs.base_folder, theirs.url)
    assert (ours.archive.name, ours.archive.md5) == (theirs.filename, theirs.tgz_md5)
    assert [[f.name, f.md5] for f in ours.train] == theirs.train_list
    assert [[f.name, f.md5] for f in ours.test] == theirs.test_list


def test_cifar_100_is_not_normalised_by_the_numbers_of_cifar_10():
    assert cifar.CIFAR100.mean == (0.5071, 0.4865, 0.4409)
    assert cifar.CIFAR100.std == (0.2673, 0.2564, 0.2762)


@pytest.fixture(scope="module")
def real_root(tmp_path_factory):
    """Give the folder of the real CIFAR-10: SPIKEFORMER_CIFAR10, or rebuilt from ../shared."""
    if named := os.environ.get("SPIKEFORMER_CIFAR10"):
        return Path(named)
    root = Path(__file__).resolve().parents[2].parent / "shared"
    rebuild = Path(os.environ.get("SPIKEFORMER_LT_SHARED", root)) / "data" / "restore_cifar10"
    if not rebuild.is_file():
        pytest.skip("no real CIFAR-10: set SPIKEFORMER_CIFAR10 to the folder that holds it")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(rebuild), str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.data
def test_the_real_cifar_10_is_read_whole(real_root, caplog):
    splits = registry.create_dataset("cifar10", root=str(real_root))
    assert torch.bincount(splits.train.labels).tolist() == [4500] * 10
    assert torch.bincount(splits.val.labels).tolist() == [500] * 10
    assert torch.bincount(splits.test.labels).tolist() == [1000] * 10
    assert splits.split_sha256 == (
        "e8322e92401fb047c9eb588788cbc5f3a7cb303c9b032b19c57af643f7b34100"
    )
    assert shared_images(splits.train, splits.test) == []
    assert caplog.records == []
    total = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        counts = sum(
            torch.bincount(part.images[:, channel].flatten(), minlength=256).double()
            for part in (splits.train, splits.val)
        )
        total[channel] = (counts * values).sum() / counts.sum()
        squares[channel] = (counts * values**2).sum() / counts.sum()
    assert torch.allclose(total, torch.tensor(splits.mean).double(), atol=5e-5)
    assert torch.allclose((squares - total**2).sqrt(), torch.tensor(splits.std).double(), atol=5e-5)


@pytest.mark.parametrize("files", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda files: files.name)
def test_each_class_has_its_name_in_the_published_order(files):
    """Both sets number their classes by the alphabet."""
    assert len(set(files.classes)) == files.num_classes
    assert sorted(files.classes) == list(files.classes)
