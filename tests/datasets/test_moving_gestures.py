"""Simulated gestures: the same in memory and in both forms of files, and called simulated."""

from __future__ import annotations

import collections
import logging

import numpy as np
import pytest
import torch

from spikeformer_lt.datasets.dvs128_gesture import CLASSES
from spikeformer_lt.datasets.moving_gestures import _Body, _hands
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import Camera, EventOptions, Sensor, to_frames
from spikeformer_lt.events.__main__ import main
from spikeformer_lt.events.formats import read_npz
from spikeformer_lt.events.validate import validate
from spikeformer_lt.registry import create_dataset

# Of the split as it was first published; a change here changes everybody's numbers.
SHA256 = "7ace0876a69b4f1f719f51fcae30ea323dc1c99e48cbb58c8127d20cc5aa89c0"
FEW = {"limit_train": 22, "limit_test": 11}
T4 = EventOptions(T=4)


@pytest.fixture(scope="module")
def splits():
    return create_dataset("moving_gestures", **FEW, events=T4)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """By form, the root of a few gestures in files."""
    root = tmp_path_factory.mktemp("gestures")
    few = [f"--{name.replace('_', '-')}={count}" for name, count in FEW.items()]
    for form in ("aedat31", "npy"):
        assert main(["write", str(root / form), "--form", form, *few]) == 0
    return root


def test_it_has_the_form_of_dvs128_gesture():
    whole = create_dataset("moving_gestures")
    assert [len(p) for p in (whole.train, whole.val, whole.test)] == [1020, 156, 288]
    assert (whole.kind, whole.num_classes, whole.image_size) == ("events", 11, 32)
    assert whole.split_sha256 == SHA256 and whole.test.classes == CLASSES
    people = [{int(s.group) for s in part.samples} for part in (whole.train, whole.val, whole.test)]
    assert people[0] | people[1] == set(range(1, 24)) and not people[0] & people[1]
    assert people[2] == set(range(24, 30))
    for part in (whole.train, whole.val, whole.test):
        counts = torch.bincount(part.labels, minlength=11).tolist()
        assert counts[7] == 2 * counts[0] and len(set(counts)) == 2  # arms roll both ways


def test_a_recording_is_real_in_form_and_the_same_each_time(splits):
    sample, (events, report) = splits.test.samples[0], splits.test.events(0)
    assert report.faults == {} and not report.empty and not report.doubt
    assert 2000 < len(events) < 40_000 and 0.4 < report.on / report.kept < 0.6
    assert sample.start_us <= events["t_us"][0] and events["t_us"][-1] < sample.end_us
    again, _ = create_dataset("moving_gestures", **FEW, events=T4).test.events(0)
    assert np.array_equal(again, events)


def test_only_the_order_of_time_tells_a_circle_from_the_opposite_one():
    """A bright arm's frames are, in reversed order, those of a dark one that turns back."""
    draw, angle = np.random.default_rng, np.linspace(0, 6, 101)
    for row in (3, 5):
        there, back = _hands(row, angle, 1.0, draw(0)), _hands(row + 1, -angle[::-1], 1.0, draw(0))
        assert all(np.allclose(one[::-1], other) for one, other in zip(there, back, strict=True))
    level = _Body(draw(0)).film(3, angle / 5, draw(1))
    camera, times = Camera(threshold=0.1, mismatch=0, noise_hz=0), angle * 2e5
    framing, sensor = EventOptions(T=5, by="n_time_bins"), Sensor(128, 128)
    bright, dark = (
        to_frames(camera.film(film, times, draw(2)), framing, sensor)[0]
        for film in (level, -level[::-1])
    )
    shared = np.minimum(bright, dark[::-1]).sum((1, 2, 3)) / bright.sum((1, 2, 3))
    assert shared.min() > 0.8
    assert np.minimum(bright, bright[::-1])[:2].sum() < 0.5 * bright[:2].sum()


