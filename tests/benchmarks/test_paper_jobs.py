"""Rows as jobs: shared, resumed, taken over from other runs, and run until the time is up."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest
from papers import jobs as paper_jobs
from papers.finished import Run, planned_epochs
from papers.jobs import estimate, find_run, job_of, jobs_of, lines_of, run_rows
from papers.tables import TABLES

from spikeformer_lt.errors import Interrupted, SpikeformerError

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
TABLE = TABLES["2311-fig3"]


@pytest.fixture
def jobs(tmp_path):
    made = jobs_of(TABLE, "digits", (0, 1), RECIPES, tmp_path / "runs", "data")
    return {name: found for name, found in made.items() if "T" in name.split() or "SNN" in name}


@pytest.fixture
def calls(monkeypatch, finish_row):
    made: list[list[str]] = []

    def run_jobs(jobs, at_once):
        made.append([job.variant for job in jobs])
        for job in jobs:
            if "T 2" in job.variant:
                raise SpikeformerError("1 of 1 runs failed")
            if not job.report.exists():
                finish_row(job, 350)

    monkeypatch.setattr(paper_jobs, "run_jobs", run_jobs)
    return made


def test_rows_of_one_command_share_a_run() -> None:
    cells = TABLES["eccv22-tab1"]
    jobs = jobs_of(cells, "digits", (0,), RECIPES, Path("runs"), "data")
    assert len(jobs) == len(cells.cells)
    folders = {job.folder for row in jobs.values() for job in row}
    assert len(folders) == len(jobs) / 2  # one stand-in for both CIFARs
    again = job_of(
        "x", ("imp_cifar.py", "--imp.sparsity", "0.5"), 3, RECIPES, Path("runs"), "there"
    )
    assert again.folder.name.startswith("imp_cifar-") and again.folder.name.endswith("-seed3")
    assert again.command[-4:] == ("--data.root", "there", "--train.seed", "3")
    other = job_of("x", ("imp_cifar.py", "--imp.sparsity", "0.6"), 3, RECIPES, Path("runs"))
    assert other.folder != again.folder


def test_lines_hold_what_is_finished_and_say_not_run_of_the_rest(jobs, tmp_path, finish_row):
    every = jobs_of(TABLE, "digits", (0, 1), RECIPES, tmp_path / "runs", "data")
    name = "2311-fig3 cifar10 VGG-9 SNN-ConnS T 8"
    finish_row(every[name][1], 300)
    lines = {line.cell.name: line for line in lines_of(TABLE, "digits", every)}
    assert [run.seed for run in lines[name].runs] == [1] and lines[name].accuracy == 75.0
    others = [line for key, line in lines.items() if key != name]
    assert all(line.accuracy is None and line.shown == "not run" for line in others)
    other = TABLES["2311-tab1"]
    rows = lines_of(other, "digits", jobs_of(other, "digits", (0,), RECIPES, tmp_path, "data"))
    binary = next(line for line in rows if line.cell.method == "BinWSNN")
    assert binary.shown == "not run" and "no recipe" in binary.place


def test_a_run_elsewhere_is_taken_only_with_the_same_configuration(jobs, tmp_path, finish_row):
    first, second = next(iter(jobs.values()))
    where = [tmp_path / "mine", tmp_path / "theirs" / "runs" / "b", tmp_path / "third" / "c"]
    assert find_run(first, [tmp_path / "nothing"]) == "not run"
    finish_row(second, 300, where[0])
    assert find_run(first, [where[0]]) == "not run"
    for folder, root in zip(where[1:], (tmp_path / "theirs", tmp_path / "third"), strict=True):
        finish_row(first, 320, folder)
        found = find_run(first, [root])
        assert isinstance(found, Run) and found.folder == folder
    assert isinstance(find_run(second, [where[0]]), Run)


def test_what_is_finished_is_not_run_again(jobs, calls, finish_row) -> None:
    every = [job for row in jobs.values() for job in row if "T 2" not in job.variant]
    finish_row(every[0], 390)
    elsewhere = finish_row(every[1], 390, every[1].folder.parent / "x" / "y")
    run_rows([*every, *every], [elsewhere.parent])
    assert sum(map(len, calls)) == len({job.folder for job in every}) - 2
    calls.clear()
    run_rows(every, [elsewhere.parent])
    assert not any(calls)


def test_the_cost_is_told_before_anything_runs(jobs, calls, caplog, finish_row) -> None:
    told = next(job for row in jobs.values() for job in row)
    with caplog.at_level("INFO"):
        run_rows([told])
    cost = "1 runs to train, 8 epochs in all and 8 of the longest; 0 are finished; about 0 min, an "
    assert f"{cost}estimate for one core of an AMD EPYC" in caplog.text
    other = next(job for row in jobs.values() for job in row if job.folder != told.folder)
    with caplog.at_level("INFO"):
        run_rows([told, other])
    # 2 s for 2 epochs, as `finish_row` wrote them, and 8 epochs to go
    assert "1 that are finished took 1.0 s an epoch: about 0 min" in caplog.text
    assert planned_epochs(RECIPES / "imp_cifar.py", ["--data.name", "digits"]) > 8


def test_a_cost_without_a_finished_run_is_an_estimate_by_what_its_networks_took() -> None:
    """The figures are the means over the committed runs, and every row on digits has one."""
    spent: dict[tuple[str, ...], set[tuple[str, float, int]]] = {}
    for path in (ROOT / "docs" / "results" / "paper-tables").glob("*-digits-runs.csv"):
        for row in csv.DictReader(path.open(newline="")):
            words = row["command"].split()
            kind = tuple(words[words.index(f"--{group}.name") + 1] for group in ("data", "model"))
            one = (row["run id"], float(row["seconds"]), int(row["epochs"]))
            spent.setdefault(kind, set()).add(one)
            assert (row["cpu"], row["threads"]) == (paper_jobs.PROCESSOR, "1")
    means = {k: sum(s for _, s, _ in v) / sum(e for *_, e in v) for k, v in spent.items()}
    assert pytest.approx(means, abs=0.005) == paper_jobs.SECONDS
    for table in TABLES.values():
        rows = jobs_of(table, "digits", (0,), RECIPES, Path("runs"), "data")
        waiting = [job for row in rows.values() for job in row]
        told = estimate(waiting, [60] * len(waiting), 2)
        assert re.fullmatch(r"about \d+ min, an estimate for 2 cores of an AMD EPYC", told)
    full = jobs_of(TABLE, "full", (0,), RECIPES, Path("runs"), "data")
    told = estimate([job for row in full.values() for job in row], [300] * len(full), 1)
    assert (
        told == "no time is known of spiking_vgg9 on cifar10: the first run that is finished "
        "tells it"
    )


def test_a_row_on_digits_is_named_so(jobs) -> None:
    for scale, told in (("digits", " on digits (published on cifar10)"), ("full", "")):
        made = jobs_of(TABLE, scale, (0,), RECIPES, Path("runs"), "data")
        (job,) = made["2311-fig3 cifar10 VGG-9 SNN"]
        assert job.variant == f"2311-fig3{' cifar10' * (not told)} VGG-9 SNN{told}"
    for job in (job for row in jobs.values() for job in row):
        assert job.variant.endswith(" on digits (published on cifar10)")


def test_one_failure_is_told_when_the_others_are_done(jobs, calls) -> None:
    every = [job for row in jobs.values() for job in row if job.seed == 0]
    with pytest.raises(SpikeformerError, match="1 calls had failures; the first: 1 of 1 runs"):
        run_rows(every, limit_minutes=60)
    assert len(calls) == len({job.folder for job in every}) and calls[-1] != calls[0]


def test_nothing_is_begun_after_the_time(jobs, calls, monkeypatch) -> None:
    clock = iter(range(0, 10_000, 45))
    monkeypatch.setattr(paper_jobs.time, "monotonic", lambda: next(clock))
    every = [job for row in jobs.values() for job in row if "T 2" not in job.variant]
    run_rows(every, limit_minutes=2)
    assert [len(call) for call in calls] == [1, 1]


def test_a_signal_ends_all(jobs, monkeypatch) -> None:
    seen = []

    def stop(jobs, at_once):
        seen.append(jobs)
        raise Interrupted(15, "stopped")

    monkeypatch.setattr(paper_jobs, "run_jobs", stop)
    every = [replace(job) for row in jobs.values() for job in row]
    with pytest.raises(Interrupted):
        run_rows(every, limit_minutes=60)
    assert len(seen) == 1
