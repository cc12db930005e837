from __future__ import annotations

import csv
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import EventOptions
from spikeformer_lt.export import to_input
from spikeformer_lt.images.augment import Augment
from spikeformer_lt.images.loader import eval_loader, train_loader
from spikeformer_lt.registry import create_dataset

EVENTS = EventOptions(T=4, sensor="40x60", cache="none")


def put_events(files, home, classes=("left", "right"), count=10):
    """Recordings of several forms, each of its own size."""
    seed = 0
    for label in classes:
        for i in range(count):
            seed += 1
            events = files.some_events(60 + seed, 40, 60, 300_000, seed)
            form = (files.write_npy, files.write_aedat4, files.write_evt3)[i % 3]
            form(home / label / f"{i}{('.npy', '.aedat4', '.raw')[i % 3]}", events)


def put_pictures(home, classes=("cat", "dog"), count=10, size=(40, 30), suffix="png"):
    draw = np.random.default_rng(0)
    for label in classes:
        (home / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(home / label / f"{i}.{suffix}")


def parts(splits):
    return splits.train, splits.val, splits.test


def test_folders_of_recordings_are_classes_of_any_camera_and_form(files, tmp_path):
    put_events(files, tmp_path)
    splits = create_dataset("event_folder", root=str(tmp_path), events=EVENTS)
    assert [len(part) for part in parts(splits)] == [14, 2, 4]
    assert splits.train.classes == ("left", "right") and splits.image_size == 60
    assert splits.train[0][0].shape == (4, 2, 60, 60)
    assert all(int(part[i][0].sum()) > 60 for part in parts(splits) for i in range(len(part)))
    assert files.same_from_files(splits)
    again = create_dataset("event_folder", root=str(tmp_path), events=EVENTS)
    assert again.split_sha256 == splits.split_sha256


@pytest.mark.parametrize("kind", ["event_folder", "moving_gestures", "image_folder", "too large"])
def test_two_ranks_take_what_one_process_does_from_every_loader(files, tmp_path, kind):
    if kind == "moving_gestures":
        how = {"limit_train": 22, "limit_test": 11, "events": EventOptions(T=4)}
    elif kind == "event_folder":
        put_events(files, tmp_path)
        how = {"events": EVENTS}
    else:
        put_pictures(tmp_path)
        how = {"image_size": 24, "keep_mb": 64 * (kind == "image_folder")}
    name = kind.replace("too large", "image_folder")
    assert files.ranks_share(create_dataset(name, root=str(tmp_path), **how))


def test_without_the_cameras_size_the_line_says_how_to_find_it(files, tmp_path):
    put_events(files, tmp_path)
    with pytest.raises(ConfigError, match="data.sensor is missing.*events check"):
        create_dataset("event_folder", root=str(tmp_path))
    small = EventOptions(T=4, sensor="40x40", cache="none")
    with pytest.raises(DataError, match=r"x=\d+, must be in \[0, 40\)"):
        create_dataset("event_folder", root=str(tmp_path), events=small).train[0]


def test_downsampling_is_said(files, tmp_path, caplog):
    put_events(files, tmp_path)
    with caplog.at_level(logging.INFO):
        splits = create_dataset("event_folder", root=str(tmp_path), events=EVENTS, image_size=16)
    assert "40x60 pixels are scaled down to a square of 16" in caplog.text
    assert splits.train[0][0].shape == (4, 2, 16, 16)


def test_signed_polarities_are_read_and_told_to_the_ticket(files, tmp_path):
    for label in "ab":
        for i in range(10):
            events = files.some_events(80, 40, 60, seed=i)
            rows = [events[n].astype(int) for n in ("x", "y", "t_us")]
            rows.insert(2, np.where(events["p"], 1, -1))
            (tmp_path / label).mkdir(exist_ok=True)
            np.save(tmp_path / label / f"{i}.npy", np.stack(rows, 1))
    with pytest.raises(DataError, match="p=-1, must be 0 or 1"):
        create_dataset("event_folder", root=str(tmp_path), events=EVENTS).train[0]
    signed = EventOptions(T=4, sensor="40x60", cache="none", polarity="signed")
    splits = create_dataset("event_folder", root=str(tmp_path), events=signed)
    assert files.same_from_files(splits)


def test_a_table_names_classes_persons_and_parts(files, tmp_path):
    put_events(files, tmp_path / "all", ("x",), 24)
    with open(tmp_path / "who.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "path", "person"])
        for i in range(24):
            suffix = (".npy", ".aedat4", ".raw")[i % 3]
            rows.writerow([i % 2 + 9, f"all/x/{i}{suffix}", f"p{i // 4}"])
    splits = create_dataset("event_folder", root=str(tmp_path), events=EVENTS, table="who.csv")
    assert splits.test.classes == ("9", "10")  # numbers sort as numbers
    people = [{sample.group for sample in part.samples} for part in parts(splits)]
    assert len(set.union(*people)) == sum(map(len, people)) == 6 and all(people)
    lines = (tmp_path / "who.csv").read_text().splitlines()
    for wrong, words in (
        ("1,all/x/99.npy,p", r"99\.npy\S* is not there"),
        ("1,../x.npy,p", "is no path, label"),
        (",all/x/0.npy,p", "is no path, label"),
        ("1,all/x/0.npy,p,q", "is no path, label"),
    ):
        (tmp_path / "labels.csv").write_text("\n".join([*lines, wrong]))
        with pytest.raises(DataError, match=rf"labels\.csv\S+ line 26: .*{words}"):
            create_dataset("event_folder", root=str(tmp_path), events=EVENTS)
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(DataError, match="has the columns .*'file'"):
        create_dataset("event_folder", root=str(tmp_path), events=EVENTS)


def test_parts_of_the_user_are_kept_and_links_are_followed(files, tmp_path):
    put_pictures(tmp_path / "elsewhere")
    put_pictures(tmp_path / "root" / "Test", count=3)
    (tmp_path / "root" / "train").symlink_to(tmp_path / "elsewhere")
    splits = create_dataset("image_folder", root=str(tmp_path / "root"))
    assert [len(part) for part in parts(splits)] == [18, 2, 6]
    os.rename(tmp_path / "root" / "Test", tmp_path / "root" / "val")
    other = create_dataset("image_folder", root=str(tmp_path / "root"))
    assert len(other.test) == 6  # as in ImageNet, whose test has no labels
    put_pictures(tmp_path / "root" / "test", count=4)
    third = create_dataset("image_folder", root=str(tmp_path / "root"))
    assert [len(part) for part in parts(third)] == [20, 6, 8]
    (tmp_path / "root" / "train" / "stray.png").touch()
    with pytest.raises(DataError, match=r"stray\.png\S* is in no folder of a class"):
        create_dataset("image_folder", root=str(tmp_path / "root"))


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"holds none of \.jpg.*labels.csv"):
        create_dataset("image_folder", root=str(tmp_path))
    with pytest.raises(DataError, match="is not a folder"):
        create_dataset("event_folder", root=str(tmp_path / "no"), events=EVENTS)


def test_keeping_pictures_decoded_changes_no_augmented_one(tmp_path):
    """Crops are of the whole picture, also where its square is kept."""
    put_pictures(tmp_path, size=(80, 40))
    crop, found = Augment(resized_crop=0.08), []
    for keep_mb in (0, 64):
        how = {"keep_mb": keep_mb, "image_size": 24}
        splits = create_dataset("image_folder", root=str(tmp_path), **how)
        assert (splits.train.pixels is not None) == bool(keep_mb)
        loader = train_loader(splits.train, crop, 4, 3, 0)
        found.append(torch.cat([images for images, *_ in loader]))
    assert torch.equal(*found)


@pytest.mark.parametrize("keep_mb", [0, 64])
def test_pictures_are_what_predict_makes_of_the_files(tmp_path, keep_mb):
    put_pictures(tmp_path)
    splits = create_dataset("image_folder", root=str(tmp_path), keep_mb=keep_mb, image_size=24)
    assert (splits.test.pixels is not None) == bool(keep_mb)
    images, labels, _ = next(iter(eval_loader(splits.test, 4)))
    assert labels.tolist() == [0, 0, 1, 1]
    paths = [splits.test.root / os.fsdecode(path) for path in splits.test.paths]
    assert torch.equal(images, to_input(paths, splits.preprocess))


def test_pixels_are_decoded_once_mapped_by_all_and_made_again_when_damaged(tmp_path, caplog):
    put_pictures(tmp_path)

    def make():
        return create_dataset("image_folder", root=str(tmp_path))

    first = make()
    pixels = [part[i][0] for part in parts(first) for i in range(len(part))]
    kept = sorted((tmp_path / ".images").glob("*.u8"))
    assert len(kept) == 3 and isinstance(first.test.pixels.base, np.memmap)
    before = [path.stat().st_mtime_ns for path in kept]
    assert torch.equal(make().test[0][0], first.test[0][0])
    assert [path.stat().st_mtime_ns for path in kept] == before
    with open(kept[0], "r+b") as file:
        file.write(b"\xff\x00\xff")
    with caplog.at_level(logging.WARNING):
        second = make()
    assert "is damaged: it is made again" in caplog.text
    again = [part[i][0] for part in parts(second) for i in range(len(part))]
    assert all(map(torch.equal, pixels, again))
    picture = next((tmp_path / "cat").glob("*.png"))
    Image.new("RGB", (40, 30)).save(picture)  # another picture, another file
    make()
    assert len(list((tmp_path / ".images").glob("*.u8"))) == 4


def test_a_damaged_picture_is_named(tmp_path):
    put_pictures(tmp_path)
    for path in (tmp_path / "cat").glob("*.png"):
        path.write_bytes(path.read_bytes()[:900])
    splits = create_dataset("image_folder", root=str(tmp_path), keep_mb=0, image_size=30)
    with pytest.raises(DataError, match=r"cat/\d\.png\S* is no whole picture"):
        list(eval_loader(splits.train, 4))


def test_pictures_in_two_parts_are_reported_or_refused(tmp_path, caplog):
    put_pictures(tmp_path / "train")
    put_pictures(tmp_path / "test", count=2)
    with caplog.at_level(logging.WARNING):
        create_dataset("image_folder", root=str(tmp_path))
    assert "4 pictures are in two parts, byte for byte" in caplog.text
    with pytest.raises(DataError, match="in two parts"):
        create_dataset("image_folder", root=str(tmp_path), duplicates="refuse")


def test_persons_in_two_parts_are_reported_or_refused(tmp_path, caplog):
    put_pictures(tmp_path)
    own = [(c, i, "test" if i < 2 else "") for c in ("cat", "dog") for i in range(10)]
    rows = [f"{c}/{i}.png,{c},p{i % 2},{part}" for c, i, part in own]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,person,part", *rows, ""]))
    with caplog.at_level(logging.WARNING):
        create_dataset("image_folder", root=str(tmp_path))
    assert "image_folder: 2 persons are in two parts; the first: p0" in caplog.text
    with pytest.raises(DataError, match="persons are in two parts"):
        create_dataset("image_folder", root=str(tmp_path), duplicates="refuse")


def test_files_that_are_not_read_and_pictures_of_two_classes_are_told(tmp_path, caplog):
    put_pictures(tmp_path)
    (tmp_path / "bird").mkdir()
    for i in range(3):
        (tmp_path / "bird" / f"{i}.heic").touch()
    (tmp_path / "cat" / "notes.xml").touch()
    (tmp_path / "classes.xml").touch()
    with caplog.at_level(logging.WARNING):
        create_dataset("image_folder", root=str(tmp_path))
    (record,) = caplog.records
    assert "4 files of other endings are left out, and so all of ['bird']" in record.getMessage()
    caplog.clear()
    (tmp_path / "cat" / "0.png").replace(tmp_path / "dog" / "more.png")
    shutil.copy(tmp_path / "dog" / "more.png", tmp_path / "cat" / "0.png")
    with caplog.at_level(logging.WARNING):
        create_dataset("image_folder", root=str(tmp_path))
    assert "1 files are there under several classes; the first: ['cat/0.png', 'dog" in caplog.text


def test_the_size_is_that_of_the_first_picture_whatever_the_limit(tmp_path):
    for label in ("cat", "dog"):
        for i in range(10):
            put_pictures(tmp_path / "made", (label,), 1, (32 + 3 * i, 40 + 3 * i))
            shutil.move(tmp_path / "made" / label / "0.png", tmp_path / f"{label}-{i}.png")
            (tmp_path / label).mkdir(exist_ok=True)
            shutil.move(tmp_path / f"{label}-{i}.png", tmp_path / label / f"{i}.png")
    shutil.rmtree(tmp_path / "made")
    sizes = {
        create_dataset("image_folder", root=str(tmp_path), limit_train=limit).image_size
        for limit in (None, 10, 4, 2)
    }
    assert sizes == {32}


def test_pictures_of_more_than_8_bits_are_refused_in_training_too(tmp_path):
    for part, count in (("train", 10), ("val", 2)):
        put_pictures(tmp_path / part, ("n01", "n02"), count, (60, 50), "png")
    deep = np.full((50, 60), 40_000, np.uint16)
    for path in sorted((tmp_path / "train").rglob("*.png"))[1:]:
        Image.fromarray(deep).save(path)
    splits = create_dataset("imagenet", root=str(tmp_path))
    with pytest.raises(DataError, match=r"has more than 8 bits a pixel, mode I;16"):
        list(train_loader(splits.train, Augment.standard("imagenet"), 2, 1, 0))


def test_a_unit_that_no_file_takes_is_refused(files, tmp_path):
    for label in ("left", "right"):
        for i in range(10):
            events = files.some_events(60, 40, 60, seed=i)
            files.write_aedat4(tmp_path / label / f"{i}.aedat4", events)
    for how in ({"unit": "ms"}, {"columns": "t,x,y,p"}):
        events = EventOptions(T=4, sensor="40x60", cache="none", **how)
        with pytest.raises(ConfigError, match="these files say that themselves"):
            create_dataset("event_folder", root=str(tmp_path), events=events)


def test_copies_of_a_picture_are_held_out_together(tmp_path, caplog):
    put_pictures(tmp_path, count=20)
    before = create_dataset("image_folder", root=str(tmp_path))
    for path in sorted(tmp_path.rglob("*.png")):
        shutil.copy(path, path.with_name(f"{path.stem}_again.png"))
    with caplog.at_level(logging.WARNING):
        splits = create_dataset("image_folder", root=str(tmp_path))
    assert "byte for byte" not in caplog.text
    for old, new in zip(parts(before), parts(splits), strict=True):
        assert len(new) == 2 * len(old)
        again = {os.fsdecode(path).replace("_again", "") for path in new.paths}
        assert again == {os.fsdecode(path) for path in old.paths}


def test_imagenets_layout_is_cropped_before_it_is_decoded(tmp_path):
    put_pictures(tmp_path / "imagenet" / "train", ("n01", "n02"), 10, (500, 375), "JPEG")
    put_pictures(tmp_path / "imagenet" / "val", ("n01", "n02"), 3, (300, 400), "JPEG")
    with pytest.raises(DataError, match="Put there the folders train and val"):
        create_dataset("imagenet", root=str(tmp_path / "imagenet" / "val"))
    splits = create_dataset("imagenet", root=str(tmp_path))
    assert (splits.image_size, splits.augment) == (224, "imagenet")
    assert [len(part) for part in parts(splits)] == [18, 2, 6]
    paths = [splits.test.root / os.fsdecode(path) for path in splits.test.paths]
    images, _, _ = next(iter(eval_loader(splits.test, 6)))
    assert torch.equal(images, to_input(paths, splits.preprocess))
    augment = Augment.standard("imagenet")
    batches = [
        torch.stack(
            [images for images, _, _ in train_loader(splits.train, augment, 6, 1, 0, workers=w)]
        )
        for w in (0, 2)
    ]
    assert torch.equal(*batches) and batches[0].shape == (3, 6, 3, 224, 224)


def test_a_table_in_another_encoding_or_with_a_column_twice_is_refused(tmp_path):
    put_pictures(tmp_path, ("a", "b"))
    names = {"a": "狗", "b": "鸟"}
    rows = [f"{c}/{i}.png,{names[c]},{c}" for c in names for i in range(10)]
    text = "\n".join(["path,label", *(row.rpartition(",")[0] for row in rows), ""])
    (tmp_path / "labels.csv").write_bytes(text.encode("gbk"))
    with pytest.raises(DataError, match=r"labels\.csv\S* is no UTF-8 .*save it as CSV UTF-8"):
        create_dataset("image_folder", root=str(tmp_path))
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert create_dataset("image_folder", root=str(tmp_path)).train.classes == ("狗", "鸟")
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,label", *rows, ""]))
    with pytest.raises(DataError, match="each once"):
        create_dataset("image_folder", root=str(tmp_path))


@pytest.mark.parametrize(
    ("turn", "enc"),
    [
        (lambda text: text.replace(",", ";"), "utf-8"),
        (lambda text: text.replace(",", "\t"), "utf-16"),
        (lambda text: text.replace("path,", "Path, ").replace("test", "TEST"), "utf-8"),
        (lambda text: text.replace("/", "\\").replace("\n", "\r\n"), "utf-8-sig"),
    ],
)  # fmt: skip
def test_tables_of_spreadsheets_are_read(tmp_path, turn, enc):
    put_pictures(tmp_path)
    rows = [f"{c}/{i}.png,{c},{'test' if i < 3 else ''}" for c in ("cat", "dog") for i in range(10)]
    text = "\n".join(["path,label,part", *rows, ""])
    (tmp_path / "labels.csv").write_bytes(turn(text).encode(enc))
    splits = create_dataset("image_folder", root=str(tmp_path))
    assert splits.train.classes == ("cat", "dog")
    assert [len(part) for part in parts(splits)] == [12, 2, 6]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["cat/0.png,dog,a,"], r"line 22: 'cat/0\.png' is in line 2, too"),
        (["cat/0.png,cat,a,"], r"line 22: 'cat/0\.png' is in line 2, too"),
        (["more/0.png,cat,,"], "line 22: no person, where other lines have one"),
    ],
)
def test_a_file_named_twice_or_without_its_person_is_refused_by_its_line(tmp_path, lines, words):
    put_pictures(tmp_path)
    put_pictures(tmp_path, ("more",), 1)
    rows = [f"{c}/{i}.png,{c},p{i % 5}," for c in ("cat", "dog") for i in range(10)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,person,part", *rows, *lines]))
    with pytest.raises(DataError, match=words):
        create_dataset("image_folder", root=str(tmp_path))


def test_folders_of_parts_are_known_in_capitals_and_never_taken_for_classes(tmp_path, caplog):
    for part in ("TRAIN", "Validation", "test"):
        put_pictures(tmp_path / "a" / part)
    splits = create_dataset("image_folder", root=str(tmp_path / "a"))
    assert [len(part) for part in parts(splits)] == [20, 20, 20]
    for name, other in (("b", "unsorted"), ("c", "test")):
        put_pictures(tmp_path / name / other)
        put_pictures(tmp_path / name / ("train" if name == "b" else "val"))
        with pytest.raises(DataError, match=f"folders named for parts.*{other}.*or parts"):
            create_dataset("image_folder", root=str(tmp_path / name))
    put_pictures(tmp_path / "d", ("train", "plane"))  # two classes
    assert create_dataset("image_folder", root=str(tmp_path / "d")).num_classes == 2
    put_pictures(tmp_path / "f" / "d")
    with pytest.raises(DataError, match="all 20 files are of one class, 'd'.*folder above"):
        create_dataset("image_folder", root=str(tmp_path / "f"))
    put_pictures(tmp_path / "g" / "train")
    put_pictures(tmp_path / "g" / "test", ("cat", "cow"))
    create_dataset("image_folder", root=str(tmp_path / "g"))
    assert "nothing to train on of 1 classes, 'cow' first" in caplog.text


def test_a_fraction_that_holds_nothing_out_is_named_as_it_is_typed(tmp_path):
    put_pictures(tmp_path, count=2)
    with pytest.raises(DataError, match=r"test_fraction=0\.2 of 4 samples holds none out"):
        create_dataset("image_folder", root=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"<html>", "an HTML or XML page, probably a failed download"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_what_is_no_picture_is_told_for_what_it_is(tmp_path, content, words):
    put_pictures(tmp_path)
    (tmp_path / "cat" / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"cat/x\.jpg' is no picture but {words}"):
        create_dataset("image_folder", root=str(tmp_path))
    (tmp_path / "cat" / "x.jpg").unlink()
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "dog" / "deep.png")
    with pytest.raises(DataError, match=r"dog/deep\.png' has more than 8 bits a pixel, mode I;16"):
        create_dataset("image_folder", root=str(tmp_path))
