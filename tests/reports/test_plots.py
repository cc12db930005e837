"""Pictures are made without a display, with their numbers beside them."""

from __future__ import annotations

import csv
import random

import torch

from spikeformer_lt.reports import plots
from spikeformer_lt.reports.plots import figure, plot_curves, plot_training

PNG = b"\x89PNG\r\n\x1a\n"


def test_curves_come_with_their_numbers(tmp_path):
    path = tmp_path / "c.png"
    series = {"ours": [(0.5, [90.0, 92.0]), (0.9, [80.0])], "random": [(0.5, [70.0])]}
    plot_curves(path, series, x_label="removed", y_label="accuracy (%)", reference=95.0)
    assert path.read_bytes().startswith(PNG)
    with path.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["mean"], rows[0]["runs"]) == ("91.0", "2")
    assert float(rows[0]["sd"]) > 1.4
    assert [row["series"] for row in rows] == ["ours", "ours", "random", "dense"]


def test_no_curve_is_left_out_and_controls_are_told_apart(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(plots, "figure", lambda *a, **k: made.append(figure(*a, **k)) or made[-1])
    names = [*(f"search {i}" for i in range(13)), "random control"]
    series = {name: [(0.5, [float(i), i + 1.0]), (0.9, [0.0])] for i, name in enumerate(names)}
    plot_curves(tmp_path / "c.png", series, x_label="x", y_label="y")
    lines = [bars.lines[0] for bars in made[0][1].containers]
    assert len(lines) == 14
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 14
    assert [line.get_linestyle() for line in lines] == ["-"] * 13 + [":"]
    # A spread where two runs stand; where one does, no bar that would say it is 0.
    lengths = [bars.lines[2][0].get_segments() for bars in made[0][1].containers]
    assert all(len(segments[0]) == 2 and not len(segments[1]) for segments in lengths)


def test_training_curves_read_a_summary_with_gaps(tmp_path):
    summary = tmp_path / "summary.csv"
    summary.write_text(
        "phase,epoch,train_accuracy,val_accuracy\nstem,1,10,\nstem,2,20,15\njoint,1,30,25\n"
    )
    plot_training(summary, tmp_path / "plots")
    assert (tmp_path / "plots" / "training.png").read_bytes().startswith(PNG)
    rows = list(csv.DictReader((tmp_path / "plots" / "training.csv").open()))
    found = [(r["quantity"], r["phase"], r["epoch_of_run"], r["value"]) for r in rows]
    assert found == [
        *(("train_accuracy", *at) for at in (("stem", "1", "10.0"), ("stem", "2", "20.0"))),
        ("train_accuracy", "joint", "3", "30.0"),
        ("val_accuracy", "stem", "2", "15.0"), ("val_accuracy", "joint", "3", "25.0"),
    ]  # fmt: skip


def test_the_legend_of_a_training_covers_no_curve(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(plots, "figure", lambda *a, **k: made.append(figure(*a, **k)) or made[-1])
    (tmp_path / "s.csv").write_text(
        "phase,epoch,train_accuracy,val_accuracy,train_loss,val_loss\n"
        + "".join(f"joint,{i},{100 - i},{90 + i},{i},{i}\n" for i in range(1, 9))
    )
    plot_training(tmp_path / "s.csv", tmp_path / "plots")
    drawn = made[0][0]
    (legend,) = drawn.legends
    box = legend.get_window_extent()
    assert all(axes.get_legend() is None for axes in drawn.axes)
    assert not any(box.overlaps(axes.get_window_extent()) for axes in drawn.axes)


def test_a_training_shows_loss_and_accuracy_of_every_epoch_even_of_one(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(plots, "figure", lambda *a, **k: made.append(figure(*a, **k)) or made[-1])
    summary = tmp_path / "summary.csv"
    columns = "phase,epoch,train_accuracy,val_accuracy,train_loss,val_loss"
    summary.write_text(f"{columns}\njoint,1,10,20,2.5,2.25\n")
    plot_training(summary, tmp_path / "plots")
    upper, lower = made[0][0].axes
    shown = {axes.get_ylabel(): [line.get_ydata()[0] for line in axes.lines]
             for axes in (upper, lower)}  # fmt: skip
    assert shown == {"accuracy (%)": [10, 20], "loss": [2.5, 2.25]}
    assert all(line.get_marker() not in ("", "None") for line in (*upper.lines, *lower.lines))


def test_an_empty_summary_makes_no_picture(tmp_path):
    (tmp_path / "s.csv").write_text("phase,epoch,train_accuracy,val_accuracy\n")
    plot_training(tmp_path / "s.csv", tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def test_plotting_leaves_the_random_streams_alone(tmp_path):
    state, torch_state = random.getstate(), torch.get_rng_state()
    plot_curves(tmp_path / "c.png", {"a": [(0.1, [1.0])]}, x_label="x", y_label="y")
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
