"""Pictures in tars and parquet files: the same as in folders, each read where it lies."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from spikeformer_lt.datasets.imagenet import ImageNetConfig
from spikeformer_lt.disk import nothing_written
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.export import to_input
from spikeformer_lt.images.augment import Augment
from spikeformer_lt.images.loader import eval_loader, train_loader
from spikeformer_lt.registry import create_dataset

CLASSES = ["tench", "goldfish", "shark"]
COUNTS = {"train": 30, "validation": 6, "test": 3}


def jpeg(number, form="JPEG"):
    draw = np.random.default_rng(number)
    out = io.BytesIO()
    pixels = np.kron(draw.integers(0, 256, (5, 6, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


@pytest.fixture(scope="module")
def pictures():
    """Per part, the bytes and labels of its pictures, a PNG among them."""
    number, parts = 0, {}
    for part, count in COUNTS.items():
        parts[part] = []
        for i in range(count):
            number += 1
            label = -1 if part == "test" else i % 3
            parts[part].append((jpeg(number, "PNG" if number == 4 else "JPEG"), label))
    return parts


def put_tar(path, rows, suffix="jpg"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, (data, label) in enumerate(rows):
            for end, content in (
                (suffix, data), ("cls", b"%d" % label), ("json", b'{"label": 0}')
            ):  # fmt: skip
                member = tarfile.TarInfo(f"n{label}/n{label}_{i:03d}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def put_tars(root, pictures):
    for part, rows in pictures.items():
        for shard in range(2):
            put_tar(root / f"imagenet1k-{part}-{shard:04d}.tar", rows[shard::2])


def put_parquet(root, pictures, **more):
    """As Hugging Face's libraries write it."""
    about = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    fields = [arrow.field("image", kind), arrow.field("label", arrow.int64())]
    schema = arrow.schema(fields, {"huggingface": json.dumps(about)})
    (root / "data").mkdir(parents=True, exist_ok=True)
    for part, rows in pictures.items():
        images = [{"bytes": data, "path": f"{i}.JPEG"} for i, (data, _) in enumerate(rows)]
        table = arrow.table({"image": images, "label": [label for _, label in rows]}, schema)
        path = root / "data" / f"{part}-00000-of-00001.parquet"
        parquet.write_table(table, path, row_group_size=4, **more)


@pytest.mark.parametrize("put", [put_tars, put_parquet])
def test_every_picture_is_read_where_it_lies(files, tmp_path, pictures, put, caplog):
    put(tmp_path, pictures)
    splits = create_dataset("imagenet", root=str(tmp_path), image_size=24)
    assert files.ranks_share(splits)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [27, 3, 6]
    names = CLASSES if put is put_parquet else ["0", "1", "2"]
    assert list(splits.preprocess.classes) == names
    wanted = {part: [(to_input([Image.open(io.BytesIO(data))], splits.preprocess)[0], label)
                     for data, label in rows] for part, rows in pictures.items()}  # fmt: skip
    for part, home in ((splits.train, "train"), (splits.val, "train"), (splits.test, "validation")):
        for images, labels, _ in eval_loader(part, 4, workers=2):
            for image, label in zip(images, labels.tolist(), strict=True):
                found = [own for one, own in wanted[home] if torch.equal(one, image)]
                assert found == [label]
    augment = Augment.standard("imagenet")
    one, two = (
        [batch[0] for batch in train_loader(splits.train, augment, 9, 1, 0, workers=w)]
        for w in (0, 2)
    )
    assert all(map(torch.equal, one, two))
    for tar in tmp_path.rglob("*.tar"):  # the second time neither heads nor parquet files are read
        tar.with_suffix(".bak").write_bytes(tar.read_bytes())
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = create_dataset("imagenet", root=str(tmp_path), image_size=24)
    assert "heads" not in caplog.text and "unpacking" not in caplog.text
    assert again.split_sha256 == splits.split_sha256
    assert torch.equal(again.test[5][0], splits.test[5][0])


def test_a_copy_in_another_part_is_told_where_it_is_asked_for(tmp_path, pictures):
    put_tars(tmp_path, {**pictures, "validation": [*pictures["validation"], pictures["train"][0]]})
    create_dataset("imagenet", root=str(tmp_path), image_size=24)
    with pytest.raises(DataError, match="1 pictures are in two parts, byte for byte"):
        create_dataset("imagenet", root=str(tmp_path), image_size=24, duplicates="refuse")


def test_changed_shards_are_read_again_and_a_damaged_list_is_made_again(tmp_path, pictures):
    put_tars(tmp_path, pictures)
    create_dataset("imagenet", root=str(tmp_path), image_size=24)
    (kept,) = (tmp_path / ".images").glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:-9])
    splits = create_dataset("imagenet", root=str(tmp_path), image_size=24)
    assert len(splits.test) == 6
    put_tar(tmp_path / "imagenet1k-validation-0001.tar", pictures["validation"][:1])
    assert len(create_dataset("imagenet", root=str(tmp_path), image_size=24).test) == 4


