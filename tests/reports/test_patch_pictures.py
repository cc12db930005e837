"""Kept patches, drawn where they are."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.plots import (
    OFF,
    ON,
    fade,
    keep_map,
    plot_keep_frequency,
    plot_kept_clip,
    plot_kept_images,
    show_frames,
    show_images,
)


def test_the_map_is_true_exactly_where_patches_are_kept():
    keep = keep_map(torch.tensor([0, 5]), (2, 3), (4, 9))
    assert keep.shape == (4, 9) and keep.sum() == 2 * 2 * 3
    assert keep[:2, :3].all() and keep[2:, 6:].all()
    assert keep_map(None, (2, 3), (4, 9)).all()
    with pytest.raises(DataError, match="does not divide"):
        keep_map(None, (2, 3), (5, 9))


def test_kept_pixels_are_shown_as_they_are_and_others_fade():
    pixels = np.random.default_rng(0).random((4, 4, 3))
    keep = keep_map(torch.tensor([0]), (2, 2), (4, 4))
    faded = fade(pixels, keep)
    assert (faded[:2, :2] == pixels[:2, :2]).all()
    assert np.ptp(faded[2:]) < 0.2 * np.ptp(pixels[2:]) + 1e-9


def test_normalisation_is_undone():
    mean, std = (0.2, 0.4, 0.6), (0.5, 0.25, 0.1)
    pixels = torch.rand(2, 3, 4, 4)
    seen = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert np.allclose(show_images(seen, mean, std), pixels.permute(0, 2, 3, 1), atol=1e-6)
    assert show_images(torch.rand(1, 1, 4, 4), (0.0,), (1.0,)).shape == (1, 4, 4, 3)


def test_events_are_orange_where_brighter_and_blue_where_darker():
    frames = torch.zeros(1, 2, 2, 2)
    frames[0, 1, 0, 0], frames[0, 0, 1, 1] = 3, 3
    shown = show_frames(frames)
    assert np.allclose(shown[0, 0, 0], ON) and np.allclose(shown[0, 1, 1], OFF)
    assert np.allclose(shown[0, 0, 1], 1) and shown.min() >= 0 and shown.max() <= 1


def test_pictures_gif_and_csv_are_written(tmp_path):
    kept = torch.tensor([[0, 3], [1, 2]])
    plot_kept_images(tmp_path / "a.png", np.zeros((2, 8, 8, 3)), kept, (2, 2), ["x", "y"])
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [row["kept_tokens"] for row in rows] == ["0 3", "1 2"]
    frames = torch.rand(5, 2, 8, 8).round()
    plot_kept_clip(tmp_path / "b.png", frames, kept[0], (2, 2))
    with Image.open(tmp_path / "b.gif") as gif:
        assert gif.n_frames == 5 and gif.size == (256, 256)
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert sum(float(r["on_events"]) for r in rows) == float(frames[:, 1].sum())
    plot_keep_frequency(tmp_path / "c.png", torch.rand(2, 3), 7)
    assert len(list(csv.DictReader((tmp_path / "c.csv").open()))) == 6
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
