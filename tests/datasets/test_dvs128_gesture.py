from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from spikeformer_lt.datasets import dvs128_gesture as module
from spikeformer_lt.errors import DataError
from spikeformer_lt.events import EventAugment
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.registry import create_dataset

REPORT = EventOptions(T=4, incomplete="report", cache="none")
PEOPLE = {"ibmGestureTrain": range(1, 11), "ibmGestureTest": range(24, 27)}


def put_npy(files, home, labels=11, people=PEOPLE):
    seed = 0
    for folder, persons in people.items():
        for person in persons:
            for label in range(labels):
                seed += 1
                events = files.some_events(60 + seed, seed=seed)
                path = home / folder / f"user{person:02d}_fluorescent" / f"{label}.npy"
                files.write_npy(path, events, ticks=1000)


def put_original(files, home):
    lists = {"train": range(1, 6), "test": range(24, 26)}
    for part, persons in lists.items():
        names = [f"user{person:02d}_led" for person in persons]
        for i, name in enumerate(names):
            files.write_aedat31(home / f"{name}.aedat", files.some_events(1200, seed=i))
            rows = [f"{k + 1},{k * 80_000},{k * 80_000 + 70_000}" for k in range(11)]
            rows.append("8,900000,990000")
            table = "class,startTime_usec,endTime_usec\n" + "\n".join(rows)
            (home / f"{name}_labels.csv").write_text(table)
        (home / f"trials_to_{part}.txt").write_text("\n".join(f"{n}.aedat" for n in names))


@pytest.mark.parametrize("place", ["", "DVSGesture", "a/DVSGesture"])
def test_tonics_form_is_found_and_read_event_for_event(files, tmp_path, place):
    put_npy(files, tmp_path / place)
    splits = create_dataset("dvs128_gesture", root=str(tmp_path), events=REPORT)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [99, 11, 33]
    assert (splits.num_classes, splits.image_size, splits.kind) == (11, 128, "events")
    sample = splits.test.samples[0]
    assert sample.path == "ibmGestureTest/user24_fluorescent/0.npy"
    events, report = splits.test.events(0)
    expected = files.some_events(60 + 111, seed=111)
    expected["t_us"] = expected["t_us"] // 1000 * 1000
    assert np.array_equal(events, expected) and report.faults == {}
    assert splits.test[0][0].sum() == len(expected)
    assert files.same_from_files(splits)


def test_nobody_is_in_two_parts(files, tmp_path):
    put_npy(files, tmp_path)
    splits = create_dataset("dvs128_gesture", root=str(tmp_path), val_fraction=0.2, events=REPORT)
    people = [{s.group for s in part.samples} for part in (splits.train, splits.val, splits.test)]
    assert [len(p) for p in people] == [8, 2, 3] and len(set.union(*people)) == 13
    assert torch.bincount(splits.val.labels).tolist() == [2] * 11


def test_the_original_is_cut_into_its_labelled_stretches(files, tmp_path):
    put_original(files, tmp_path / "DvsGesture")
    splits = create_dataset("dvs128_gesture", root=str(tmp_path), events=REPORT)
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [48, 12, 24]
    whole = files.some_events(1200, seed=0)
    for i, sample in enumerate(splits.test.samples[:12]):
        events, _ = splits.test.events(i)
        t = whole["t_us"]
        assert np.array_equal(events, whole[(t >= sample.start_us) & (t < sample.end_us)])
    assert sorted(s.label for s in splits.test.samples[:12]) == sorted([*range(11), 7])


