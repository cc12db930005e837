"""recipes/multisp_compare.py, as a user runs it."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.recipe

ROOT = Path(__file__).resolve().parents[2]


def test_a_suite_becomes_one_table_and_goes_on_where_it_stopped(
    recipes: Any, tmp_path: Path
) -> None:
    """From a copy of the recipes, as they are made for, in a folder whose name has a blank."""
    copied = shutil.copytree(ROOT / "recipes", tmp_path / "my recipes") / "multisp_compare.py"
    out = tmp_path / "out"
    options = (f"--options={' '.join(recipes.small_anywhere)}", "--out", out, "--jobs", 2)
    ended = recipes.run(copied, *options, cwd=tmp_path, fork_jobs=True)
    assert ended.code == 0, ended.err
    assert "3 runs, 0 of them finished before" in ended.err
    runs = {name: out / "runs" / f"{name}-0" for name in ("dense", "MultiSp", "random_control")}
    reports = {n: json.loads((run / "report.json").read_text()) for n, run in runs.items()}
    assert [r["sparsity"]["conv_pep_weight"] for r in reports.values()] == [0, 0.5, 0.5]
    assert reports["dense"]["conv_pep_bits_per_weight"] == 32
    assert reports["MultiSp"]["mask_sha256"] != reports["random_control"]["mask_sha256"]
    assert len({r["split_sha256"] for r in reports.values()}) == 1

    table = (out / "comparison.md").read_text()
    assert table in ended.out
    with open(out / "comparison.csv", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["dense", "MultiSp", "random control"]
    for row, report in zip(rows.values(), reports.values(), strict=True):
        assert float(row["test accuracy %"]) == pytest.approx(report["test_accuracy"], abs=0.005)
        assert float(row["SOPs (M)"]) == pytest.approx(report["sops"] / 1e6, abs=0.0005)

    (runs["dense"] / "report.json").unlink()
    again = recipes.run(copied, *options, cwd=tmp_path, fork_jobs=True)
    assert again.code == 0, again.err
    assert "3 runs, 2 of them finished before" in again.err
    assert json.loads((runs["dense"] / "report.json").read_text()) == reports["dense"]
    with open(out / "comparison.csv", newline="") as file:
        anew = {row["variant"]: row for row in csv.DictReader(file)}
    clocks = [row.pop("ms per input") for row in (*rows.values(), *anew.values())]
    assert all(float(ms.strip("'")) > 0 for ms in clocks) and anew == rows
    differences = [
        text.partition("## Diff")[2] for text in (table, (out / "comparison.md").read_text())
    ]
    assert differences[0] == differences[1] != ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--suite everything", "suite='everything' .*demo, ablation, parts, curves"),
        ("--jobs 0", "jobs=0 is not allowed: at least 1"),
        ("--seeds", r"seeds=\(\) is not allowed: at least one seed"),
        ("--seeds 0 x", r"--seeds=\['0', 'x'\] is not allowed: a list, each entry an integer"),
        ("--sutie demo", "unknown option '--sutie'; did you mean '--suite'?"),
    ],
)
@pytest.mark.fault(35)
def test_wrong_input_is_one_line_and_exit_2(
    recipes: Any, tmp_path: Path, options: str, words: str
) -> None:
    ended = recipes.run("multisp_compare", *options.split(), cwd=tmp_path)
    assert re.match(f"error: .*{words}", ended.error), ended.error
    assert not list(tmp_path.iterdir())


def test_help_has_words_and_default_for_every_option(recipes: Any) -> None:
    told = recipes.help_of("multisp_compare")
    names = {"recipe", "suite", "data", "seeds", "jobs", "out", "options", "epochs", "overwrite"}
    assert set(told) == names | {"dry_run", "on", "slurm", "quick"}
    for name, text in told.items():
        words, default, _ = text.partition("(default:")
        assert default and len(re.findall(r"[a-z]{2,}", words)) >= 2, (name, text)
