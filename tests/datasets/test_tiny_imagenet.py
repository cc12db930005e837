"""Tiny-ImageNet from a small folder in the true form."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch

from spikeformer_lt import registry
from spikeformer_lt.datasets import tiny_imagenet as module
from spikeformer_lt.errors import ConfigError, DataError

_path = Path(__file__).resolve().parents[1] / "images" / "picture_folder.py"
_spec = importlib.util.spec_from_file_location("picture_folder", _path)
assert _spec is not None and _spec.loader is not None
pictures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pictures)


@pytest.fixture
def small(tmp_path, monkeypatch):
    table = pictures.write_zip(tmp_path, pictures.contents())
    named = dataclasses.replace(table, name="tiny_imagenet", augment=module.TINY.augment)
    monkeypatch.setattr(module, "TINY", named)
    return tmp_path


def test_the_set_is_read_split_and_described(small):
    splits = registry.create_dataset("tiny_imagenet", root=str(small))
    assert (splits.num_classes, splits.in_channels, splits.image_size) == (3, 3, 8)
    assert (splits.kind, splits.augment) == ("static", "crop8_flip")
    assert torch.bincount(splits.train.labels).tolist() == [10] * 3
    assert torch.bincount(splits.val.labels).tolist() == [1] * 3
    assert len(splits.test) == 7
    for part in (splits.train, splits.val):  # grey values tell class and number
        greys = part.images[:, 0, 0, 0].to(torch.int64)
        assert torch.equal(greys, 50 * part.labels + part.indices % pictures.PER_CLASS)
    again = registry.create_dataset("tiny_imagenet", root=str(small), image_size=8)
    assert again.split_sha256 == splits.split_sha256
    part = registry.create_dataset("tiny_imagenet", root=str(small), limit_train=6, limit_test=2)
    assert (len(part.train), len(part.test)) == (6, 2)


def test_another_size_is_refused(small):
    with pytest.raises(ConfigError, match="image_size=64.*tiny_imagenet has images of 8"):
        registry.create_dataset("tiny_imagenet", root=str(small), image_size=64)


def test_a_changed_picture_is_refused_by_name(small):
    registry.create_dataset("tiny_imagenet", root=str(small))
    picture = small / "small-set/val/images/val_0.JPEG"
    picture.write_bytes(picture.read_bytes() + b"!")
    with pytest.raises(DataError, match=r"val_0\.JPEG.* differs from"):
        registry.create_dataset("tiny_imagenet", root=str(small))


def test_a_missing_set_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip \(248100043 bytes, md5 90528d7c"):
        registry.create_dataset("tiny_imagenet", root=str(tmp_path))


def test_the_table_is_whole():
    tiny = module.TINY
    assert tiny.num_classes * tiny.per_class == 100_000 and tiny.sizes == (64,)
    assert (tiny.test_count, tiny.augment) == (10_000, "crop8_flip")
    # The zip holds 120,000 pictures, 201 lists of boxes and labels, and folders.
    assert tiny.archive.members > 121_000 and tiny.archive.unpacked > 240_000_000
