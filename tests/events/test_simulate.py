from __future__ import annotations

import numpy as np
import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.events.recording import EVENTS, Sensor
from spikeformer_lt.events.simulate import Camera, _moved
from spikeformer_lt.events.validate import validate

QUIET = Camera(noise_hz=0, mismatch=0)


def disc(side=24):
    grid = np.arange(side) - (side - 1) / 2
    return (np.hypot(*np.meshgrid(grid, grid)) < side / 3).astype(np.float64)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_recording_is_valid_and_lasts_three_saccades(size):
    camera = Camera()
    events = camera.record(disc(), size, rng())
    checked, report = validate(events, Sensor(size, size))
    assert events.dtype == EVENTS and np.array_equal(checked, events) and report.faults == {}
    assert events["t_us"].min() >= 0 and events["t_us"].max() < camera.duration_us == 300_000
    assert report.duration_us > 250_000 and 0.3 < report.on / report.kept < 0.7


def test_the_same_state_gives_the_same_recording_and_another_another():
    first = Camera().record(disc(), 32, rng(1))
    assert np.array_equal(Camera().record(disc(), 32, rng(1)), first)
    assert not np.array_equal(Camera().record(disc(), 32, rng(2))[:50], first[:50])


def test_without_light_or_motion_there_is_noise_alone():
    dark = np.zeros((24, 24))
    assert len(QUIET.record(dark, 32, rng())) == 0
    assert len(Camera(noise_hz=0, mismatch=0, reach=0).record(disc(), 32, rng())) == 0
    noise = [len(Camera(noise_hz=20, steps=2).record(dark, 32, rng(i))) for i in range(20)]
    assert np.mean(noise) == pytest.approx(20 * 32 * 32 * 0.3, rel=0.02)


def test_events_add_up_to_the_change_of_log_brightness():
    """On minus off events, times the threshold, is last minus first, to one threshold."""
    generator = rng(3)
    events = QUIET.record(disc(), 32, generator)
    _, shifts = QUIET._path(32, rng(3))
    level = np.log(0.1 + 0.9 * _moved(disc(), 32, shifts))
    balance = np.zeros((32, 32))
    np.add.at(balance, (events["y"], events["x"]), events["p"].astype(float) * 2 - 1)
    assert np.abs(balance * QUIET.threshold - (level[-1] - level[0])).max() < QUIET.threshold * (
        1 + 1e-9
    )
    assert np.abs(np.diff(level, axis=0)).sum() / QUIET.threshold >= len(events)


def test_finer_steps_change_little():
    coarse = Camera(noise_hz=0, mismatch=0, steps=24).record(disc(), 32, rng())
    fine = Camera(noise_hz=0, mismatch=0, steps=200).record(disc(), 32, rng())
    assert abs(len(coarse) - len(fine)) < 0.05 * len(fine)


def test_a_larger_threshold_makes_fewer_events():
    counts = [
        len(Camera(threshold=c, noise_hz=0, mismatch=0).record(disc(), 32, rng()))
        for c in (0.1, 0.2, 0.4, 2.5)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > 3 * counts[2] and counts[3] == 0


def test_a_leading_edge_is_on_and_a_trailing_edge_off():
    # A bright square moved right: events to its right are on, those to its left off.
    shifts = np.stack([np.linspace(0, 3, 4), np.zeros(4)], 1)
    moved = _moved(np.ones((8, 8)), 16, shifts)
    assert moved.shape == (4, 16, 16) and moved[0].sum() == pytest.approx(64)
    assert np.allclose(moved[3][:, 3:], moved[0][:, :-3])
    assert (moved[3] - moved[0])[4:12, 12:15].min() == 1 and (moved[3] - moved[0])[
        4:12, 4:7
    ].max() == -1
    half = _moved(np.ones((8, 8)), 16, np.array([[0.5, -0.25]]))[0]
    assert half.sum() == pytest.approx(64) and half[8, 4] == 0.5 and half[3, 8] == 0.25
    gone = _moved(np.ones((8, 8)), 16, np.array([[100.0, 0.0]]))[0]
    assert gone.sum() == 0


@pytest.mark.parametrize(
    "odd",
    [
        *({"threshold": 0.0}, {"threshold": float("nan")}, {"mismatch": float("nan")}),
        *({"steps": 0}, {"saccade_us": 0}, {"noise_hz": -1.0}),
    ],
)
def test_a_camera_of_odd_numbers_is_refused(odd):
    (name,) = odd
    with pytest.raises(ConfigError, match=name):
        Camera(**odd)
