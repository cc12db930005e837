"""Tiny-ImageNet from a small folder in the true form."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch

from spikeformer_lt import registry
from spikeformer_lt.datasets import tiny_imagenet as module
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import DataOptions

_path = Path(__file__).with_name("picture_folder.py")
_spec = importlib.util.spec_from_file_location("picture_folder", _path)
assert _spec is not None and _spec.loader is not None
pictures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pictures)


def load(files, root, download=False):
    return files.load(DataOptions(str(root), download))


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


@pytest.fixture
def contents():
    return pictures.contents()


def test_pictures_come_in_the_order_of_classes_and_numbers(tmp_path, contents, caplog):
    pictures.write_folder(tmp_path, contents)
    train, test = load(pictures.table(), tmp_path)
    greys = [50 * number + i for number in range(3) for i in range(pictures.PER_CLASS)]
    assert train.images.dtype == torch.uint8 and train.images.shape == (33, 3, 8, 8)
    wanted = torch.tensor(greys, dtype=torch.uint8)[:, None, None, None]
    assert torch.equal(train.images, wanted.expand(-1, 3, 8, 8))
    assert train.labels.tolist() == [0] * 11 + [1] * 11 + [2] * 11
    assert test.images[:, 0, 0, 0].tolist() == [206, 205, 204, 203, 202, 201, 200]
    assert test.labels.tolist() == [i % 3 for i in reversed(range(7))]
    assert (train.name, test.name) == ("small train", "small test")
    assert "not compared with the published ones; with small-set.zip beside" in caplog.text


def test_a_zip_in_the_root_is_unpacked_once_and_checks_what_is_read(tmp_path, contents, caplog):
    files = pictures.write_zip(tmp_path, contents)
    train, _ = load(files, tmp_path)
    kept = tmp_path / "small-set/train/n01/images/n01_1.JPEG"
    before = kept.stat().st_mtime_ns
    again, _ = load(files, tmp_path)
    assert torch.equal(train.images, again.images)
    assert kept.stat().st_mtime_ns == before and "not compared" not in caplog.text
    kept.write_bytes(pictures.jpeg(9))
    with pytest.raises(DataError, match=r"n01_1\.JPEG.* differs from the published small-set\.zip"):
        load(files, tmp_path)
    kept.rename(kept.with_name("n01_99.JPEG"))
    with pytest.raises(DataError, match=r"n01_99\.JPEG.* is not in the published small-set\.zip"):
        load(files, tmp_path)


def test_a_zip_with_another_hash_is_not_opened(tmp_path, contents):
    files = pictures.write_zip(tmp_path, contents)
    archive = tmp_path / "small-set.zip"
    archive.write_bytes(archive.read_bytes() + b"!")
    with pytest.raises(DataError, match=r"small-set\.zip.*has md5.*was not used"):
        load(files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small-set.zip"]


def test_a_zip_that_unpacks_to_more_than_it_should_is_refused(tmp_path, contents):
    files = pictures.write_zip(tmp_path, {**contents, "test/images/bomb": bytes(2_000_000)})
    with pytest.raises(DataError, match="past the 1000000 bytes"):
        load(files, tmp_path)
    assert not (tmp_path / "small-set").exists()


def test_a_zip_of_something_else_is_refused(tmp_path, contents):
    files = pictures.write_zip(tmp_path, {"other.txt": b"x"})
    with pytest.raises(DataError, match=r"small-set\.zip .*does not hold what it should"):
        load(files, tmp_path)


def test_the_network_is_asked_for_pictures_only_on_demand(tmp_path, contents, monkeypatch):
    (tmp_path / "there").mkdir()
    files = pictures.write_zip(tmp_path / "there", contents)
    packed = (tmp_path / "there/small-set.zip").read_bytes()
    asked = []

    def pretend(file, path, *, sha256):
        asked.append(file)
        path.write_bytes(packed)
        return hashlib.sha256(packed).hexdigest()

    monkeypatch.setattr("spikeformer_lt.published.fetch", pretend)
    with pytest.raises(DataError) as caught:
        load(files, tmp_path)
    for needed in (
        files.archive.url,
        files.archive.md5,
        str(tmp_path),
        "--data.download",
        "small-set",
    ):
        assert needed in str(caught.value)
    assert asked == []
    load(files, tmp_path, download=True)
    assert asked == [files.archive]


LINES = pictures.contents()["val/val_annotations.txt"].decode().splitlines(keepends=True)
DAMAGE = {
    "a picture is missing": ("train/n02/images/n02_4.JPEG", None, "holds 10 pictures.*needed.* 11"),
    "a test picture is missing": ("val/images/val_2.JPEG", None, "cannot read .*val_2.JPEG"),
    "a picture is cut": (
        "train/n02/images/n02_4.JPEG", pictures.jpeg(1)[:300], "n02_4.JPEG.* no whole JPEG",
    ),
    "a picture is empty": ("train/n02/images/n02_4.JPEG", b"", "n02_4.JPEG.* no whole JPEG"),
    "another form": ("train/n02/images/n02_4.JPEG", b"BM" + bytes(99), "n02_4.JPEG.* no whole"),
    "another size": ("val/images/val_2.JPEG", pictures.jpeg(1, 9), "val_2.JPEG.* 9 x 9 pixels"),
    "a class is missing": ("wnids.txt", b"n01\nn02\n", "wnids.txt.* has 2 lines; needed are 3"),
    "a class twice": ("wnids.txt", b"n01\nn02\nn02\n", "does not name each class once"),
    "a path as class": ("wnids.txt", b"n01\nn02\n../x\n", "does not name each class once"),
    "no bytes of text": ("wnids.txt", b"n01\nn02\n\xff\n", "does not name each class once"),
    "a line is missing": ("val/val_annotations.txt", "".join(LINES[1:]).encode(), "has 6 lines"),
    "a line twice": (
        "val/val_annotations.txt", "".join([*LINES[1:], LINES[1]]).encode(), "line 7 is 'val_5",
    ),
    "an unknown class": (
        "val/val_annotations.txt", "".join(LINES).replace("n02", "n09").encode(), "n09",
    ),
    "a path as picture": (
        "val/val_annotations.txt", "".join(LINES).replace("val_3.J", "../x.J").encode(), "line 4",
    ),
    "no columns": ("val/val_annotations.txt", b"x\n" * 7, "line 1 is 'x'"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_by_the_name_of_the_file(tmp_path, contents, name):
    place, content, message = DAMAGE[name]
    pictures.write_folder(tmp_path, {k: v for k, v in contents.items() if k != place})
    if content is not None:
        pictures.write_folder(tmp_path, {place: content})
    with pytest.raises(DataError, match=message):
        load(pictures.table(), tmp_path)
