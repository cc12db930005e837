"""Pictures are made without a display, with their numbers beside them."""

from __future__ import annotations

import csv
import random

import numpy as np
import pytest
import torch
from PIL import Image

from spikeformer_lt.errors import DataError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports import plots
from spikeformer_lt.reports.plots import (
    OFF,
    ON,
    banded,
    fade,
    figure,
    keep_map,
    plot_anytime,
    plot_confusion,
    plot_curves,
    plot_distances,
    plot_early_exit,
    plot_epoch_rates,
    plot_keep_frequency,
    plot_kept_clip,
    plot_kept_images,
    plot_kernels,
    plot_layer_epochs,
    plot_layer_rates,
    plot_membrane,
    plot_raster,
    plot_training,
    show_frames,
    show_images,
)
from spikeformer_lt.reports.probe import early_exit

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


def test_weights_kept_have_a_log_axis_and_one_image_is_no_cliff(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(plots, "figure", lambda *a, **k: made.append(figure(*a, **k)) or made[-1])
    labels = {"x_label": "weights removed (fraction)", "y_label": "accuracy (%)"}
    for much, count in ((0.8, 359), (0.98, 20)):
        points = {"imp": [(0.5, [90.0]), (much, [90.0 - 100 / count])]}
        plot_curves(tmp_path / "c.png", points, **labels, count=count)
        axes = made[-1][1]
        low, high = axes.get_ylim()
        assert 100 / count <= 1.001 * (high - low) / 20
        line = axes.containers[0].lines[0]
        if much < 0.9:
            assert axes.get_xscale() == "linear" and line.get_xdata().tolist() == [0.5, much]
        else:
            assert axes.get_xscale() == "log" and axes.get_xlim()[0] > axes.get_xlim()[1]
            assert line.get_xdata() == pytest.approx([50, 2]) and "kept (%)" in axes.get_xlabel()
    assert plot_curves(tmp_path / "d.png", {"imp": [(0.5, [90.0])]}, **labels) is None
    assert plots.plot_anytime(tmp_path / "d.png", {"a": [90.0]}) is None
    assert plots.plot_early_exit(tmp_path / "d.png", [(0.5, 1.0, 90.0), (0.9, 1.0, 90.0)]) is None
    assert not (tmp_path / "d.png").exists()


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


def test_a_training_shows_loss_and_accuracy_of_every_epoch_from_the_second_on(
    tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(plots, "figure", lambda *a, **k: made.append(figure(*a, **k)) or made[-1])
    summary = tmp_path / "summary.csv"
    columns = "phase,epoch,train_accuracy,val_accuracy,train_loss,val_loss"
    summary.write_text(f"{columns}\njoint,1,10,20,2.5,2.25\n")
    assert plot_training(summary, tmp_path / "plots") is None and not made  # one point is no curve
    summary.write_text(f"{columns}\njoint,1,10,20,2.5,2.25\njoint,2,10.25,20,2,2\n")
    plot_training(summary, tmp_path / "plots")
    upper, lower = made[0][0].axes
    shown = {axes.get_ylabel(): [line.get_ydata()[0] for line in axes.lines]
             for axes in (upper, lower)}  # fmt: skip
    assert shown == {"accuracy (%)": [10, 20], "loss": [2.5, 2.25]}
    assert all(line.get_marker() not in ("", "None") for line in (*upper.lines, *lower.lines))


@pytest.mark.parametrize(
    "table",
    [
        b"epoch,val_loss\n1,2\n",
        b"phase,epoch\nj,0n3\n",
        b"phase\nj,\xff\n",
        b"phase\nj,1,2\n",
        None,
    ],
)
def test_a_table_that_is_none_of_ours_is_refused_by_name(tmp_path, table):
    path = tmp_path / "summary.csv"
    path.mkdir() if table is None else path.write_bytes(table)
    for draw in (plot_training, lambda path, to: plots.plot_layer_epochs(to / "a.png", path)):
        with pytest.raises(DataError, match="summary.csv' is no table of a run"):
            draw(path, tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def test_an_empty_summary_makes_no_picture(tmp_path):
    (tmp_path / "s.csv").write_text("phase,epoch,train_accuracy,val_accuracy\n")
    plot_training(tmp_path / "s.csv", tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def test_plotting_leaves_the_random_streams_alone(tmp_path):
    state, torch_state = random.getstate(), torch.get_rng_state()
    plot_curves(tmp_path / "c.png", {"a": [(0.1, [1.0])]}, x_label="x", y_label="y")
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


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


def rows_of(path):
    return list(csv.DictReader(path.with_suffix(".csv").open()))


def test_a_raster_lists_each_spike_of_first_and_last_layer(tmp_path):
    spikes = {f"layer{i}": (torch.rand(4, 30) < 0.3).float() for i in range(9)}
    plot_raster(tmp_path / "a.png", spikes, layers=4)
    rows = rows_of(tmp_path / "a.png")
    shown = {row["layer"] for row in rows}
    assert len(shown) == 4 and {"layer0", "layer8"} <= shown
    for name in shown:
        own = {(int(r["t"]) - 1, int(r["neuron"])) for r in rows if r["layer"] == name}
        assert own == {tuple(at) for at in spikes[name].nonzero().tolist()}


def test_a_layer_without_a_spike_is_drawn_as_dead(tmp_path):
    plot_layer_rates(tmp_path / "a.png", {"first": 0.2, "second": 0.0})
    assert [float(r["firing_rate"]) for r in rows_of(tmp_path / "a.png")] == [0.2, 0.0]


def test_rates_over_epochs_come_from_the_summary(tmp_path):
    summary = tmp_path / "summary.csv"
    summary.write_text("phase,epoch,firing_rate,patch_sparsity\na,1,0.1,0.25\na,2,0.2,\n")
    assert plot_epoch_rates(tmp_path / "a.png", summary)
    found = [(r["quantity"], int(r["epoch"]), float(r["value"])) for r in rows_of(tmp_path / "a")]
    assert found == [
        ("firing_rate", 1, 0.1), ("firing_rate", 2, 0.2), ("patch_sparsity", 1, 0.25),
    ]  # fmt: skip
    rows = "a,1,0.1,,\na,2,0.2,2000,70.5\na,3,0.2,1000,50.5\n"
    summary.write_text("phase,epoch,firing_rate,sops,weight_bytes\n" + rows)
    assert plot_epoch_rates(tmp_path / "c.png", summary)
    found = [tuple(row.values()) for row in rows_of(tmp_path / "c")][3:]
    assert found == [
        *(("sops", "2", "2000.0"), ("sops", "3", "1000.0")),
        *(("weight_bytes", "2", "70.5"), ("weight_bytes", "3", "50.5")),
    ]
    with Image.open(tmp_path / "c.png") as picture:
        assert {"SOPs per input", "bytes of weights"} <= {*picture.text["Description"].split("\n")}
    summary.write_text("phase,epoch,firing_rate\n")
    assert not plot_epoch_rates(tmp_path / "b.png", summary)
    assert not (tmp_path / "b.png").exists()


def test_every_layers_rate_in_every_epoch_is_drawn_and_written(tmp_path):
    firing = tmp_path / "firing.csv"
    firing.write_text("phase,epoch,a.act,b.act\ndense,1,0.5,\njoint,1,0.25,0.0\n,,,\n")
    assert plot_layer_epochs(tmp_path / "a.png", firing)
    found = [tuple(row.values()) for row in rows_of(tmp_path / "a.png")]
    assert found == [
        ("a.act", "dense", "1", "0.5"), ("a.act", "joint", "1", "0.25"),
        ("b.act", "dense", "1", ""), ("b.act", "joint", "1", "0.0"),
    ]  # fmt: skip
    firing.write_text("phase,epoch\n")
    assert not plot_layer_epochs(tmp_path / "b.png", firing)
    firing.write_text("")
    assert not plot_layer_epochs(tmp_path / "b.png", firing) and not (tmp_path / "b.png").exists()


def test_a_membrane_trace_keeps_every_step_and_spike(tmp_path):
    trace, spikes = torch.rand(4, 3), torch.eye(4, 3)
    plot_membrane(tmp_path / "a.png", trace, spikes, 1.0, "layer", [7, 40, 2])
    rows = rows_of(tmp_path / "a.png")
    assert len(rows) == 12 and sum(int(r["spike"]) for r in rows) == 3
    assert float(rows[5]["membrane"]) == pytest.approx(float(trace[1, 1]))
    assert [row["neuron"] for row in rows[::4]] == ["7", "40", "2"]


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