def cut(root):
    path = root / "imagenet1k-train-0001.tar"
    path.write_bytes(path.read_bytes()[:-12_000])


def cut_between_pictures(root):
    path = root / "imagenet1k-train-0001.tar"
    with tarfile.open(path) as tar:
        path.write_bytes(path.read_bytes()[: tar.getmembers()[6].offset])


def flipped(root):
    path = root / "imagenet1k-train-0001.tar"
    with tarfile.open(path) as tar:
        place = tar.getmembers()[9].offset
    data = bytearray(path.read_bytes())
    data[place + 4] ^= 1
    path.write_bytes(data)


def preallocated(root):
    path = root / "imagenet1k-train-0001.tar"
    with tarfile.open(path) as tar:
        place = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:place] + bytes(1 << 21))


def joined(root):
    path = root / "imagenet1k-train-0001.tar"
    path.write_bytes(path.read_bytes() + (root / "imagenet1k-train-0000.tar").read_bytes())


def second(root):
    put_tar(root / "train-2.tar", [(jpeg(1), 1)] * 2)
    with tarfile.open(root / "train-2.tar", "a") as tar:
        tar.addfile(member := tarfile.TarInfo("n1/n1_000.png"), io.BytesIO(b""))
        assert member.size == 0


def linked(root):
    with tarfile.open(root / "imagenet1k-train-0001.tar", "a") as tar:
        member = tarfile.TarInfo("evil.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)


def huge(root):
    path = root / "imagenet1k-train-0001.tar"
    path.unlink()
    member = tarfile.TarInfo("a.jpg")
    member.size = 1 << 40
    path.write_bytes(member.tobuf() + bytes(1024))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "is no whole tar"),
        (cut_between_pictures, "is no whole tar: 'it breaks off or is damaged at byte"),
        (flipped, "is no whole tar: 'it breaks off or is damaged at byte"),
        (preallocated, "is no whole tar: 'its end, at byte .* has something behind it"),
        (joined, "is no whole tar: 'its end, at byte .* has something behind it"),
        (second, r"n1_000\.png' is a second picture|has 0 bytes"),
        (linked, r"evil\.jpg\S* is no plain file"),
        (huge, "is no whole tar|has 1099511627776 bytes"),
        (lambda root: put_tar(root / "train-2.tar", [(b"x", 1 << 30)]), "has no class: its number"),
        (lambda root: put_tar(root / "odd.tar", [(b"x", 1)]), "names no part: train, val or test"),
        (lambda root: put_tar(root / "train.tar", [], "jpg") or (root / "a.parquet").touch(),
         "holds tars and parquet files"),
    ],
)  # fmt: skip
def test_a_shard_that_cannot_be_read_is_one_line(tmp_path, pictures, spoil, words):
    put_tars(tmp_path, pictures)
    spoil(tmp_path)
    with pytest.raises(DataError, match=words):
        create_dataset("imagenet", root=str(tmp_path), image_size=24)