@pytest.mark.parametrize("form", ["aedat31", "npy"])
def test_files_give_the_frames_that_memory_does(splits, written, form, caplog):
    root = str(written / form)
    with caplog.at_level(logging.WARNING):
        found = create_dataset("dvs128_gesture", root=root, image_size=32, events=T4)
    assert found.name == "simulated_gestures" and "is simulated" in caplog.text
    known = [
        (f"{s.path.removesuffix('.aedat')}/{s.label}", part[i])
        for part in (splits.train, splits.val, splits.test)
        for i, s in enumerate(part.samples)
    ]
    ours: dict[str, list[torch.Tensor]] = {}
    for name, (frames, _) in known:
        ours.setdefault(name, []).append(frames)
    for part in (found.train, found.val, found.test):
        for i, sample in enumerate(part.samples):
            trial = sample.path.removesuffix(".aedat")
            if form == "npy":
                trial = sample.path.split("/")[1]
            frames, label = part[i]
            assert any(torch.equal(frames, each) for each in ours[f"{trial}/{label}"])
    assert form == "npy" or [len(known), 11] == [
        len(found.train) + len(found.val) + len(found.test), len(found.test)
    ]  # fmt: skip
    direct = create_dataset("simulated_gestures", root=root, events=T4)
    assert direct.image_size == 128 and direct.name == found.name


def test_spikingjelly_cuts_the_files_into_the_arrays_that_we_read(tmp_path):
    """Its reader of AEDAT 3.1, its labels, its events_np: event for event our own trial."""
    theirs = pytest.importorskip("spikingjelly.datasets.dvs128_gesture")
    assert main(["write", str(tmp_path), "--limit-train", "250", "--limit-test", "11"]) == 0
    splits = create_dataset("dvs128_gesture", root=str(tmp_path), events=T4)
    parts = splits.train, splits.val, splits.test
    found = {(s.path, s.start_us): (p, i) for p in parts for i, s in enumerate(p.samples)}
    path = collections.Counter(path for path, _ in found).most_common(1)[0][0]
    home = tmp_path / "DvsGesture"
    labels = home / path.replace(".aedat", "_labels.csv")
    rows = np.loadtxt(labels, int, delimiter=",", skiprows=1, ndmin=2)
    assert len(rows) > 1  # it reads no table of one
    for label in range(11):
        (tmp_path / "events_np" / str(label)).mkdir(parents=True)
    theirs._split_aedat_files_to_np("trial", home / path, labels, tmp_path / "events_np")
    made = collections.Counter()
    for label, start, _ in rows - [1, 0, 0]:
        place = tmp_path / "events_np" / str(label) / f"trial_{made[label]}.npz"
        made[label] += 1
        part, index = found[path, start]
        events, _ = validate(read_npz(place).events, Sensor(128, 128))
        assert part.samples[index].label == label
        assert np.array_equal(events, part.events(index)[0]) and len(events) > 1000


def test_nothing_is_written_over_and_real_files_are_not_called_simulated(written, capsys):
    assert main(["write", str(written / "npy"), "--form", "npy", "--limit-train", "22"]) == 2
    assert "one without a folder DVSGesture" in capsys.readouterr().err
    assert not [p for p in (written / "npy").iterdir() if p.name.startswith(".")]
    (written / "npy" / "DVSGesture" / "SIMULATED.txt").rename(written / "mark")
    try:
        with pytest.raises(DataError, match="dvs128_gesture train has 2. recordings of 1077"):
            create_dataset("dvs128_gesture", root=str(written / "npy"))
        with pytest.raises(DataError, match="holds no simulated gestures"):
            create_dataset("simulated_gestures", root=str(written / "npy"))
    finally:
        (written / "mark").rename(written / "npy" / "DVSGesture" / "SIMULATED.txt")


def test_what_a_killed_call_left_half_written_is_swept(tmp_path):
    left = tmp_path / ".DvsGesture.tmp-0123456789ab"
    left.mkdir()
    (left / "user01_led.aedat").write_bytes(b"half")
    assert main(["write", str(tmp_path), "--limit-train", "11", "--limit-test", "11"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["DvsGesture"]


@pytest.mark.parametrize("size", [-1, 0])
def test_a_frame_has_pixels(size):
    with pytest.raises(ConfigError, match=f"image_size={size} is not allowed"):
        create_dataset("moving_gestures", image_size=size)
