"""recipes/paper_tables.py, as a user runs it."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.recipe
ROW = "2311-fig3 cifar10 VGG-9 SNN-ConnS T 1"


def rows_in(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "2311-fig3-digits.csv", newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_a_row_is_run_kept_and_refused_once_it_was_edited(recipes: Any, tmp_path: Path) -> None:
    line = ["--table", "2311-fig3", "--rows", ROW, "--jobs", "2", "--out", str(tmp_path)]
    ended = recipes.run("paper_tables", *line, fork_jobs=True)
    assert ended.code == 0, ended.err
    before, _, after = ended.err.partition("1 runs, 0 of them finished before")
    assert "1 runs to train, 8 epochs in all and 8 of the longest; 0 are finished" in before
    assert after and len(next(tmp_path.glob("runs/*/summary.csv")).read_text().splitlines()) == 9
    reports = list((tmp_path / "runs").glob("*/report.json"))
    assert len(reports) == 1
    report = json.loads(reports[0].read_text())
    rows = rows_in(tmp_path)
    ours = {name: row["ours %"] for name, row in rows.items()}
    assert ours.pop("SNN-ConnS, T 1") == f"{report['test_accuracy']:.2f}"
    assert set(ours.values()) == {"not run"} and len(ours) == 17
    assert rows["SNN-ConnS, T 1"]["ours on"] == "digits; spiking_vgg_toy T 1; 8 epochs"
    assert f"| {report['test_accuracy']:.2f} " in ended.out
    with open(tmp_path / "2311-fig3-digits-runs.csv", newline="") as file:
        (run,) = csv.DictReader(file)
    assert (run["row"], run["run id"]) == (ROW, report["run_id"])
    assert run["command"].startswith("edge_popup_cifar.py --edge-popup.sparsity 0.5 ")

    again = recipes.run("paper_tables", *line)
    assert (again.code, again.out) == (0, ended.out) and "finished before" not in again.err
    taken = recipes.run(
        "paper_tables", *line[:-1], tmp_path / "other", "--reuse", tmp_path, "--write-only"
    )
    assert taken.out == ended.out

    reports[0].write_text(json.dumps({**report, "test_accuracy": 99.99}))
    refused = recipes.run("paper_tables", *line, "--write-only")
    assert rows_in(tmp_path)["SNN-ConnS, T 1"]["ours %"] == "not run"
    assert (
        "| 99.99" not in refused.out and "not to be trusted: its accuracy is 99.99" in refused.out
    )


def test_dry_run_prints_commands_and_makes_nothing(recipes: Any, tmp_path: Path) -> None:
    options = shlex.split("--table eccv22-tab1 --scale full --rows IMP+ET --dry-run --seeds 3")
    ended = recipes.run("paper_tables", *options, cwd=tmp_path)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert len(lines) == 33 and not list(tmp_path.iterdir())
    assert lines[0].startswith("# 16 runs to train, ") and "no time is known of" in lines[0]
    assert lines[1] == "# eccv22-tab1 cifar10 VGG16 IMP+ET sparsity 0.683"
    assert "early_time_cifar.py --early-time.preset eccv22 --search imp" in lines[2]
    assert "--train.seed 3 --run.out runs/paper-tables/runs/early_time_cifar-" in lines[2]


def test_a_copy_elsewhere_finds_the_tables(recipes: Any, tmp_path: Path) -> None:
    alone = tmp_path / "mine.py"
    shutil.copy(Path(__file__).parents[2] / "recipes" / "paper_tables.py", alone)
    ended = recipes.run(alone, "--dry-run", "--rows", ROW)
    assert ended.code == 0 and "/recipes/edge_popup_cifar.py --edge" in ended.out, ended.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--table magic", "table='magic' is not allowed: some of eccv22-tab1"),
        ("--scale huge", "scale='huge' is not allowed: one of digits"),
        ("--rows magic", "rows='magic' is not allowed: a part of the name of a row"),
        ("--jobs 0", "jobs=0 is not allowed"),
        ("--limit-minutes -1", "limit_minutes=-1.0 is not allowed"),
    ],
)
def test_bad_options_are_one_clear_line(
    recipes: Any, tmp_path: Path, options: str, words: str
) -> None:
    assert words in recipes.run("paper_tables", *options.split(), cwd=tmp_path).error


def test_help_has_words_and_default_for_every_option(recipes: Any) -> None:
    told = recipes.help_of("paper_tables")
    assert {"table", "scale", "rows", "seeds", "reuse", "limit_minutes", "dry_run"} <= set(told)
    assert all("(default:" in text for text in told.values())
