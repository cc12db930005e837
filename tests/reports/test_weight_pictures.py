"""Kernel mosaics and distances between masks."""

from __future__ import annotations

import csv

import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.plots import banded, plot_distances, plot_kernels


def test_a_mosaic_counts_signs_of_every_filter(tmp_path):
    weight = torch.randn(20, 5, 3, 3)
    weight[:, ::2] = 0
    plot_kernels(tmp_path / "a.png", weight, "layer")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 20
    for row, own in zip(rows, weight, strict=True):
        assert int(row["plus"]) == int((own > 0).sum())
        assert (int(row["zero"]), int(row["minus"])) == (27, int((own < 0).sum()))
    with pytest.raises(DataError, match="four axes"):
        plot_kernels(tmp_path / "b.png", torch.ones(2, 2), "linear")


def test_distances_are_a_metric_and_drawn_as_they_are(tmp_path):
    generator = torch.Generator().manual_seed(0)
    masks = [Mask({"a": torch.rand(4, 5, generator=generator) < 0.5}) for _ in range(4)]
    distances = banded([[a.hamming(b) for b in masks[:i]] for i, a in enumerate(masks)])
    plot_distances(tmp_path / "a.png", distances, list("wxyz"))
    assert torch.equal(distances, distances.T) and not bool(distances.diagonal().any())
    assert float(distances[0, 1]) == masks[0].hamming(masks[1]) > 0
    for i in range(4):
        for j in range(4):
            for k in range(4):
                assert distances[i, j] <= distances[i, k] + distances[k, j] + 1e-12
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert float(rows[2]["w"]) == float(distances[2, 0])


def test_distances_in_a_window_become_a_band(tmp_path):
    nan = float("nan")
    found = banded([[], [0.3], [0.2, 0.1], [0.05, 0.04]])
    want = torch.tensor([[0, 0.3, 0.2, nan], [0.3, 0, 0.1, 0.05],
                         [0.2, 0.1, 0, 0.04], [nan, 0.05, 0.04, 0]]).double()  # fmt: skip
    assert torch.allclose(found, want, equal_nan=True)
    plot_distances(tmp_path / "a.png", found, list("1234"), "epoch")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert (rows[0]["4"], rows[0]["2"]) == ("", "0.3")
