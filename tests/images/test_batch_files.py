from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import DataOptions
from spikeformer_lt.images.files import BatchFiles
from spikeformer_lt.published import Archive, PublishedFile

COUNTS = {"part_1": 6, "part_2": 5, "held": 4}


def published(name, content):
    return PublishedFile(name, len(content), hashlib.md5(content).hexdigest())


def load(files, root, download=False, image_size=None):
    return files.load(DataOptions(str(root), download, image_size))


@pytest.fixture
def contents(python2_batch):
    generator = np.random.default_rng(0)
    return {
        name: python2_batch(
            generator.integers(256, size=(count, 3072), dtype=np.uint8),
            [i % 3 for i in range(count)],
        )
        for name, count in COUNTS.items()
    }


@pytest.fixture
def archive(contents):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {**contents, "readme.html": b"<p>"}.items():
            info = tarfile.TarInfo(f"set-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def files(contents, archive):
    return BatchFiles(
        name="set",
        folder="set-py",
        archive=Archive(
            *("set.tar.gz", len(archive), hashlib.md5(archive).hexdigest()),
            url="https://example.invalid/set.tar.gz",
            unpacked=1_000_000,
            members=10,
        ),
        train=tuple(published(name, contents[name]) for name in ("part_1", "part_2")),
        test=(published("held", contents["held"]),),
        label_key="labels",
        sizes=(32,),
        num_classes=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
    )


@pytest.fixture
def root(tmp_path, contents):
    (tmp_path / "set-py").mkdir()
    for name, content in contents.items():
        (tmp_path / "set-py" / name).write_bytes(content)
    return tmp_path


def test_batches_are_read_in_order_as_planes_of_rows(root, files):
    train, test = load(files, root)
    raw = np.random.default_rng(0).integers(256, size=(6, 3072), dtype=np.uint8)
    assert (len(train), len(test)) == (11, 4)
    assert train.images.shape == (11, 3, 32, 32)
    assert int(train.images[2, 1, 3, 5]) == raw[2, 1024 + 3 * 32 + 5]
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
    assert (train.name, test.name) == ("set train", "set test")


def test_an_archive_in_the_root_is_unpacked_once(tmp_path, root, files, archive):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "set.tar.gz").write_bytes(archive)
    train, test = load(files, fresh)
    (fresh / "set.tar.gz").unlink()
    again, _ = load(files, fresh)
    here, held = load(files, root)
    assert torch.equal(train.images, here.images)
    assert torch.equal(again.images, here.images)
    assert torch.equal(test.images, held.images)


def test_an_archive_completes_a_folder_that_lacks_a_file(root, files, archive):
    (root / "set-py/part_2").unlink()
    (root / "set.tar.gz").write_bytes(archive)
    assert len(load(files, root)[0]) == 11


def test_an_archive_with_another_hash_is_not_opened(tmp_path, files, archive):
    (tmp_path / "set.tar.gz").write_bytes(archive[:-1] + b"!")
    with pytest.raises(DataError, match=r"set\.tar\.gz.*md5.*was not used"):
        load(files, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


def test_a_changed_batch_is_refused_by_name(root, files, contents):
    (root / "set-py/part_2").write_bytes(contents["part_2"] + b" ")
    with pytest.raises(DataError, match=r"part_2.*has md5"):
        load(files, root)


def test_missing_files_are_named_with_all_that_is_needed_to_put_them_there(root, files):
    (root / "set-py/part_2").unlink()
    (root / "set-py/held").unlink()
    with pytest.raises(DataError) as caught:
        load(files, root)
    text = str(caught.value)
    assert "\n" not in text
    for file in (files.train[1], files.test[0], files.archive):
        assert f"{file.name} ({file.size} bytes, md5 {file.md5}" in text
    assert "part_1 (" not in text
    for needed in (str(root), "set-py", files.archive.url, "--data.download", "--data.name digits"):
        assert needed in text


def test_a_root_one_folder_too_deep_is_pointed_out(root, files):
    with pytest.raises(DataError, match="part_1 lies in the root itself: .* give the folder above"):
        load(files, root / "set-py")


def test_the_network_is_asked_only_on_demand(tmp_path, files, monkeypatch, archive):
    asked = []

    def pretend(file, path, *, sha256):
        asked.append((file, sha256))
        path.write_bytes(archive)
        return hashlib.sha256(archive).hexdigest()

    monkeypatch.setattr("spikeformer_lt.published.fetch", pretend)
    with pytest.raises(DataError):
        load(files, tmp_path)
    assert asked == []
    assert len(load(files, tmp_path, download=True)[0]) == 11
    assert asked == [(files.archive, "")]
    load(files, tmp_path, download=True)
    assert len(asked) == 1


def test_another_image_size_is_refused(root, files):
    load(files, root, image_size=32)
    with pytest.raises(ConfigError, match="image_size=64 is not allowed: set has images of 32"):
        load(files, root, image_size=64)


@pytest.mark.parametrize(
    ("rows", "labels", "key", "complaint"),
    [
        (np.zeros((2, 3071), np.uint8), [0, 1], "labels", "'data' is no uint8 array of rows of 3"),
        (np.zeros((2, 3072), np.uint8), [0], "labels", "no list of 2 whole numbers"),
        (np.zeros((2, 3072), np.uint8), [0, 1], "fine_labels", "'labels' is no list"),
        (np.zeros((2, 3072), np.uint8), [0, 3], "labels", "label 3 at index 1 is outside"),
    ],
)
def test_a_batch_that_holds_something_else_is_refused(
    root, files, python2_batch, rows, labels, key, complaint
):
    content = python2_batch(rows, labels, key)
    (root / "set-py/held").write_bytes(content)
    files = dataclasses.replace(files, test=(published("held", content),))
    with pytest.raises(DataError, match=complaint):
        load(files, root)
