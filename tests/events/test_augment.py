from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.events import augment as augment_module
from spikeformer_lt.events.augment import EventAugment, Transforms
from spikeformer_lt.events.recording import Sensor
from spikeformer_lt.images.loader import train_loader

PRESETS = ["none", "moving_digits", "spikformer_dvs", "tet_dvs", "event_drop"]


def counts(T=6, size=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(torch.full((T, 2, size, size), 1.5), generator)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_seed_gives_the_same_frames_and_the_input_stays(name):
    augment, frames = EventAugment.standard(name), counts()
    before = frames.clone()
    results = [augment(frames, rng(seed)) for seed in range(40)]
    again = [augment(frames, rng(seed)) for seed in range(40)]
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    assert torch.equal(frames, before)
    for out in results:
        assert out.shape == frames.shape and out.dtype == frames.dtype
        assert torch.equal(out, out.round()) and (out >= 0).all() and out.sum() <= frames.sum()
    assert augment.is_identity() == (name == "none")
    distinct = {out.numpy().tobytes() for out in results}
    assert len(distinct) == 1 if name == "none" else len(distinct) > 10


def test_a_flip_is_of_all_times_and_comes_as_often_as_asked():
    frames = counts()
    assert torch.equal(EventAugment(hflip=1)(frames, rng()), frames.flip(-1))
    half = [EventAugment(hflip=0.5)(frames, rng(i)) for i in range(400)]
    flipped = sum(torch.equal(out, frames.flip(-1)) for out in half)
    assert 160 < flipped < 240 and flipped + sum(torch.equal(o, frames) for o in half) == 400


def test_a_roll_keeps_every_event_and_stays_in_its_reach():
    frames = torch.zeros(2, 2, 20, 20)
    frames[:, :, 10, 10] = 1
    places = set()
    for seed in range(300):
        out = EventAugment(roll=2)(frames, rng(seed))
        assert out.sum() == 4
        (_, _, y, x) = out.nonzero()[0].tolist()
        assert torch.equal(out[..., y, x], torch.ones(2, 2))
        places.add((y - 10, x - 10))
    assert places == {(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}


def test_wide_uses_each_operation_alike_with_the_sources_largest_strengths(monkeypatch):
    from torchvision.transforms import functional

    seen: dict[str, list[float]] = {}

    def note(frames, angle, shifts, scale, shears):
        assert scale == 1 and shears[1] == 0
        changes = {"angle": angle, "dx": shifts[0], "dy": shifts[1], "shear": shears[0]}
        for name, value in changes.items():
            if value:
                seen.setdefault(name, []).append(value)
        return frames

    def note_cut(frames, top, left, height, width):
        seen.setdefault("cut", []).append(height * width / 20**2)
        assert height == width and 0 <= top <= 20 - height and 0 <= left <= 20 - width
        return frames

    monkeypatch.setattr(functional, "affine", note)
    monkeypatch.setattr(augment_module, "_cut_out", note_cut)
    frames = counts()
    for seed in range(3000):
        EventAugment(wide=True)(frames, rng(seed))
    # One strength in 31 is none; of shifts, whole pixels, 7 in 31 are.
    shares = {"angle": 30 / 31, "shear": 30 / 31, "dx": 24 / 31, "dy": 24 / 31, "cut": 1}
    assert set(seen) == set(shares)
    for name, part in shares.items():
        assert abs(len(seen[name]) / 3000 - part / 6) < 0.03
    limits = {"angle": 30.0, "shear": math.degrees(0.3), "dx": 5, "dy": 5}
    for name, limit in limits.items():
        assert max(seen[name]) == pytest.approx(limit) and min(seen[name]) == pytest.approx(-limit)
        assert abs(np.mean(seen[name])) < 0.1 * limit
    assert len({round(angle, 6) for angle in seen["angle"]}) == 30
    assert max(seen["cut"]) <= 0.13


@pytest.mark.parametrize("operation", ["shear_x", "translate_x", "translate_y", "rotate", "cutout"])
def test_wide_moves_all_frames_alike_and_mixes_no_values(monkeypatch, operation):
    monkeypatch.setattr(augment_module, "_OPERATIONS", (operation,))
    frame = torch.arange(1, 401).view(20, 20).float()
    frames = torch.stack([frame, frame * 2, frame * 0])[:, None]
    for seed in range(20):
        out = EventAugment(wide=True)(frames, rng(seed))
        assert torch.equal(out[1], out[0] * 2) and not out[2].any()
        assert set(out[0].flatten().tolist()) <= {0, *frame.flatten().tolist()}


def test_event_drop_takes_stretches_rectangles_or_single_events():
    frames = torch.full((10, 2, 20, 20), 4.0)
    ways = {"none": 0, "time": 0, "area": 0, "random": 0}
    for seed in range(800):
        out = EventAugment(event_drop=1)(frames, rng(seed))
        gone_frames = [t for t in range(10) if not out[t].any()]
        gone_pixels = (out == 0).all(dim=0).all(dim=0)
        if torch.equal(out, frames):
            ways["none"] += 1
        elif gone_frames:
            ways["time"] += 1
            assert gone_frames == list(range(gone_frames[0], gone_frames[-1] + 1))
            assert 1 <= len(gone_frames) <= 9 and set(out.unique().tolist()) <= {0.0, 4.0}
        elif gone_pixels.any() and set(out.unique().tolist()) == {0.0, 4.0}:
            ways["area"] += 1
            rows, columns = gone_pixels.any(1).sum().item(), gone_pixels.any(0).sum().item()
            assert gone_pixels.sum() == rows * columns and max(rows, columns) <= 5
        else:
            ways["random"] += 1
    assert all(150 < count < 250 for count in ways.values())


def test_single_events_go_by_the_binomial_law(monkeypatch):
    frames = torch.full((10, 2, 50, 50), 8.0)
    monkeypatch.setattr(augment_module, "_DROPS", ("random",))
    kept = {}
    for seed in range(30):
        part = rng_part(seed)
        out = EventAugment(event_drop=1)(frames, rng(seed))
        kept[part] = out
    for part, out in kept.items():
        p = 1 - part
        assert out.mean().item() == pytest.approx(8 * p, abs=0.05)
        assert out.var().item() == pytest.approx(8 * p * (1 - p), abs=0.1)
    assert len(kept) > 5


def rng_part(seed):
    """The part that `_event_drop` draws after the chance and the way."""
    generator = rng(seed)
    generator.random()
    generator.integers(1)
    return generator.integers(1, 10) / 10


def test_the_transform_follows_pythons_generator_alone():
    transform = EventAugment.standard("spikformer_dvs").build((0.0, 0.0), (1.0, 1.0), 20)
    frames = counts().to(torch.uint8)

    def run(seed):
        random.seed(seed)
        np.random.seed(None)  # noqa: NPY002
        return transform(frames)

    first = [run(seed) for seed in range(20)]
    assert all(torch.equal(a, run(seed)) for seed, a in enumerate(first))
    assert all(out.dtype == torch.float32 for out in first)
    assert len({out.numpy().tobytes() for out in first}) > 5


class Frames:
    """A data set in memory, as a loader takes it."""

    name, mean, std = "made", (0.0, 0.0), (1.0, 1.0)
    labels = torch.arange(12) % 3

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return counts(seed=index), int(self.labels[index])


def test_in_a_loader_each_sample_has_its_own_seed_whatever_the_workers():
    def epoch(number, workers):
        loader = train_loader(
            Frames(),
            EventAugment.standard("spikformer_dvs"),
            4,
            seed=1,
            epoch=number,
            workers=workers,
        )
        return {
            int(i): f for frames, _, places in loader for i, f in zip(places, frames, strict=True)
        }

    alone, two, later = epoch(0, 0), epoch(0, 2), epoch(1, 0)
    assert set(alone) == set(range(12))
    assert all(torch.equal(alone[i], two[i]) for i in alone)
    assert any(not torch.equal(alone[i], later[i]) for i in alone)
    assert alone[0].shape == (6, 2, 20, 20)
    # Without augmentation a loader gives the counts as they are.
    plain = {int(i): f for fs, _, ps in train_loader(Frames(), EventAugment(), 4, 1, 0)
             for i, f in zip(ps, fs, strict=True)}  # fmt: skip
    assert all(torch.equal(plain[i], counts(seed=i)) for i in plain)


def test_values_out_of_range_are_refused_by_field():
    for fields, words in (
        ({"hflip": 1.5}, "hflip=1.5"),
        ({"event_drop": -0.1}, "event_drop=-0.1"),
        ({"roll": -1}, "roll=-1"),
        ({"roll": 1.5}, "roll=1.5"),
    ):
        with pytest.raises(ConfigError, match=words):
            EventAugment(**fields).check()
    with pytest.raises(ConfigError, match="did you mean 'spikformer_dvs'"):
        EventAugment.standard("spikformer_dv")
    with pytest.raises(ConfigError, match="frames are counts"):
        EventAugment().build((0.5, 0.5), (1.0, 1.0), 20)
    with pytest.raises(DataError, match=r"\[T, P, H, W\]"):
        EventAugment()(torch.zeros(2, 4, 4), rng())


WHOLE = Sensor(40, 30)


@pytest.mark.parametrize(
    ("text", "sensor", "kept"),
    [
        ("", (40, 30), 500),
        ("CropTime(max=500000)", (40, 30), None),
        ("CenterCrop(size=(10, 20))", (20, 10), None),
        ("Downsample(spatial_factor=0.5)", (20, 15), 500),
        ("Downsample(target_size=(15, 10)), TimeAlignment", (10, 15), 500),
        ("DropEvent(p=0.5), RandomFlipLR(p=1.0)", (40, 30), 250),
    ],
)
def test_transforms_of_tonic_make_valid_events_on_the_sensor_that_they_leave(
    files, text, sensor, kept
):
    events, transforms = files.some_events(500, 40, 30), Transforms.parse(text, WHOLE)
    assert transforms.sensor == Sensor(*sensor)
    made, report = transforms(events, "a.npy", "a")
    assert len(made) == report.kept == (kept or report.kept) and 0 < len(made) <= 500
    assert int(made["x"].max()) < sensor[1] and int(made["y"].max()) < sensor[0]
    again, _ = transforms(events, "a.npy", "a")
    assert np.array_equal(made, again)
    if "DropEvent" in text:  # another recording is drawn for anew
        assert not np.array_equal(made, transforms(events, "b.npy", "b")[0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Denoise", "missing 1 required|unexpected|argument"),
        ("Denois(filter_time=3)", "'Denois'.*Denoise"),
        ("Denoise(10)", "named literal values"),
        ("Denoise(filter_time=open('x'))", "named literal values"),
        ("__import__('os').system('x')", "named literal values"),
        ("Denoise(**{'filter_time': 3})", "is not allowed"),
        ("Denoise(filter_time=3", "named literal values"),
        ("[" * 500, "named literal values"),
        ("x" * 3000, "at most 2000 characters"),
        ("Compose(transforms=())", "tonic has no transform"),
        ("CenterCrop(size=(0, 5))", "1 to 4096"),
    ],
)
def test_other_texts_of_transforms_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        Transforms.parse(text, WHOLE)


def test_what_makes_frames_is_no_transform(files):
    transforms = Transforms.parse("ToFrame(n_time_bins=4)", WHOLE)
    with pytest.raises(DataError, match=r"make no events but ndarray.*--data\.by"):
        transforms(files.some_events(50, 40, 30), "a.npy", "a")


def test_a_transform_keeps_nothing_of_the_recording_before(files):
    transforms = Transforms.parse("CropTime(min=100000)", WHOLE)
    recordings = [files.some_events(500, 40, 30, span) for span in (200_000, 900_000)]
    there = [transforms(events, "a.npy", "a")[0] for events in recordings]
    back = [transforms(events, "a.npy", "a")[0] for events in recordings[::-1]][::-1]
    assert all(np.array_equal(one, other) for one, other in zip(there, back, strict=True))
    assert 400 < len(there[1]) < 500


def test_transforms_get_the_times_of_the_recording_and_polarities_of_both_kinds(files):
    events = files.some_events(2000, 40, 30)
    events["t_us"] += 20_000_000
    text = "DropEventByTime(duration_ratio=0.5)"
    for first, some in (("", 0), ("TimeAlignment, ", 500)):  # tonic's draws a stretch from 0 on
        made, _ = Transforms.parse(first + text, WHOLE)(events, "a.npy", "a")
        assert (len(made) == 2000) if not some else some < len(made) < 1500
    noisy, _ = Transforms.parse("UniformNoise(n=4000)", WHOLE)(events, "a.npy", "a")
    added = [int((noisy["p"] == p).sum() - (events["p"] == p).sum()) for p in (0, 1)]
    assert sum(added) == 4000 and min(added) > 1500


def test_transforms_leave_an_empty_recording_empty(files):
    events = files.some_events(5, 40, 30)[:0]
    for text in ("Denoise(filter_time=10000)", "TimeAlignment, DropEvent(p=0.5)"):
        assert len(Transforms.parse(text, WHOLE)(events, "a.npy", "a")[0]) == 0
