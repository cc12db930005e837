"""Published images in their true form, damaged, and read."""

from __future__ import annotations

import builtins
import codecs
import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images import DataOptions, read_batch
from spikeformer_lt.images.files import BatchFiles, read_idx
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


@pytest.mark.fault(36)
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


VALUES = np.random.default_rng(0).integers(256, size=(3, 4, 5), dtype=np.uint8)


def idx(values: np.ndarray, kind: int = 8, sizes: tuple[int, ...] | None = None) -> bytes:
    shape = values.shape if sizes is None else sizes
    head = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + values.tobytes()


def read(path: Path, content: bytes, **options) -> torch.Tensor:
    path.write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    return read_idx(path, md5=md5, **{"dims": 3, **options})


def test_values_come_back_in_their_places(tmp_path: Path) -> None:
    found = read(tmp_path / "a.gz", gzip.compress(idx(VALUES)))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), VALUES)
    line = np.arange(7, dtype=np.uint8)
    assert read(tmp_path / "b.gz", gzip.compress(idx(line)), dims=1).tolist() == list(range(7))


def test_another_hash_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match=r"a\.gz.*has md5.*was not used"):
        read_idx(tmp_path / "a.gz", md5="0" * 32, dims=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(VALUES), "not a whole gzip file"),
        (gzip.compress(idx(VALUES))[:-9], "not a whole gzip file: it ends too soon"),
        (gzip.compress(idx(VALUES)) + b"more", "it goes on behind its end"),
        (gzip.compress(b""), "does not begin like one"),
        (gzip.compress(idx(VALUES)[:15]), "does not begin like one"),
        (gzip.compress(b"\1" + idx(VALUES)[1:]), "does not begin like one"),
        (gzip.compress(idx(VALUES, kind=13)), r"type 13 in 3 dimensions.*bytes \(type 8\) in 3"),
        (gzip.compress(idx(VALUES[0])), "in 2 dimensions"),
        (gzip.compress(idx(VALUES)[:-1]), r"sizes \[3, 4, 5\], 60 values, but holds 59"),
        (gzip.compress(idx(VALUES) + b"!"), "60 values, but holds 61"),
        (gzip.compress(idx(VALUES, sizes=(2**32 - 1,) * 3)), "but holds 60"),
        (gzip.compress(idx(VALUES[:0])), "0 values, but holds 0"),
        (gzip.compress(bytes(5000)), "unpacks to more than the 1000 bytes allowed"),
    ],
    ids=range(13),
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"images\.gz.*{message}"):
        read(tmp_path / "images.gz", content, max_bytes=1000)


DATA = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)


def stored(folder, content):
    path = folder / "batch"
    path.write_bytes(content)
    return path, hashlib.md5(content).hexdigest()


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_the_published_form_is_read_without_a_warning(tmp_path, python2_batch):
    path, md5 = stored(tmp_path, python2_batch(DATA, [7, 300]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = read_batch(path, md5=md5)
    assert sorted(batch) == ["batch_label", "data", "filenames", "labels"]
    assert np.array_equal(batch["data"], DATA)
    assert batch["data"].dtype == np.uint8
    assert batch["labels"] == [7, 300]
    assert batch["filenames"] == [b"image_0.png", b"image_1.png"]


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_python_3_pickles_is_read_too(tmp_path, protocol):
    content = pickle.dumps({b"data": DATA, "fine_labels": [1, 2], b"note": b"\xff"}, protocol)
    path, md5 = stored(tmp_path, content)
    batch = read_batch(path, md5=md5)
    assert np.array_equal(batch["data"], DATA)
    assert batch["fine_labels"] == [1, 2]
    assert batch["note"] == b"\xff"


@pytest.mark.fault(32)
def test_a_tampered_file_is_refused_by_its_hash_before_it_is_looked_at(
    tmp_path, python2_batch, monkeypatch
):
    path, md5 = stored(tmp_path, python2_batch(DATA, [7, 8]))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    read_batch(path, md5=md5, sha256=sha256)
    marker = tmp_path / "ran"
    path.write_bytes(pickle.dumps(Payload(os.mkdir, str(marker))))
    monkeypatch.setattr(pickle, "Unpickler", None)
    with pytest.raises(DataError, match=f"{md5}.*was not used"):
        read_batch(path, md5=md5)
    now = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="sha256"):
        read_batch(path, md5=now, sha256=sha256)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.fault(32)
def test_a_payload_is_not_run_even_under_a_hash_that_fits(tmp_path, protocol):
    marker = tmp_path / "ran"
    payloads = [
        Payload(os.mkdir, str(marker)),
        Payload(os.system, f"mkdir {marker}"),
        Payload(builtins.eval, f"__import__('os').mkdir({str(marker)!r})"),
        Payload(codecs.lookup, "rot13"),
        Payload(np.load, str(marker)),
    ]
    for payload in payloads:
        for content in (payload, {"labels": [payload]}):
            path, md5 = stored(tmp_path, pickle.dumps(content, protocol))
            with pytest.raises(DataError, match="does not need; refused, nothing of it was run"):
                read_batch(path, md5=md5)
            assert not marker.exists()
    pickle.loads(pickle.dumps(payloads[0]))
    assert marker.exists()  # the payload works where nobody refuses it


def test_every_cut_of_a_batch_is_refused_by_name(tmp_path, python2_batch):
    whole = python2_batch(DATA[:, :12], [7, 8])
    for cut in range(len(whole)):
        path, md5 = stored(tmp_path, whole[:cut])
        with pytest.raises(DataError, match="is not a pickled batch"):
            read_batch(path, md5=md5)


def test_what_is_no_dictionary_is_refused(tmp_path):
    path, md5 = stored(tmp_path, pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="holds list"):
        read_batch(path, md5=md5)


def test_a_pickle_that_asks_for_an_outside_object_is_refused(tmp_path):
    path, md5 = stored(tmp_path, b"\x80\x02U\x01aQ.")
    with pytest.raises(DataError, match="is not a pickled batch"):
        read_batch(path, md5=md5)
