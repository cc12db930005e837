"""Accuracy over t, early exit, confusion."""

from __future__ import annotations

import csv

import pytest
import torch

from spikeformer_lt.errors import DataError
from spikeformer_lt.reports.plots import plot_anytime, plot_confusion, plot_early_exit
from spikeformer_lt.reports.probe import early_exit


def test_who_must_be_sure_waits_and_who_need_not_answers_at_once():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 4, 3, generator=generator), torch.arange(50) % 3
    first, *_, last = early_exit(logits, labels, (0.0, 0.5, 0.8, 1.1))
    assert first[1] == 1 and last[1] == 4
    assert first[2] == pytest.approx(100 * float((logits[:, 0].argmax(1) == labels).float().mean()))
    whole = 100 * float((logits.mean(1).argmax(1) == labels).float().mean())
    assert last[2] == pytest.approx(whole)
    steps = [point[1] for point in early_exit(logits, labels)]
    assert steps == sorted(steps)


def test_exit_steps_by_hand():
    sure, unsure = [9.0, 0.0], [0.0, 0.0]
    logits = torch.tensor([[sure, unsure, unsure], [unsure, sure, unsure]])
    assert early_exit(logits, torch.tensor([0, 1]), (0.9,)) == [(0.9, 1.5, 50.0)]


def test_pictures_have_their_numbers_beside_them(tmp_path):
    plot_anytime(tmp_path / "a.png", {"x": [10.0, 20.0], "y": [30.0]})
    rows = list(csv.reader((tmp_path / "a.csv").open()))
    assert rows[1:] == [["x", "1", "10.0"], ["x", "2", "20.0"], ["y", "1", "30.0"]]
    plot_early_exit(tmp_path / "b.png", [(0.5, 1.5, 90.0)])
    plot_confusion(tmp_path / "c.png", [[3, 1], [0, 0]])
    assert list(csv.reader((tmp_path / "c.csv").open()))[1] == ["0", "3", "1"]
    with pytest.raises(DataError, match="square"):
        plot_confusion(tmp_path / "d.png", [[1, 2]])
