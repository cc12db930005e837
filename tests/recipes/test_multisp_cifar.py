"""recipes/multisp_cifar.py, as a user runs it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spikeformer_lt import Ticket
from spikeformer_lt.config import flat_values
from spikeformer_lt.disk import sha256_of
from spikeformer_lt.training.checkpoint import CheckpointStore
from spikeformer_lt.training.evaluate import PREDICTIONS, read_predictions

pytestmark = pytest.mark.recipe

STEP = "spikeformer_lt.training.trainer:PhaseRun._step"
NUMBERS = "test_accuracy val_accuracy conv_pep_bits_per_weight macs sops"
COUNTS = "test_count params seed"
WORDS = "dataset split_sha256 run_id"


def ticket_hashes(run: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in (run / "ticket").glob("*.safetensors")}


# -- what a run leaves -------------------------------------------------------------------


def test_the_report_of_a_launched_run_has_every_promised_field(finished: Any) -> None:
    report = finished.report
    assert all(isinstance(report[name], float) and report[name] >= 0 for name in NUMBERS.split())
    assert all(type(report[name]) is int for name in COUNTS.split())
    assert all(isinstance(report[name], str) and report[name] for name in WORDS.split())
    assert (report["dataset"], report["seed"], report["test_count"]) == ("digits", 42, 40)
    assert set(report["sparsity"]) == {"patch", "conv_pep_weight", "total_weight"}
    assert report["sparsity"]["conv_pep_weight"] == 0.5
    assert report["sparsity"]["patch"] == 5 / 16  # round(0.314 * 16) of 4 x 4 patches
    assert 0 < report["sparsity"]["total_weight"] < 0.5
    assert 0 < report["conv_pep_bits_per_weight"] < 2
    assert len(report["firing_rate"]) == 19
    assert all(0 < rate < 1 for rate in report["firing_rate"].values())
    assert set(report["versions"]) >= {"torch", "python"}
    assert re.fullmatch(r"spikformer_toy-digits-[0-9a-f]{8}", report["run_id"])
    right = sum(row[i] for i, row in enumerate(report["confusion"]))
    assert report["test_accuracy"] == 100 * right / 40 > 10
    assert report["choices"]["weights"]["method"] == "latent"


def test_the_accuracy_of_the_report_can_be_recomputed_from_the_predictions(finished: Any) -> None:
    report, path = finished.report, finished.path / PREDICTIONS
    found, facts = read_predictions(path)
    assert found.index.tolist() == list(range(40))
    assert found.accuracy == report["test_accuracy"]
    counts = torch.zeros(10, 10, dtype=torch.int64)
    counts.index_put_((found.label, found.logits.argmax(1)), torch.tensor(1), accumulate=True)
    assert counts.tolist() == report["confusion"]
    loss = torch.nn.functional.cross_entropy(found.logits, found.label).item()
    assert loss == pytest.approx(report["test_loss"], abs=1e-6)
    names = ("dataset", "split_sha256", "run_id")
    assert {name: facts[name] for name in names} == {name: report[name] for name in names}
    assert (facts["split"], facts["count"]) == ("test", report["test_count"])


@pytest.mark.fault(43)
def test_the_run_directory_is_complete_and_holds_no_pickle(finished: Any) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {"config.json", "env.json", "log.txt", "summary.csv", "report.json", "ticket"}
    assert PREDICTIONS in names
    assert (finished.path / "plots" / "training.png").stat().st_size > 1000
    suffixes = {path.suffix for path in finished.path.rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy"}
    rows = (finished.path / "summary.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["joint", str(i)] for i in range(1, 9)]
    said = ("x 1 processes = 8,", "estimate:", "joint epoch 8/8", "images/s", "ETA", "report: ")
    for word in said:
        assert word in finished.err, word
    assert "Traceback" not in finished.err


def test_the_ticket_is_the_one_that_the_report_is_about(finished: Any) -> None:
    ticket, report = Ticket.load(finished.path / "ticket"), finished.report
    assert ticket.mask.sha256 == report["mask_sha256"]
    assert ticket.mask.sparsity == report["sparsity"]["conv_pep_weight"]
    assert ticket.provenance["run_id"] == report["run_id"]
    for name, kept in ticket.mask.items():
        assert not ticket.tensors[name][~kept].any()
    for name in (layer + ".weight" for layer in report["binary_layers"]):
        values = ticket.tensors[name][ticket.mask[name]].abs()
        assert values.unique().numel() == 1
    assert len(report["binary_layers"]) == 4  # all convolutions but the first


@pytest.mark.fault(46)
def test_a_runs_own_configuration_repeats_it_to_the_bit(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    config = finished.path / "config.json"
    ended = recipes.run("multisp_cifar", "--config", config, "--run.out", tmp_path / "again")
    assert ended.code == 0, ended.err
    assert ticket_hashes(tmp_path / "again") == ticket_hashes(finished.path)
    rows = (tmp_path / "again" / "summary.csv").read_text()
    assert rows == (finished.path / "summary.csv").read_text()


# -- the same directory again ------------------------------------------------------------


@pytest.mark.fault(4)
def test_a_second_run_into_a_finished_directory_is_refused(recipes: Any, finished: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")}
    error = recipes.run("multisp_cifar", *finished.options).error
    assert "already holds a run, and nothing is ever overwritten" in error
    assert "--run.resume auto" in error and "another --run.out" in error
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("*")} == before


def test_a_finished_run_resumes_into_the_same_report(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.path, tmp_path / "run")
    options = (*finished.options, "--run.out", run, "--run.resume", "auto")
    ended = recipes.run("multisp_cifar", *options)
    assert ended.code == 0, ended.err
    assert json.loads((run / "report.json").read_text()) == finished.report
    assert ticket_hashes(run) == ticket_hashes(finished.path)


@pytest.mark.fault(7)
def test_resuming_with_other_values_names_each_field_old_and_new(
    recipes: Any, finished: Any, tmp_path: Path
) -> None:
    run = shutil.copytree(finished.path, tmp_path / "run")
    other = ("--train.seed", 7, "--train.batch-size", 16, "--model.embed-dim", 32)
    options = (*finished.options, "--run.out", run, "--run.resume", "auto")
    error = recipes.run("multisp_cifar", *options, *other).error
    for change in ("train.seed: 42 -> 7", "train.batch_size: 8 -> 16", "model.embed_dim: 16 -> 32"):
        assert change in error
    assert "--run.allow-config-change model.embed_dim train.seed train.batch_size" in error
    kept = {name: (run / name).read_bytes() for name in ("config.json", "env.json", "report.json")}
    allowed = ("--train.seed", 7, "--run.allow-config-change", "train.seed")
    ended = recipes.run("multisp_cifar", *options, *allowed)
    assert ended.code == 2 and "phase joint was made otherwise: train.seed: 42 -> 7" in ended.err
    assert {name: (run / name).read_bytes() for name in kept} == kept
    free = ("--train.checkpoint-steps", 3, "--run.allow-config-change", "train.checkpoint_steps")
    ended = recipes.run("multisp_cifar", *options, *free)
    assert ended.code == 0, ended.err
    assert "resumed with a change: train.checkpoint_steps: 0 -> 3" in ended.err
    noted = json.loads((run / "env.json").read_text())["changed_on_resume"]
    assert "train.checkpoint_steps: 0 -> 3" in noted


# -- wrong input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--multisp.wieghts.sparsity 0.5", "did you mean .*--multisp.weights.sparsity"),
        ("--lr 0.1", "did you mean --train.optim.lr?"),
        ("--model.T two", "--model.T='two' is not allowed: an integer"),
        ("--model.T 0", r"--model.T=0 is not allowed: in \[1, 4096\]"),
        ("--model.embed-dim 17", "embed_dim=17 must be a multiple of 8"),
        ("--model.num-heads 3", "num_heads=3 must divide"),
        ("--model.name spikformer_toi", "unknown model 'spikformer_toi'; did you mean"),
        ("--multisp.weights.sparsity 1.0", r"weights.sparsity=1.0 is not allowed: in \[0, 1\)"),
        ("--multisp.patches.sparsity -0.1", r"patches.sparsity=-0.1 is not allowed: in \[0, 1\)"),
        ("--multisp.schedule sideways", "schedule='sideways' .*joint, sequential, reverse"),
        ("--multisp.distill 0.5", "multisp.distill=0.5 .*dense_epochs > 0"),
        ("--multisp.epochs 0", "multisp.epochs=0 is not allowed: at least 1"),
        ("--train.optim.lr nan", r"optim.lr=nan is not allowed: in \(0, 1e3\)"),
        ("--train.optim.opt adamm", "optim.opt='adamm' .*did you mean 'adam'"),
        ("--train.batch-size 65", "batch_size=65 is not allowed: at most 64"),
        ("--train.batch-size 15 --data.mixup 0.5", "batch_size=15 .*even number"),
        ("--data.image-size 17", "image_size=17 is not allowed: .*multiples of 8"),
        ("--data.limit-train 0", "limit_train=0 is not allowed: 10 to"),
        ("--data.name digitz", "unknown data set 'digitz'; did you mean 'digits'?"),
        ("--run.resume nowhere", "resume='nowhere' is not allowed: never, auto, or a directory"),
        ("--run.allow-config-change train.sed", "allow_config_change='train.sed' .*train.seed"),
        ("--config nowhere.yaml", "nowhere.yaml"),
    ],
)
@pytest.mark.fault(35)
def test_wrong_input_is_one_line_and_exit_2_and_leaves_nothing(
    recipes: Any, tmp_path: Path, options: str, words: str
) -> None:
    run = tmp_path / "run"
    ended = recipes.run("multisp_cifar", *recipes.small, "--run.out", run, *options.split())
    log = r"(\*{5}|data|values|model|batch|estimate:) .*"  # a run that had begun to say what it is
    kept = [line for line in ended.err.splitlines() if not re.fullmatch(log, line)]
    assert (ended.code, len(kept)) == (2, 1), ended.err
    assert re.match(f"error: .*{words}", kept[0]), kept[0]
    assert not run.exists()


def test_missing_cifar_says_what_to_put_where_and_gives_the_place_back(
    recipes: Any, tmp_path: Path
) -> None:
    options = ("--data.root", tmp_path / "data", "--run.out", tmp_path / "run")
    error = recipes.run("multisp_cifar", "--data.name", "cifar10", *options).error
    assert str(tmp_path / "data") in error
    for word in ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "170498071 bytes"):
        assert word in error
    assert "--data.download" in error and "--data.name digits" in error
    assert not (tmp_path / "run").exists() and not (tmp_path / "data").exists()
    assert recipes.run("multisp_cifar", *recipes.small, *options).code == 0


def test_debug_shows_the_traceback_before_the_line(recipes: Any, tmp_path: Path) -> None:
    options = ("--data.name", "cifar10", "--data.root", tmp_path, "--run.out", tmp_path / "run")
    ended = recipes.run("multisp_cifar", *options, "--debug")
    assert ended.code == 2
    assert ended.err.startswith("Traceback (most recent call last):\n")
    assert "DataError: cifar10 is not in" in ended.err
    assert ended.err.splitlines()[-1].startswith("error: cifar10 is not in")


def test_help_has_words_and_default_for_every_option(recipes: Any, finished: Any) -> None:
    told = recipes.help_of("multisp_cifar")
    plain = json.loads((finished.path / "config.json").read_text())
    assert {name for name, _ in flat_values(plain)} == set(told)
    for name, text in told.items():
        words, default, rest = text.partition("(default:")
        assert default and rest, name
        assert len(re.findall(r"[a-z]{2,}", words)) >= 2, (name, text)


# -- data on its own, schedules, presets -------------------------------------------------


def test_without_cifar_the_digits_are_run_with_a_notice_in_a_named_directory(
    recipes: Any, tmp_path: Path
) -> None:
    options = (*recipes.small_anywhere, "--multisp.patches.sparsity", "0.5")
    for name in ("{}", "{}-2"):  # a second run of one configuration gets a place of its own
        ended = recipes.run("multisp_cifar", *options, cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert "NOTICE: CIFAR-10 is not under data/: running on the embedded digits" in ended.err
        run_id = re.search(r"\*{5} (\S+) \*{5}", ended.err)[1]
        assert (tmp_path / "runs" / name.format(run_id) / "report.json").is_file()
    run = tmp_path / "runs" / run_id
    assert "NOTICE" in (run / "log.txt").read_text()
    report = json.loads((run / "report.json").read_text())
    assert (report["dataset"], report["run_id"]) == ("digits", run_id)
    assert report["sparsity"]["patch"] == 0.5


@pytest.mark.parametrize(
    ("options", "phases"),
    [
        # The literal preset is sequential as well.
        pytest.param(
            *("--multisp.schedule sequential", ["conv_pep", "sequential"]), marks=pytest.mark.slow
        ),
        ("--multisp.schedule reverse", ["patches", "conv_pep"]),
        ("--multisp.preset literal", ["conv_pep", "sequential"]),
        (
            "--multisp.schedule joint --multisp.dense-epochs 1 --multisp.distill 0.5 "
            "--multisp.patches.score attention --multisp.patches.selector-epochs 1",
            ["dense", "selector", "joint"],
        ),
    ],
)
def test_schedules_and_the_literal_preset_run_to_a_ticket(
    recipes: Any, tmp_path: Path, options: str, phases: list[str]
) -> None:
    run = tmp_path / "run"
    ended = recipes.run("multisp_cifar", *recipes.small, *options.split(), "--run.out", run)
    assert ended.code == 0, ended.err
    rows = (run / "summary.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == phases
    report = json.loads((run / "report.json").read_text())
    assert report["sparsity"]["conv_pep_weight"] == 0.5
    assert report["sparsity"]["patch"] == 5 / 16
    literal = "literal" in options
    assert len(report["binary_layers"]) == 4 + literal  # Algorithm 1 spares no convolution
    assert len(report["ticket"]["deviations"]) == 5 * literal
    if literal:
        model = Ticket.load(run / "ticket").provenance["model"]
        assert (model["args"]["tau"], model["args"]["decay_input"]) == (100.0, False)
    again = recipes.run("evaluate", "--run", run, "--cpu", "--out", tmp_path / "again.json")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "again.json").read_text())["loss"] == report["test_loss"]
    if "literal" in options:
        chosen = report["choices"]
        assert (chosen["schedule"], chosen["stem"]) == ("sequential", "frozen")
        assert (chosen["weights"]["method"], chosen["weights"]["scope"]) == ("scores", "global")


@pytest.mark.fault(49)
def test_removing_nothing_keeps_every_weight_binary(recipes: Any, tmp_path: Path) -> None:
    none = (
        "--multisp.weights.method scores --multisp.weights.sparsity 0 --multisp.patches.sparsity 0"
    )
    run = tmp_path / "run"
    ended = recipes.run("multisp_cifar", *recipes.small, *none.split(), "--run.out", run)
    assert ended.code == 0, ended.err
    report = json.loads((run / "report.json").read_text())
    assert set(report["sparsity"].values()) == {0.0}
    ticket = Ticket.load(run / "ticket")
    binary = [name for name in ticket.mask if ticket.tensors[name].abs().unique().numel() == 1]
    assert len(ticket.mask) == 5 and len(binary) == 4  # all convolutions but the first


# -- signals -----------------------------------------------------------------------------


MOMENTUM = shlex.split(  # all that could bring removed weights back, and a run of two epochs
    "--multisp.epochs 2 --train.ema-decay 0.9 --train.optim.opt sgd --train.optim.weight-decay 0.1"
)


@pytest.fixture(scope="module")
def whole(recipes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ended = recipes.run("multisp_cifar", *recipes.small, *MOMENTUM, "--run.out", run)
    assert ended.code == 0, ended.err
    return run


def assert_same_end(run: Path, whole: Path) -> None:
    assert ticket_hashes(run) == ticket_hashes(whole)
    assert (run / "summary.csv").read_text() == (whole / "summary.csv").read_text()


@pytest.mark.fault(47)
def test_momentum_decay_and_average_leave_removed_weights_at_zero(whole: Path) -> None:
    ticket = Ticket.load(whole / "ticket")
    assert ticket.mask.sparsity == 0.5
    for name, kept in ticket.mask.items():
        assert ticket.tensors[name][~kept].count_nonzero() == 0
        assert ticket.tensors[name][kept].count_nonzero() == kept.sum()


@pytest.mark.fault(5)
def test_a_run_that_sigterm_stopped_ends_like_one_that_was_left_alone(
    recipes: Any, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = (*recipes.small, *MOMENTUM, "--run.out", run)
    # Two steps into the second epoch of four, by a run that saves at the ends of epochs only.
    stopped = recipes.run("multisp_cifar", *options, signals=[(STEP, 6, signal.SIGTERM)])
    assert stopped.code == 143
    assert "SIGTERM: saving after this step, then stopping; again to stop at once" in stopped.err
    last = stopped.err.splitlines()[-1]
    assert last.startswith("stopped: stopped at joint epoch 2 step 2; everything is saved")
    assert last.endswith("--run.resume auto") and "Traceback" not in stopped.err
    assert not (run / "report.json").exists()
    ended = recipes.run("multisp_cifar", *options, "--run.resume", "auto")
    assert ended.code == 0, ended.err
    assert "resumed joint at epoch 2 step 2" in ended.err
    assert_same_end(run, whole)


@pytest.mark.fault(3)
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(
    recipes: Any, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = (*recipes.small, *MOMENTUM, "--run.out", run)
    full = recipes.run("multisp_cifar", *options, file_limit=30_000)
    last = full.err.splitlines()[-1]
    assert full.code == 2 and "Traceback" not in full.err, full.err
    assert re.match(r"error: cannot save checkpoint 0 in .*; \d+ bytes needed, \d+ free; ", last)
    ended = recipes.run("multisp_cifar", *options, "--run.resume", "auto")
    assert ended.code == 0, ended.err
    assert_same_end(run, whole)


@pytest.mark.fault(5)
def test_ctrl_c_from_outside_exits_130_after_a_save(recipes: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--multisp.epochs", 2000, "--run.out", run)
    pid = recipes.start("multisp_cifar", *recipes.small, *options)
    until = time.monotonic() + 200
    while not (run / "last" / "LATEST").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(pid, signal.SIGINT)
    ended = recipes.wait()
    assert ended.code == 130, ended.err
    assert ended.err.splitlines()[-1].startswith("stopped: ")
    position = CheckpointStore(run / "last").load().state["position"]
    epoch, step = position["epoch"], position["step"]
    where = f"epoch {epoch + 1} step {step};" if step else f"the end of epoch {epoch};"
    assert where in ended.err


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.fault(5)
def test_signals_that_come_together_save_the_run_once(
    recipes: Any, tmp_path: Path, second: signal.Signals
) -> None:
    run = tmp_path / "run"
    options = ("--train.checkpoint-steps", 1, "--run.out", run)
    signals = [(STEP, 3, signal.SIGUSR1), (STEP, 3, second), (STEP, 3, second)]
    ended = recipes.run("multisp_cifar", *recipes.small, *options, signals=signals)
    assert ended.code == 128 + signal.SIGUSR1
    assert ended.err.count("saving after this step") == ended.err.count("stopped: ") == 1
    assert CheckpointStore(run / "last").load().state["position"]["step"] == 3


def test_a_folder_of_pictures_needs_options_alone(recipes: Any, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "mine" / label).mkdir(parents=True)
        for i in range(12):
            pixels = draw.integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / label / f"{i}.png")
    out = tmp_path / "run"
    small = shlex.split(
        "--data.name image_folder --data.image-size 16 --model.name spikformer_toy --train.cpu "
        "--model.embed-dim 16 --model.T 2 --multisp.epochs 1 --multisp.stem-epochs 1 "
        "--train.batch-size 4 --train.workers 1 --data.augment imagenet_repeats"
    )
    ended = recipes.run("multisp_cifar", *small, "--data.root", tmp_path / "mine", "--run.out", out)
    assert ended.code == 0, ended.err
    report = json.loads((out / "report.json").read_text())
    assert (report["dataset"], report["test_count"]) == ("image_folder", 4)
    ended = recipes.run("evaluate", "--run", out, "--cpu")
    assert ended.code == 0, ended.err
    assert f"image_folder test: {report['test_accuracy']:.2f} % of 4" in ended.out
