"""Picture folders, written in their true form, damaged, and read."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.images import DataOptions

_spec = importlib.util.spec_from_file_location(
    "picture_folder", Path(__file__).with_name("picture_folder.py")
)
assert _spec is not None and _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)


def load(files, root, download=False):
    return files.load(DataOptions(str(root), download))


@pytest.fixture
def contents():
    return small.contents()


def test_pictures_come_in_the_order_of_classes_and_numbers(tmp_path, contents, caplog):
    small.write_folder(tmp_path, contents)
    train, test = load(small.table(), tmp_path)
    greys = [50 * number + i for number in range(3) for i in range(small.PER_CLASS)]
    assert train.images.dtype == torch.uint8 and train.images.shape == (33, 3, 8, 8)
    wanted = torch.tensor(greys, dtype=torch.uint8)[:, None, None, None]
    assert torch.equal(train.images, wanted.expand(-1, 3, 8, 8))
    assert train.labels.tolist() == [0] * 11 + [1] * 11 + [2] * 11
    assert test.images[:, 0, 0, 0].tolist() == [206, 205, 204, 203, 202, 201, 200]
    assert test.labels.tolist() == [i % 3 for i in reversed(range(7))]
    assert (train.name, test.name) == ("small train", "small test")
    assert "not compared with the published ones; with small-set.zip beside" in caplog.text


def test_a_zip_in_the_root_is_unpacked_once_and_checks_what_is_read(tmp_path, contents, caplog):
    files = small.write_zip(tmp_path, contents)
    train, _ = load(files, tmp_path)
    kept = tmp_path / "small-set/train/n01/images/n01_1.JPEG"
    before = kept.stat().st_mtime_ns
    again, _ = load(files, tmp_path)
    assert torch.equal(train.images, again.images)
    assert kept.stat().st_mtime_ns == before and "not compared" not in caplog.text
    kept.write_bytes(small.jpeg(9))
    with pytest.raises(DataError, match=r"n01_1\.JPEG.* differs from the published small-set\.zip"):
        load(files, tmp_path)
    kept.rename(kept.with_name("n01_99.JPEG"))
    with pytest.raises(DataError, match=r"n01_99\.JPEG.* is not in the published small-set\.zip"):
        load(files, tmp_path)


def test_a_zip_with_another_hash_is_not_opened(tmp_path, contents):
    files = small.write_zip(tmp_path, contents)
    archive = tmp_path / "small-set.zip"
    archive.write_bytes(archive.read_bytes() + b"!")
    with pytest.raises(DataError, match=r"small-set\.zip.*has md5.*was not used"):
        load(files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["small-set.zip"]


def test_a_zip_that_unpacks_to_more_than_it_should_is_refused(tmp_path, contents):
    files = small.write_zip(tmp_path, {**contents, "test/images/bomb": bytes(2_000_000)})
    with pytest.raises(DataError, match="past the 1000000 bytes"):
        load(files, tmp_path)
    assert not (tmp_path / "small-set").exists()


def test_a_zip_of_something_else_is_refused(tmp_path, contents):
    files = small.write_zip(tmp_path, {"other.txt": b"x"})
    with pytest.raises(DataError, match=r"small-set\.zip .*does not hold what it should"):
        load(files, tmp_path)


def test_the_network_is_asked_only_on_demand(tmp_path, contents, monkeypatch):
    (tmp_path / "there").mkdir()
    files = small.write_zip(tmp_path / "there", contents)
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


LINES = small.contents()["val/val_annotations.txt"].decode().splitlines(keepends=True)
DAMAGE = {
    "a picture is missing": ("train/n02/images/n02_4.JPEG", None, "holds 10 pictures.*needed.* 11"),
    "a test picture is missing": ("val/images/val_2.JPEG", None, "cannot read .*val_2.JPEG"),
    "a picture is cut": (
        "train/n02/images/n02_4.JPEG", small.jpeg(1)[:300], "n02_4.JPEG.* no whole JPEG",
    ),
    "a picture is empty": ("train/n02/images/n02_4.JPEG", b"", "n02_4.JPEG.* no whole JPEG"),
    "another form": ("train/n02/images/n02_4.JPEG", b"BM" + bytes(99), "n02_4.JPEG.* no whole"),
    "another size": ("val/images/val_2.JPEG", small.jpeg(1, 9), "val_2.JPEG.* 9 x 9 pixels"),
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
    small.write_folder(tmp_path, {k: v for k, v in contents.items() if k != place})
    if content is not None:
        small.write_folder(tmp_path, {place: content})
    with pytest.raises(DataError, match=message):
        load(small.table(), tmp_path)