def test_what_macos_adds_to_a_tar_is_passed_over(tmp_path, pictures):
    put_tars(tmp_path, pictures)
    with tarfile.open(tmp_path / "imagenet1k-train-0001.tar", "a") as tar:
        for name in ("n0/._n0_001.jpg", "__MACOSX/n0/n0_001.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    assert len(create_dataset("imagenet", root=str(tmp_path), image_size=24).train) == 27


def test_a_damaged_picture_in_a_tar_is_named(tmp_path, pictures):
    rows = [(data[:300], label) for data, label in pictures["validation"]]
    put_tars(tmp_path, {**pictures, "validation": rows})
    splits = create_dataset("imagenet", root=str(tmp_path), image_size=24)
    words = r"validation-0000\.tar/n0/n0_000\.jpg\S* is no whole picture"
    with pytest.raises(DataError, match=words):
        list(eval_loader(splits.test, 4))


def test_a_parquet_file_of_other_columns_or_of_none_is_one_line(tmp_path, pictures):
    put_parquet(tmp_path, pictures)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    parquet.write_table(arrow.table({"picture": [b"x"], "label": [1]}), path)
    with pytest.raises(DataError, match=r"has the columns .*picture.*needed are image"):
        create_dataset("imagenet", root=str(tmp_path), image_size=24)
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be unpacked"):
        create_dataset("imagenet", root=str(tmp_path), image_size=24)
    assert not list((tmp_path / ".images").glob(".*.tmp-*"))


def from_hub(tmp_path, **options):
    own = {name: options.pop(name) for name in ("id", "revision", "unpacked") if name in options}
    config = ImageNetConfig(**{"id": "me/pictures", **own})
    return create_dataset(
        "imagenet", config=config, root=str(tmp_path / "data"), image_size=24, **options
    )


@pytest.mark.parametrize("put", [put_tars, put_parquet])
def test_a_set_of_the_hub_is_fetched_when_that_is_allowed_and_then_read_from_its_cache(
    hub, tmp_path, pictures, put
):
    put(tmp_path / "made", pictures)
    for path in (tmp_path / "made").rglob("*.*"):
        hub.files[path.relative_to(tmp_path / "made").as_posix()] = path.read_bytes()
    hub.files |= {"README.md": b"", "data/big.bin": b"not asked for"}
    with pytest.raises(DataError, match=r"id='me/pictures': it is not in .*--data\.download$"):
        from_hub(tmp_path)
    assert not hub.asked
    fetched = from_hub(tmp_path, download=True)
    assert hub.asked and not any("big.bin" in path or "README" in path for path in hub.asked)
    hub.asked.clear()
    cached = from_hub(tmp_path)
    local = create_dataset("imagenet", root=str(tmp_path / "made"), image_size=24)
    assert not hub.asked
    assert fetched.split_sha256 == cached.split_sha256 == local.split_sha256
    assert cached.train.classes == local.train.classes
    assert torch.equal(cached.test[5][0], local.test[5][0])
    for name in ("me/other", "you/pictures"):
        with pytest.raises(DataError, match=f"id='{name}': "):
            from_hub(tmp_path, id=name, download=name[0] == "y")
    with pytest.raises(ConfigError, match="id='pictures' is not allowed.*OWNER/NAME"):
        ImageNetConfig(id="pictures")


def test_of_several_sets_in_one_place_of_the_hub_one_is_named(hub, tmp_path, pictures):
    for size in ("160px", "full"):
        put_parquet(tmp_path / "made" / size, pictures)
    for path in (tmp_path / "made").rglob("*.parquet"):
        hub.files[path.relative_to(tmp_path / "made").as_posix()] = path.read_bytes()
    with pytest.raises(ConfigError, match="holds 160px/data, full/data; write me/pictures/FOLDER"):
        from_hub(tmp_path, download=True)
    assert len(from_hub(tmp_path, id="me/pictures/full").train) == 27


def test_a_series_of_shards_with_a_hole_is_told_and_of_the_hub_refused(
    hub, tmp_path, pictures, caplog
):
    put_parquet(tmp_path, pictures)
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.rename(path.with_name("train-00000-of-00002.parquet"))
    with caplog.at_level(logging.WARNING):
        create_dataset("imagenet", root=str(tmp_path), image_size=24)
    assert "data/train-00001-of-00002 is missing" in caplog.text
    for path in (tmp_path / "data").glob("*.parquet"):
        hub.files[f"data/{path.name}"] = path.read_bytes()
    with pytest.raises(DataError, match="train-00001-of-00002 is missing: fetch it"):
        from_hub(tmp_path, download=True)


def test_who_is_validation_depends_on_names_alone(tmp_path, pictures):
    put_parquet(tmp_path / "one", pictures)
    put_parquet(tmp_path / "other", pictures)
    for path in (tmp_path / "other").rglob("*.parquet"):
        os.utime(path, (1, 1))
    own = ImageNetConfig(unpacked=str(tmp_path / "elsewhere"))
    one, other = (
        create_dataset("imagenet", root=str(tmp_path / name), image_size=24, config=config)
        for name, config in (("one", ImageNetConfig()), ("other", own))
    )
    assert one.split_sha256 == other.split_sha256


def test_parquet_files_that_name_other_classes_are_refused(tmp_path, pictures, monkeypatch):
    put_parquet(tmp_path, pictures)
    own = tmp_path / "data" / "validation-00000-of-00001.parquet"
    kept = own.read_bytes()
    monkeypatch.setattr(f"{__name__}.CLASSES", CLASSES[::-1])
    put_parquet(tmp_path, pictures)
    own.write_bytes(kept)
    with pytest.raises(DataError, match=r"\S+parquet' and \S+parquet' name other classes"):
        create_dataset("imagenet", root=str(tmp_path), image_size=24)


def test_a_dry_run_reads_shards_and_writes_nothing(tmp_path, pictures):
    put_tars(tmp_path / "tars", pictures)
    put_parquet(tmp_path / "parquet", pictures)
    before = sorted(tmp_path.rglob("*"))
    with nothing_written("a dry run writes nothing"):
        assert len(create_dataset("imagenet", root=str(tmp_path / "tars"), image_size=24).val) == 3
        with pytest.raises(DataError, match="cannot be unpacked: .*a dry run writes nothing"):
            create_dataset("imagenet", root=str(tmp_path / "parquet"), image_size=24)
        with pytest.raises(DataError, match="id='me/pictures': 'a dry run writes nothing'$"):
            from_hub(tmp_path, download=True)
    assert sorted(tmp_path.rglob("*")) == before
