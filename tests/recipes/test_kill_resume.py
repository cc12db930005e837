"""kill -9 at random moments of a run, across its phases: every resume ends at the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.checkpoint import CheckpointStore

OPTIONS = shlex.split(
    "--data.name digits --data.limit-train 128 --data.limit-test 40 --data.mixup 0.5 "
    "--data.image-size 16 --model.name spikformer_toy --model.embed-dim 16 --model.T 2 "
    "--train.batch-size 16 --train.ema-decay 0.9 --train.cpu --multisp.schedule sequential "
    "--multisp.stem finetune --multisp.dense-epochs 2 --multisp.stem-epochs 2 --multisp.epochs 2 "
    "--multisp.distill 0.5 --multisp.weights.method both --multisp.patches.score gumbel "
    "--run.resume auto"
)
EVERY_STEP = ("--train.checkpoint-steps", "1")
PHASES = ("dense", "conv_pep", "sequential")


def final(out: Path) -> tuple[dict[str, bytes], dict[str, Any], str]:
    """All that a run leaves, but the seconds that it took."""
    tensors = Ticket.load(out / "ticket").tensors
    report = json.loads((out / "report.json").read_text())
    assert report.pop("seconds") > 0
    report.get("ticket", {}).pop("search_seconds", None)
    assert all(phase.pop("seconds") > 0 for phase in report.get("ticket", {}).get("before", []))
    bits = {name: value.numpy().tobytes() for name, value in tensors.items()}
    return bits, report, (out / "summary.csv").read_text()


def place(out: Path) -> str:
    """Where the files say that a run was killed."""
    if (out / "best" / PHASES[-1] / "LATEST").exists():
        return "ticket and report"
    found = CheckpointStore(out / "last").load() if (out / "last").exists() else None
    return "before the first checkpoint" if found is None else f"{found.state['phase']}"


def kill_loop(
    recipes: Any, folder: Path, kills: int, recipe: str = "multisp_cifar", options: Any = OPTIONS
) -> list[str]:
    """Kill `kills` times, each killed run in the end resumed to its finish; return the places."""

    def start(out: Path) -> int:
        return recipes.start(recipe, *options, *EVERY_STEP, "--run.out", out)

    start(folder / "warm")  # the first run compiles kernels; its length says nothing
    assert recipes.wait().code == 0
    begun = time.monotonic()
    start(folder / "whole")
    ended = recipes.wait()
    assert ended.code == 0, ended.err
    length = time.monotonic() - begun
    expected = final(folder / "whole")
    draw, where, runs = random.Random(0), [], 0
    while len(where) < kills:
        runs += 1
        out = folder / f"killed-{runs}"
        while len(where) < kills and not (out / "report.json").exists():
            fresh, waited = not out.exists(), draw.uniform(0.02, 0.6) * length
            pid = start(out)
            time.sleep(waited)
            with contextlib.suppress(ProcessLookupError):  # it may have finished before
                os.kill(pid, signal.SIGKILL)
            ended = recipes.wait()
            if ended.code == -signal.SIGKILL and not (out / "report.json").exists():
                where.append(place(out))
            else:
                assert ended.code in (0, -signal.SIGKILL), ended.err
                length = min(length, waited) if fresh else length  # the machine has become faster
        start(out)
        ended = recipes.wait()
        assert ended.code == 0, ended.err
        assert final(out) == expected, f"run {runs}, killed at {where}"
    return where


@pytest.mark.recipe
@pytest.mark.fault(1)
def test_four_kills_resume_to_the_same_bits(recipes: Any, tmp_path: Path) -> None:
    """After a step and before its save, or after a save, in each phase; random moments are slow."""
    run = ("multisp_cifar", *OPTIONS, *EVERY_STEP, "--run.out")
    whole = recipes.run(*run, tmp_path / "whole")
    assert whole.code == 0, whole.err
    step, save = "trainer:PhaseRun._step", "checkpoint:CheckpointStore.save"
    where = []
    for method, count in ((step, 9), (save, 12), (step, 5), (save, 20)):
        kill = (f"spikeformer_lt.training.{method}", count, signal.SIGKILL)
        ended = recipes.run(*run, tmp_path / "killed", signals=[kill])
        assert ended.code == -signal.SIGKILL, ended.err
        where.append(place(tmp_path / "killed"))
    assert set(where) == set(PHASES), where
    last = recipes.run(*run, tmp_path / "killed")
    assert last.code == 0, last.err
    assert final(tmp_path / "killed") == final(tmp_path / "whole")


@pytest.mark.recipe
def test_phases_of_other_time_steps_are_the_commands_that_they_stand_for(
    recipes: Any, tmp_path: Path
) -> None:
    """T 1, then a search at T 2: as two commands, and killed in the second phase."""

    def run(name: str, *more: object, code: int = 0, **how: Any) -> Path:
        ended = recipes.run(
            *shlex.split(
                "sparse_training_cifar --data.name digits --data.limit-train 128 --data.limit-test "
                "40 --data.image-size 16 --model.name spikformer_toy --model.embed-dim 16 "
                "--train.batch-size 16 --train.cpu --model.v-threshold 0.2 --run.resume auto"
            ),
            *EVERY_STEP, *more, "--run.out", tmp_path / name, **how,
        )  # fmt: skip
        assert ended.code == code, ended.err
        return tmp_path / name

    dense = ("--method", "random", "--sparsity", 0, "--train.optim.lr", 0.02)
    first = run("first", *dense, "--model.T", 1, "--epochs", 3)
    search = ("--method", "snip", "--sparsity", 0.5, "--epochs", 2, "--model.T", 2)
    second = run("second", *search, "--model.init-from", first)
    one = (*search, "--train.phases", "1x3@0.02")
    whole = run("whole", *one)
    for kind in ("ticket", "trained"):
        ours, theirs = Ticket.load(whole / kind), Ticket.load(second / kind)
        assert ours.mask == theirs.mask
        assert all(torch.equal(v, theirs.tensors[k]) for k, v in ours.tensors.items())
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, second)]
    (phase,) = reports[0]["ticket"]["before"]
    assert (phase["T"], phase["epochs"]) == (1, 3) and "before" not in reports[1]["ticket"]
    assert [report["epochs_trained"] for report in reports] == [5, 2]
    assert reports[0]["test_accuracy"] == reports[1]["test_accuracy"]
    rows = (whole / "summary.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["phase", *["before1"] * 3, *["retrain"] * 2], (
        rows
    )
    kill = ("spikeformer_lt.training.trainer:PhaseRun._step", 8 * 3 + 3, signal.SIGKILL)
    run("killed", *one, code=-signal.SIGKILL, signals=[kill])
    assert place(tmp_path / "killed") not in ("before1", "ticket and report")
    assert final(run("killed", *one)) == final(whole)
    asked = recipes.run(
        "sparse_training_cifar", *one, "--train.phases", "1x0", "--run.out", tmp_path / "wrong"
    )
    assert "train.phases='1x0' is not allowed" in asked.error and "1x200@6e-4" in asked.error


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_resume_to_the_same_bits(recipes: Any, tmp_path: Path) -> None:
    where = kill_loop(recipes, tmp_path, 50)
    print({name: where.count(name) for name in sorted(set(where))})
    assert len(where) == 50
    assert len(set(where)) >= 3, where  # they fell into different phases


IMP = shlex.split(
    "--data.name digits --data.limit-train 128 --data.limit-test 40 --data.image-size 16 "
    "--model.name spikformer_toy --model.embed-dim 16 --model.T 2 --train.batch-size 16 "
    "--train.cpu --imp.epochs 2 --imp.rounds 3 --imp.rewind 1ep --epochs 1 --run.resume auto"
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_kills_of_imp_resume_to_the_same_bits(recipes: Any, tmp_path: Path) -> None:
    where = kill_loop(recipes, tmp_path, 30, "imp_cifar", IMP)
    assert len(where) == 30 and len(set(where)) >= 3, where


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_comparison_that_was_killed_goes_on_to_the_same_table(
    recipes: Any, tmp_path: Path
) -> None:
    own = "--data.limit-train 64 --data.limit-test 40 --data.image-size 16 --model.T 2 --train.cpu"
    small = f"{own} --model.name spikformer_toy --model.embed-dim 16"
    options = ("--searches", "random", "--sparsities", 0.5, f"--options={small}", "--epochs", 2)
    draw, begun = random.Random(0), time.monotonic()
    whole = recipes.run("compare_tickets", *options, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    length = time.monotonic() - begun
    for _ in range(6):
        pid = recipes.start("compare_tickets", *options, "--out", tmp_path / "killed")
        time.sleep(draw.uniform(0.1, 0.6) * length)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert recipes.wait().code in (0, -signal.SIGKILL)
    last = recipes.run("compare_tickets", *options, "--out", tmp_path / "killed")
    assert last.code == 0, last.err
    tables = [(tmp_path / name / "runs.csv").read_text() for name in ("whole", "killed")]
    assert tables[0] == tables[1] and tables[0].count("\n") == 5


@pytest.mark.recipe
@pytest.mark.parametrize("row", [2, 5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.fault(6)
def test_a_kill_between_an_epochs_row_and_its_checkpoint_writes_no_row_twice(
    recipes: Any, tmp_path: Path, row: int
) -> None:
    options = ("--multisp.epochs", 1, "--multisp.stem-epochs", 1, "--multisp.distill", 0)
    run = ("multisp_cifar", *OPTIONS, *options, "--run.out", tmp_path / "run")
    killed = recipes.run(
        *run, signals=[("spikeformer_lt.training.run:RunDir.append_row", row, signal.SIGKILL)]
    )
    assert killed.code == -signal.SIGKILL, killed.err

    def epochs(table: str) -> list[tuple[str, ...]]:
        file = tmp_path / "run" / f"{table}.csv"
        lines = file.read_text().splitlines()[1:] if file.is_file() else []
        return [tuple(line.split(",")[:2]) for line in lines]

    assert (len(epochs("summary")), len(epochs("firing"))) == ((row + 1) // 2, row // 2)
    assert recipes.run(*run).code == 0
    whole = [("dense", "1"), ("dense", "2"), ("conv_pep", "1"), ("sequential", "1")]
    assert epochs("summary") == epochs("firing") == whole