@pytest.mark.parametrize("form", ["npy", "original"])
def test_the_published_counts_are_asked_for(files, tmp_path, form, caplog):
    if form == "npy":
        put_npy(files, tmp_path)
        words = "train has 110 recordings of 1077: hand_clapping 10"
    else:
        put_original(files, tmp_path / "DvsGesture")
        words = "train has 60 recordings of 1176"
    with pytest.raises(DataError, match=words):
        create_dataset("dvs128_gesture", root=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        create_dataset("dvs128_gesture", root=str(tmp_path), events=REPORT)
    assert words in caplog.text


def test_a_strange_name_a_strange_label_and_half_a_set_are_refused(files, tmp_path):
    put_npy(files, tmp_path)
    odd = tmp_path / "ibmGestureTrain" / "user01_fluorescent" / "copy of 3.npy"
    odd.touch()
    with pytest.raises(DataError, match=r"copy of 3\.npy.* is not named user<number>"):
        create_dataset("dvs128_gesture", root=str(tmp_path), events=REPORT)
    odd.rename(odd.with_name("11.npy"))
    with pytest.raises(DataError, match=r"11\.npy', has the label 11, outside \[0, 11\)"):
        create_dataset("dvs128_gesture", root=str(tmp_path), events=REPORT)
    odd.with_name("11.npy").unlink()
    (tmp_path / "ibmGestureTest").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is not in"):
        create_dataset("dvs128_gesture", root=str(tmp_path), events=REPORT)


def test_a_missing_set_says_what_to_put_where_and_the_addresses_work(tmp_path):
    with pytest.raises(DataError) as caught:
        create_dataset("dvs128_gesture", root=str(tmp_path))
    for words in ("ibmGestureTrain.tar.gz", "3a8f0d4120a166bac7591f77409cb105", "moving_digits"):
        assert words in str(caught.value)
    assert all(a.url.startswith("https://api.figshare.com/v2/") for a in module.NPY_ARCHIVES)
    (tmp_path / "DvsGesture.tar.gz").write_bytes(b"not it")
    with pytest.raises(DataError, match=r"DvsGesture\.tar\.gz.* has md5"):
        create_dataset("dvs128_gesture", root=str(tmp_path))


def test_own_recordings_have_the_classes_they_have(files, tmp_path):
    put_npy(files, tmp_path, labels=3)
    (tmp_path / "ibmGestureTest" / "user24_fluorescent" / "1.npy").unlink()
    splits = create_dataset("dvs128_recordings", root=str(tmp_path))
    assert splits.num_classes == 3 and splits.name == "dvs128_recordings"
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [27, 3, 8]


def test_own_recordings_without_a_class_to_train_on_are_refused(files, tmp_path):
    with pytest.raises(DataError, match="does not hold the folders ibmGestureTrain"):
        create_dataset("dvs128_recordings", root=str(tmp_path))
    put_npy(files, tmp_path, labels=3)
    for person in PEOPLE["ibmGestureTrain"]:
        (tmp_path / "ibmGestureTrain" / f"user{person:02d}_fluorescent" / "1.npy").unlink()
    with pytest.raises(DataError, match=r"no training file of class \[1\]"):
        create_dataset("dvs128_recordings", root=str(tmp_path))


@pytest.mark.parametrize("form", ["npy", "original"])
@pytest.mark.fault(83)
def test_links_to_the_folders_are_the_folders(files, tmp_path, form):
    disk, root = tmp_path / "disk", tmp_path / "data"
    root.mkdir()
    if form == "npy":
        put_npy(files, disk)
        for folder in PEOPLE:
            (root / folder).symlink_to(disk / folder)
    else:
        put_original(files, disk / "DvsGesture")
        (root / "DvsGesture").symlink_to(disk / "DvsGesture")
    linked = create_dataset("dvs128_gesture", root=str(root), events=REPORT)
    plain = create_dataset("dvs128_gesture", root=str(disk), events=REPORT)
    assert linked.split_sha256 == plain.split_sha256
    assert torch.equal(linked.test[0][0], plain.test[0][0])


@pytest.mark.fault(80)
def test_the_unit_and_the_columns_of_own_recordings_can_be_named(files, tmp_path):
    put_npy(files, tmp_path, labels=2)
    plain = create_dataset("dvs128_recordings", root=str(tmp_path), events=REPORT)
    micro = tmp_path / "micro"
    for path in sorted(tmp_path.rglob("*.npy")):
        rows = np.load(path).astype(np.int64)
        target = micro / path.relative_to(tmp_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, np.stack([rows[:, 3] * 1000, *rows[:, :3].T], 1))
    events = replace(REPORT, unit="us", columns="t,x,y,p")
    named = create_dataset("dvs128_recordings", root=str(micro), events=events)
    for part in ("train", "val", "test"):
        ours, theirs = getattr(named, part), getattr(plain, part)
        assert all(np.array_equal(ours.events(i)[0], theirs.events(i)[0]) for i in range(len(ours)))
    assert files.same_from_files(named) and files.same_from_files(plain)


@pytest.mark.fault(80)
def test_a_recording_in_a_wrong_unit_is_told_once(files, tmp_path, caplog):
    put_npy(files, tmp_path, labels=2)
    for path in tmp_path.rglob("*.npy"):
        events = files.some_events(800, span_us=1_500_000, seed=len(str(path)))
        files.write_npy(path, events)  # microseconds
    splits = create_dataset("dvs128_recordings", root=str(tmp_path), events=REPORT)
    with caplog.at_level(logging.WARNING):
        for i in range(len(splits.train)):
            splits.train[i]
    told = [r.getMessage() for r in caplog.records if "use unit=us, ms or s" in r.getMessage()]
    assert len(told) == 1 and "800 events in 149" in told[0]


@pytest.mark.parametrize("name", ["dvs128_gesture", "dvs128_recordings"])
@pytest.mark.fault(84)
def test_nothing_is_mirrored_by_default(files, tmp_path, name):
    """A mirrored right hand is a left one."""
    put_npy(files, tmp_path)
    splits = create_dataset(name, root=str(tmp_path), events=REPORT)
    assert splits.mirror_changes_label
    assert EventAugment.standard(splits.augment) == EventAugment(wide=True)


@pytest.mark.data
def test_the_dvs128_objects_are_read_whole(shared, tmp_path):
    """Real recordings of a DVS128 in tonic's form; they are objects, not the gestures."""
    import tarfile

    archive = shared / "data" / "dvs128_objects.tar.gz"
    if not archive.is_file():
        pytest.skip(f"no file {archive}")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    splits = create_dataset("dvs128_recordings", root=str(tmp_path))
    assert splits.split_sha256 == (
        "6e60bcd8da0f2d8ab1268fa2286bab74e9e9827f8562e66c91bb2bffee640c21"
    )
    assert [len(p) for p in (splits.train, splits.val, splits.test)] == [113, 14, 167]
    assert splits.num_classes == 7
    total = sum(int(p[i][0].sum()) for p in (splits.train, splits.val, splits.test)
                for i in range(len(p)))  # fmt: skip
    assert total == 3_489_037
    with pytest.raises(DataError, match="127 recordings of 1077"):
        create_dataset("dvs128_gesture", root=str(tmp_path))
