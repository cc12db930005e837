"""Fashion-MNIST from small files in the true form."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from spikeformer_lt import registry
from spikeformer_lt.datasets import fashion_mnist as module
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images.augment import Augment
from spikeformer_lt.published import PublishedFile

PER_CLASS = 20


def idx(values):
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(head + values.tobytes())


def write(folder, name, values):
    content = idx(values)
    (folder / name).write_bytes(content)
    return PublishedFile(name, len(content), hashlib.md5(content).hexdigest())


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Give the root of a small set and its arrays."""
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    generator = np.random.default_rng(0)
    arrays, tables = {}, {}
    for part in ("train", "test"):
        images = generator.integers(256, size=(10 * PER_CLASS, 28, 28), dtype=np.uint8)
        labels = (np.arange(10 * PER_CLASS) % 10).astype(np.uint8)
        names = [file.name for file in getattr(module.FASHION, part)]
        arrays[part] = (images, labels)
        tables[part] = (write(folder, names[0], images), write(folder, names[1], labels))
    monkeypatch.setattr(module, "FASHION", dataclasses.replace(module.FASHION, **tables))
    return tmp_path, arrays


def test_the_set_is_read_split_and_described(small):
    root, arrays = small
    splits = registry.create_dataset("fashion_mnist", root=str(root))
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (10, 1, 28)
    assert (splits.kind, splits.augment) == ("static", "crop4_flip")
    assert torch.bincount(splits.val.labels).tolist() == [PER_CLASS // 10] * 10
    assert torch.bincount(splits.train.labels).tolist() == [PER_CLASS - PER_CLASS // 10] * 10
    for part in (splits.train, splits.val):
        for position, index in enumerate(part.indices.tolist()):
            assert np.array_equal(part.images[position, 0].numpy(), arrays["train"][0][index])
            assert part.labels[position] == arrays["train"][1][index]
    assert np.array_equal(splits.test.images[:, 0].numpy(), arrays["test"][0])
    again = registry.create_dataset("fashion_mnist", root=str(root), image_size=28)
    assert again.split_sha256 == splits.split_sha256


def test_it_comes_in_32_pixels_with_the_same_splits(small):
    root, _ = small
    plain = registry.create_dataset("fashion_mnist", root=str(root))
    large = registry.create_dataset("fashion_mnist", root=str(root), image_size=32)
    assert large.image_size == 32 and large.test.images.dtype == torch.uint8
    assert large.split_sha256 == plain.split_sha256
    flat = torch.full((3, 1, 28, 28), 77, dtype=torch.uint8)
    assert bool((module.enlarge(flat, 32) == 77).all())
    with pytest.raises(ConfigError, match="image_size=64.*28 or 32"):
        registry.create_dataset("fashion_mnist", root=str(root), image_size=64)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_damaged_file_is_refused_by_name(small, part, place):
    root, _ = small
    name = getattr(module.FASHION, part)[place].name
    path = root / "fashion-mnist" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=rf"{name}.*has md5.*was not used"):
        registry.create_dataset("fashion_mnist", root=str(root))


def test_files_that_do_not_belong_together_are_refused(small, monkeypatch):
    root, arrays = small
    folder = root / "fashion-mnist"
    names = [file.name for file in module.FASHION.train]
    images, labels = arrays["train"]
    for pictures, numbers in ((images, labels[:-1]), (images[:, :27], labels)):
        pair = (write(folder, names[0], pictures), write(folder, names[1], numbers))
        monkeypatch.setattr(module, "FASHION", dataclasses.replace(module.FASHION, train=pair))
        with pytest.raises(DataError, match=rf"{names[0]} holds images .*{names[1]}"):
            registry.create_dataset("fashion_mnist", root=str(root))


def test_a_missing_set_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError) as caught:
        registry.create_dataset("fashion_mnist", root=str(tmp_path))
    for file in module.FASHION.train + module.FASHION.test:
        assert f"{file.name} ({file.size} bytes, md5 {file.md5}, from {file.url})" in str(
            caught.value
        )


def test_the_table_is_that_of_torchvision():
    from torchvision.datasets import FashionMNIST

    ours = [(file.name, file.md5) for file in module.FASHION.train + module.FASHION.test]
    assert ours == FashionMNIST.resources


def test_grey_images_are_augmented_as_published(small):
    root, _ = small
    splits = registry.create_dataset("fashion_mnist", root=str(root))
    transform = Augment.standard(splits.augment).build(splits.mean, splits.std, 28)
    assert transform(splits.train[0][0]).shape == (1, 28, 28)
    assert transform.augment == Augment(crop_padding=4, hflip=0.5)
