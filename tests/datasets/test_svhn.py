"""SVHN from small MATLAB files in the true form."""

from __future__ import annotations

import dataclasses
import hashlib
import io

import numpy as np
import pytest
import torch
from scipy.io import savemat

from spikeformer_lt import registry
from spikeformer_lt.datasets import svhn as module
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.published import PublishedFile

PER_CLASS = 20


def write(folder, name, content):
    (folder / name).write_bytes(content)
    return (PublishedFile(name, len(content), hashlib.md5(content).hexdigest()),)


def packed(**variables):
    file = io.BytesIO()
    savemat(file, variables, do_compression=True)
    return file.getvalue()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Give the root of a small set and its arrays."""
    folder = tmp_path / "svhn"
    folder.mkdir()
    generator = np.random.default_rng(0)
    arrays, tables = {}, {}
    for part in ("train", "test"):
        count = 10 * PER_CLASS
        pixels = generator.integers(256, size=(32, 32, 3, count), dtype=np.uint8)
        labels = (1 + np.arange(count) % 10).astype(np.uint8)[:, None]  # 10 is a zero
        arrays[part] = (pixels, labels)
        name = getattr(module.SVHN, part)[0].name
        tables[part] = write(folder, name, packed(X=pixels, y=labels))
    monkeypatch.setattr(module, "SVHN", dataclasses.replace(module.SVHN, **tables))
    return tmp_path, arrays


def test_the_set_is_read_split_and_described(small):
    root, arrays = small
    splits = registry.create_dataset("svhn", root=str(root))
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 3, 32)
    assert (splits.kind, splits.augment) == ("static", "crop4") and splits.mirror_changes_label
    assert torch.bincount(splits.val.labels).tolist() == [PER_CLASS // 10] * 10
    pixels, labels = arrays["test"]
    for index in (0, 9, 57):
        image, label = splits.test[index]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[..., index])
        assert label == labels[index, 0] % 10
    assert splits.test[9][1] == 0
    again = registry.create_dataset("svhn", root=str(root), image_size=32)
    assert again.split_sha256 == splits.split_sha256
    with pytest.raises(ConfigError, match="image_size=28.*svhn has images of 32"):
        registry.create_dataset("svhn", root=str(root), image_size=28)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_changed_file_is_refused_before_it_is_read(small, part):
    root, _ = small
    name = getattr(module.SVHN, part)[0].name
    path = root / "svhn" / name
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(DataError, match=rf"{name}.*has md5.*was not used"):
        registry.create_dataset("svhn", root=str(root))


X, Y = np.zeros((32, 32, 3, 2), np.uint8), np.ones((2, 1), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text, no matrix at all", "is not a MATLAB file"),
        (b"", "is not a MATLAB file"),
        (packed(X=X, y=Y)[:-40], "is not a MATLAB file"),
        (packed(y=Y), "'X' is no uint8 array"),
        (packed(X=X.astype(float), y=Y), "'X' is no uint8 array"),
        (packed(X=X[:28], y=Y), "'X' is no uint8 array"),
        (packed(X=X), "'y' is no array of 2 whole numbers"),
        (packed(X=X, y=np.ones((3, 1), np.uint8)), "'y' is no array of 2 whole numbers"),
        (packed(X=X, y=np.ones((2, 1))), "'y' is no array of 2 whole numbers"),
        (packed(X=X, y=np.array([[1], [11]], np.uint8)), "label 11 at index 1 is outside 1 to 10"),
        (packed(X=X, y=np.array([[0], [1]], np.uint8)), "label 0 at index 0 is outside 1 to 10"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(small, monkeypatch, content, message):
    root, _ = small
    part = write(root / "svhn", "test_32x32.mat", content)
    monkeypatch.setattr(module, "SVHN", dataclasses.replace(module.SVHN, test=part))
    with pytest.raises(DataError, match=rf"test_32x32\.mat.*{message}"):
        registry.create_dataset("svhn", root=str(root))


def test_a_missing_set_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError) as caught:
        registry.create_dataset("svhn", root=str(tmp_path))
    for file in module.SVHN.train + module.SVHN.test:
        assert f"{file.name} ({file.size} bytes, md5 {file.md5}, from {file.url})" in str(
            caught.value
        )


def test_the_table_is_that_of_torchvision():
    from torchvision.datasets import SVHN

    for part in ("train", "test"):
        (ours,) = getattr(module.SVHN, part)
        _, name, md5 = SVHN.split_list[part]
        assert (ours.name, ours.md5) == (name, md5)
