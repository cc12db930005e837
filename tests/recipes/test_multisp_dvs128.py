"""MultiSp on recordings, as a user runs it."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikeformer_lt import create_dataset, load_exported
from spikeformer_lt.events import EventOptions
from spikeformer_lt.events.__main__ import main as events_main
from spikeformer_lt.export import export_run
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.evaluate import PREDICTIONS, read_predictions

SMALL = shlex.split(
    "--data.limit-train 60 --data.limit-test 40 --data.image-size 16 --model.embed-dim 16 "
    "--model.T 2 --train.cpu"
)
SHORT = shlex.split("--multisp.epochs 2")
LONG = shlex.split(  # long enough that no layer is silent
    "--multisp.epochs 6 --train.batch-size 8 --model.v-threshold 0.1 --train.optim.lr 0.01 "
    "--data.values binary --train.loss tet"
)


@pytest.fixture(scope="module")
def run(recipes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dvs") / "run"
    named = ("--data.name", "moving_digits", *SMALL, *LONG)
    ended = recipes.run("multisp_dvs128", *named, "--run.out", out)
    assert ended.code == 0, ended.err
    return out


def test_binary_frames_make_every_convolution_binary_and_every_input_a_spike(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["dataset"] == "moving_digits"
    assert report["sparsity"]["conv_pep_weight"] == pytest.approx(0.5, abs=1e-3)
    assert report["sparsity"]["patch"] == 0.25  # one of four tokens: 31.4 % rounded
    assert len(report["binary_layers"]) == 5  # the first convolution as well
    assert report["purity"]["impure"].keys() <= {"head", *_residual(report)}
    assert report["macs_nonspiking"] == 16 * 10 * 2  # the head reads a mean: D x K x T
    assert len(report["accuracy_at_t"]) == 2


def _residual(report: dict[str, Any]) -> set[str]:
    """Layers that read sums of spikes, as the additive residuals make them."""
    return {name for name, kind in report["purity"]["impure"].items() if kind == "integers"}


def test_evaluate_meets_the_same_frames_again(recipes: Any, run: Path, tmp_path: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    out = tmp_path / "result.json"
    ended = recipes.run("evaluate", "--run", run, "--out", out, "--cpu")
    assert ended.code == 0, ended.err
    again = json.loads(out.read_text())
    assert (again["accuracy"], again["count"]) == (report["test_accuracy"], report["test_count"])
    assert again["sops"] == report["sops"]


@pytest.mark.fault(60)
def test_its_export_takes_raw_recordings(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "out")
    net = load_exported(tmp_path / "out")
    how = net.preprocess.recordings
    assert (how.values, how.T, how.by) == ("binary", 2, "n_event_bins")
    sizes = {"limit_train": 60, "limit_test": 40, "image_size": 16}
    test = create_dataset("moving_digits", **sizes).test
    recordings = [test.events(index)[0] for index in range(len(test))]
    np.save(tmp_path / "last.npy", recordings[-1])
    found = net.predict([*recordings[:-1], tmp_path / "last.npy"])
    wanted, _ = read_predictions(run / PREDICTIONS)
    assert [one.label for one in found] == wanted.predicted.tolist()


def test_without_recordings_counted_frames_of_moving_digits_are_used_and_said_so(
    recipes: Any, tmp_path: Path
) -> None:
    root = ("--data.root", tmp_path, *SMALL, *SHORT)
    for recipe, title in (
        ("multisp_dvs128", "DVS128 Gesture"),
        ("multisp_cifar10_dvs", "CIFAR10-DVS"),
    ):
        out = tmp_path / recipe
        ended = recipes.run(recipe, *root, "--run.out", out)
        assert ended.code == 0, ended.err
        assert f"NOTICE: {title} is not under {tmp_path}/" in ended.err
        report = json.loads((out / "report.json").read_text())
        assert "conv_pep.stages.0.conv" in report["purity"]["impure"]
        kept = Ticket.load(out / "ticket").tensors["conv_pep.stages.0.conv.weight"]
        assert len(kept[kept != 0].abs().unique()) == 1  # its input counts spikes: binary too


def test_gesture_files_train_and_evaluate(recipes: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for folder, users in (("ibmGestureTrain", (1, 2, 3)), ("ibmGestureTest", (24,))):
        for user in users:
            place = tmp_path / "DVSGesture" / folder / f"user{user:02d}_led"
            place.mkdir(parents=True)
            for label in range(11):
                n = 300
                columns = [draw.integers(0, 128, n), draw.integers(0, 128, n)]
                columns += [draw.integers(0, 2, n), np.sort(draw.integers(0, 500, n))]
                np.save(place / f"{label}.npy", np.stack(columns, 1).astype(np.int32))
    small = shlex.split(
        "--data.incomplete report --data.image-size 32 --model.embed-dim 16 --model.T 2 "
        "--model.num-heads 2 --model.depth 1 --multisp.epochs 1 --train.cpu --train.batch-size 4"
    )
    out = tmp_path / "run"
    root = ("--data.root", tmp_path, "--data.cache", tmp_path / "frames")
    ended = recipes.run("multisp_dvs128", *root, *small, "--run.out", out)
    assert ended.code == 0, ended.err
    report = json.loads((out / "report.json").read_text())
    assert (report["dataset"], report["test_count"]) == ("dvs128_gesture", 11)
    named = ("--data.name", "dvs128_gesture", *root, "--data.incomplete", "report")
    ended = recipes.run("evaluate", "--run", out, *named, "--cpu")
    assert ended.code == 0, ended.err
    assert f"dvs128_gesture test: {report['test_accuracy']:.2f} % of 11" in ended.out
    ours = read_predictions(out / PREDICTIONS)[0]
    named = ("--data.name", "tonic:DVSGesture", *named[2:], "--data.image-size", 32)
    ended = recipes.run(
        "evaluate", "--run", out, *named, "--cpu", "--again", "--out", tmp_path / "t.json"
    )
    assert ended.code == 0, ended.err
    theirs = read_predictions(tmp_path / f"t.{PREDICTIONS}")[0]
    assert np.array_equal(ours.predicted, theirs.predicted)
    assert np.array_equal(ours.label, theirs.label)


def test_a_folder_of_recordings_needs_options_alone(
    recipes: Any, files: Any, tmp_path: Path
) -> None:
    for label in range(2):
        for i in range(10):
            events = files.some_events(200, 20, 30, 400_000, seed=10 * label + i)
            files.write_evt3(tmp_path / "mine" / f"class{label}" / f"{i}.raw", events)
    out = tmp_path / "run"
    small = shlex.split(
        "--data.name event_folder --data.sensor 20x30 --data.image-size 16 --model.T 2 "
        "--event-folder.test-fraction 0.3 --data.transform CropTime(max=200000) --train.cpu "
        "--model.name spikformer_dvs_toy --model.embed-dim 16 --model.num-heads 2 "
        "--multisp.epochs 1 --train.batch-size 4"
    )
    ended = recipes.run(
        "multisp_dvs128", *small, "--data.root", tmp_path / "mine", "--run.out", out
    )
    assert ended.code == 0, ended.err
    report = json.loads((out / "report.json").read_text())
    assert (report["dataset"], report["test_count"]) == ("event_folder", 6)
    ended = recipes.run("evaluate", "--run", out, "--cpu")
    assert ended.code == 0, ended.err
    assert f"event_folder test: {report['test_accuracy']:.2f} % of 6" in ended.out
    export_run(out, tmp_path / "out")
    net = load_exported(tmp_path / "out")
    assert net.preprocess.recordings.transform == "CropTime(max=200000)"
    splits = create_dataset(
        "event_folder", root=str(tmp_path / "mine"), image_size=16, test_fraction=0.3,
        events=EventOptions(T=2, sensor="20x30", transform="CropTime(max=200000)"),
    )  # fmt: skip
    paths = [tmp_path / "mine" / sample.path for sample in splits.test.samples]
    wanted, _ = read_predictions(out / PREDICTIONS)
    assert [one.label for one in net.predict(paths)] == wanted.predicted.tolist()


def test_gestures_in_files_of_either_form_are_those_in_memory(recipes: Any, tmp_path: Path) -> None:
    """DVS128 Gesture evaluated as its users type it, on simulated files that are called so."""
    few = ("--limit-train", "22", "--limit-test", "22")
    small = shlex.split(
        "--data.limit-train 22 --data.limit-test 22 --data.image-size 16 --model.embed-dim 16 "
        "--model.T 3 --train.batch-size 8 --multisp.epochs 1 --train.cpu"
    )
    run = tmp_path / "run"
    ended = recipes.run(
        "multisp_dvs128", "--data.name", "moving_gestures", *small, "--run.out", run
    )
    assert ended.code == 0, ended.err
    found = {}
    for form in ("aedat31", "npy"):
        assert events_main(["write", str(tmp_path / form), "--form", form, *few]) == 0
    sets = {"aedat31": "dvs128_gesture", "npy": "dvs128_gesture", "tonic": "tonic:DVSGesture"}
    for form, name in sets.items():
        root = tmp_path / ("npy" if form == "tonic" else form)
        named = ("--data.name", name, "--data.root", root, "--cpu", "--data.incomplete", "report")
        out = tmp_path / f"{form}.json"
        ended = recipes.run("evaluate", "--run", run, *named, "--out", out)
        assert ended.code == 0, ended.err
        assert "simulated_gestures test: " in ended.out
        assert "is simulated: its results are none on DVS128 Gesture" in ended.out
        told, _ = read_predictions(out.with_suffix(f".{PREDICTIONS}"))
        found[form] = Counter(zip(told.label.tolist(), told.predicted.tolist(), strict=True))
    own, _ = read_predictions(run / PREDICTIONS)
    pairs = Counter(zip(own.label.tolist(), own.predicted.tolist(), strict=True))
    assert found["aedat31"] == pairs and pairs.total() == 22
    assert found["npy"] <= pairs and found["npy"].total() >= 20  # one file a trial and class
    assert found["tonic"] == found["npy"]
    ended = recipes.run("evaluate", "--run", run, "--data.shuffle-time", "--cpu")
    assert ended.code == 0 and "saved at the first reading" not in ended.out
    ended = recipes.run("evaluate", "--run", run, "--cpu")
    assert ended.code == 0 and "saved at the first reading" in ended.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--data.name digits --data.values binary", "data.values"),
        ("--data.by time_window", "window_us"),
        ("--data.augment spikformer_cifar", "not a preset for events"),
        ("--model.T 0", "T=0"),
        ("--train.phases 1x2 9x1 --dry-run", "phases=('1x2', '9x1') is not allowed: of recordings"),
    ],
)
def test_wrong_event_options_are_one_line(
    recipes: Any, tmp_path: Path, options: str, complaint: str
) -> None:
    given = ("--data.root", tmp_path, *SMALL[:-1], *SHORT, *options.split())
    ended = recipes.run("multisp_dvs128", *given, "--run.out", tmp_path / "run")
    assert ended.code == 2 and "Traceback" not in ended.err
    last = ended.err.splitlines()[-1]  # the split's fingerprint may come before
    assert last.startswith("error: ") and complaint in last
