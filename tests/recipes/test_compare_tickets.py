"""recipes/compare_tickets.py, as a user runs it."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from papers.finished import expected_config, load_recipe

from spikeformer_lt import create_search
from spikeformer_lt.cli import MULTISP_SUITES, Comparison, jobs_of, read_find, search_rows
from spikeformer_lt.registry import search_names
from spikeformer_lt.tickets.presets import retraining, start_step

pytestmark = pytest.mark.recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OWN_GROUPS = ("multisp", "early_bird", "edge_popup", "biprop")

SMALL = (
    "--data.limit-train 64 --data.limit-test 40 --data.image-size 16 --model.name spikformer_toy "
    "--model.embed-dim 16 --model.T 2 --train.cpu"
)
OWN = ["imp+et=--early-time.epochs 1"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--options=--train.batch-sise 4"], "dense: unknown option '--train.batch-sise'"),
        (["--options=--train.batch-size 0"], "dense: --train.batch_size=0 is not allowed"),
        (["--search-options", "imp=--imp.epochs -2"], "imp 0.9: epochs=-2 is not allowed"),
    ],
)
def test_options_of_rows_are_read_before_the_first_run(
    recipes: Any, tmp_path: Path, options: list[str], words: str
) -> None:
    line = ["--searches", "imp", "--sparsities", "0.9", "--out", str(tmp_path / "out"), *options]
    for more in ([], ["--dry-run"]):
        ended = recipes.run("compare_tickets", *line, *more)
        assert ended.code == 2 and words in ended.err, ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(86)
def test_searches_become_one_table_and_go_on_where_they_stopped(
    recipes: Any, tmp_path: Path
) -> None:
    """With one budget: the epoch before IMP's rewind point counts as training, the probe's not."""
    line = shlex.split("--searches imp imp+et --sparsities 0.5 --seeds 0 --jobs 2")
    line += [
        "--epochs",
        "2",
        f"--options={SMALL}",
        "--search-options",
        *OWN,
        "--out",
        str(tmp_path),
    ]
    ended = recipes.run("compare_tickets", *line, fork_jobs=True)
    assert ended.code == 0, ended.err
    assert "3 runs, 0 of them finished before" in ended.err
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["dense", "imp 0.5", "imp+et 0.5"]
    removed = [float(row["prunable weights removed %"]) for row in rows.values()]
    assert removed == pytest.approx([0, 50, 50], abs=0.1)
    cost = [float(row["search (epochs x T)"]) for row in rows.values()]
    assert cost == [0, 8, 10]  # T 2: no fewer steps, and the probe's epoch on top
    assert {row["epochs trained"] for row in rows.values()} == {"2.0"}
    text = (tmp_path / "comparison.md").read_text()
    assert "Early-Time against the same search without it" in text and "| 1.250 " in text
    assert "Epochs trained differ" not in text and "| McNemar" in text
    low, high = json.loads(rows["dense"]["95 % interval"])
    assert 0 <= low < float(rows["dense"]["test accuracy %"]) < high <= 100
    assert float(rows["imp+et 0.5"]["T in search"]) == 2
    assert not list(tmp_path.glob("curve*.png")), "one rate is no curve"

    report = tmp_path / "runs" / "dense-seed0" / "report.json"
    before = json.loads(report.read_text())
    report.unlink()
    again = recipes.run("compare_tickets", *line, fork_jobs=True)
    assert "3 runs, 2 of them finished before" in again.err
    assert json.loads(report.read_text()) == before


@pytest.mark.parametrize(
    "case",
    [
        *("digits", "registered"),
        *(("dvs128" if suite == "time" else "cifar", suite) for suite in MULTISP_SUITES),
    ],
)
@pytest.mark.fault(86)
def test_every_variant_has_one_budget(case: Any) -> None:
    """Of each search and of each suite of MultiSp, by the configuration that its run would have."""
    epochs = 12 if case == "digits" else 30
    if case in ("digits", "registered"):
        recipe = load_recipe(RECIPES / "compare_tickets.py")
        names = tuple(recipe.SEARCHES) if case == "digits" else search_names()
        budget = {} if case == "digits" else {"epochs": epochs}
        cfg = recipe.CompareTickets(searches=names, sparsities=(0.5,), seeds=(0,), **budget)
        jobs = jobs_of(cfg, search_rows(cfg, recipe.SEARCHES), ("-", "-"))
        assert len(jobs) >= len(names)
    else:
        lines = MULTISP_SUITES[case[1]]
        rows = {n: f"multisp_{case[0]}.py --multisp.epochs {{e}} {o}" for n, o in lines.items()}
        data = "digits" if case[0] == "cifar" else "moving_digits"
        jobs = jobs_of(Comparison(data=data, epochs=30), rows, ("_", "-"))
    found = {}
    for job in jobs:
        path, *options = job.command
        if Path(path).name == "find_ticket.py":
            cfg, groups = read_find(options)
            name, *inside = groups
            chosen = (name, getattr(cfg, name, None), *((n, getattr(cfg, n)) for n in inside))
        else:
            recipe = load_recipe(Path(path))
            cfg = expected_config(Path(path), options)
            own = next((n for n in OWN_GROUPS if hasattr(cfg, n)), "")
            chosen = recipe.choose(cfg) if hasattr(recipe, "choose") else (own, getattr(cfg, own))
        name, config, *inner = chosen
        inner = [create_search(inner[0][0], config=inner[0][1])] if inner else []
        search = create_search(name, config=config, **({"inner": inner[0]} if inner else {}))
        trained = search.planned()
        if not search.trained:
            inside = [search.config for search in inner]
            start = start_step(search.config, *inside).epochs
            trained = retraining(search.config, cfg.epochs, *inside)[0] + start
        found[job.variant] = trained
    assert set(found.values()) == {epochs}, found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_comparison_goes_on(recipes: Any, tmp_path: Path) -> None:
    """SIGKILL of the comparison alone, whose run goes on without it; then of both."""
    line = shlex.split("--searches imp --sparsities 0.5 --seeds 0 1")
    line += [f"--options={SMALL} --train.checkpoint-steps 1", "--search-options"]
    line += ["dense=--epochs 2", "imp=--imp.epochs 2 --imp.rewind 1it --imp.rounds 1 --epochs 2"]
    runs = tmp_path / "killed" / "runs"

    def killed(after: Path, with_run: bool) -> None:
        pid = recipes.start("compare_tickets", *line, "--out", tmp_path / "killed")
        until = time.monotonic() + 900
        while not after.exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        if with_run:
            os.kill(int((after.parents[1] / ".lock").read_text()), signal.SIGKILL)
        assert recipes.wait().code == -signal.SIGKILL

    killed(runs / "dense-seed0" / "last" / "LATEST", with_run=False)
    killed(runs / "imp-0.5-seed0" / "last" / "LATEST", with_run=True)
    ended = recipes.run("compare_tickets", *line, "--out", tmp_path / "killed")
    assert ended.code == 0, ended.err
    assert "4 runs, 0 of them" not in ended.err
    whole = recipes.run("compare_tickets", *line, "--out", tmp_path / "whole", "--jobs", "2")
    assert whole.code == 0, whole.err
    tables = [(tmp_path / name / "runs.csv").read_text() for name in ("killed", "whole")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 5
    hashes = [
        json.loads((tmp_path / name / "runs" / f"imp-0.5-seed{seed}" / "report.json").read_text())[
            "mask_sha256"
        ]
        for name in ("killed", "whole")
        for seed in (0, 1)
    ]
    assert hashes[:2] == hashes[2:] and hashes[0] != hashes[1]


REAL = [
    *shlex.split("--searches snip random --sparsities 0.9 --seeds 0 --epochs 4"),
    f"--options={SMALL} --data.limit-train 256 --train.checkpoint-steps 4 --train.batch-size 8 "
    "--train.optim.lr 0.01 --model.v-threshold 0.2",
]


CLOCKS = ("search (s)", "ms per input")


def tables(folder: Path) -> tuple[Any, ...]:
    """All that a comparison found but what a clock says."""
    with (folder / "comparison.csv").open(newline="") as file:
        read = [*csv.DictReader(file)]
    rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in read]
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/report.json"))]
    runs = [(each["mask_sha256"], each["test_accuracy"], each["confusion"]) for each in reports]
    return rows, (folder / "runs.csv").read_text(), (folder / "masks.csv").read_text(), runs


@pytest.fixture(scope="module")
def undisturbed(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a comparison of three runs by one runner, --on local, finds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = forks.start(RECIPES / "compare_tickets.py", *REAL, "--out", folder)
    said = ended.communicate(600)
    assert ended.returncode == 0, said
    found = tables(folder)
    assert len(found[-1]) == 3 and len({mask for mask, *_ in found[-1]}) == 3
    assert max(accuracy for _, accuracy, _ in found[-1]) > 15, "a comparison of guesses"
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_comparison_of_two_runners_survives_kill_9_of_either(
    forks: Any, undisturbed: Any, tmp_path: Path, victim: int
) -> None:
    """Killed amid a run: the other one goes on with it, and all tables are the same."""

    def held(pid: int) -> list[Path]:
        claims = (path for path in tmp_path.glob("runs/.*.claim-*") if path.read_text())
        mine = (path for path in claims if path.read_text().split()[2:3] == [str(pid)])
        return [path.with_name(path.name[1:].partition(".claim-")[0]) for path in mine]

    line = [RECIPES / "compare_tickets.py", *REAL, "--on", "shared", "--out", tmp_path]
    runners = [forks.start(*line) for _ in range(2)]
    until, lost = time.monotonic() + 600, None
    while lost is None:
        assert time.monotonic() < until and runners[victim].poll() is None
        begun = (run for run in held(runners[victim].pid) if (run / "last" / "LATEST").exists())
        lost = next((run for run in begun if not (run / "report.json").exists()), None)
        time.sleep(0.02)
    os.kill(runners[victim].pid, signal.SIGKILL)
    other = runners[1 - victim]
    said = other.communicate(900)
    assert other.returncode == 0, said
    assert runners[victim].wait(60) == -signal.SIGKILL
    assert lost.with_name(f".{lost.name}.claim-2").read_text() == "done 0", "nobody took it over"
    assert "resumed " in Path(f"{lost}.out").read_text()
    assert tables(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_submitits_local_executor_makes_the_same_comparison(
    forks: Any, undisturbed: Any, tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    line = [*REAL, *shlex.split("--on slurm --slurm cluster=local --out"), tmp_path]
    ended = forks.start(RECIPES / "compare_tickets.py", *line)
    said = ended.communicate(900)
    assert ended.returncode == 0, said
    sent = {path.name.partition("_")[0] for path in tmp_path.glob("runs/.slurm/*_log.out")}
    assert len(sent) == 3, sorted(tmp_path.glob("runs/.slurm/*"))
    assert tables(tmp_path) == undisturbed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--searches magic", "searches='magic' "),
        ("--sparsities 1.0", "sparsities=1.0 "),
        ("--search-options magic=--x", "search_options"),
        ("--jobs 0", "jobs=0 is not allowed"),
    ],
)
def test_bad_options_are_one_clear_line(recipes: Any, options: str, words: str) -> None:
    assert words in recipes.run("compare_tickets", *options.split()).error


@pytest.mark.fault(86)
def test_an_option_without_dashes_goes_to_every_run_whatever_follows() -> None:
    recipe = load_recipe(RECIPES / "compare_tickets.py")
    cfg = recipe.CompareTickets(
        searches=("imp",), sparsities=(0.9,), seeds=(0,), data="digits",
        options="--epochs 5 --data.transform=Crop(way='x')", search_options=("imp=imp.rounds=3",),
    )  # fmt: skip
    (line,) = [job.command for job in jobs_of(cfg, search_rows(cfg, recipe.SEARCHES), ("-", "-"))
               if job.variant != "dense"]  # fmt: skip
    assert "--imp.rounds=3" in line and "--data.transform=Crop(way='x')" in line
    assert line[line.index("--epochs") + 1] == "5"
