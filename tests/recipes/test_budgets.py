"""Searches that go on until the network fits into bytes, SOPs, energy or milliseconds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from spikeformer_lt.export import export_run
from spikeformer_lt.reports.energy import LEAST

pytestmark = pytest.mark.recipe
LINE = (
    "random", "--data.name", "digits", "--model.name", "spikformer_digits", "--model.T", "2",
    "--train.cpu", "--train.threads", "1", "--train.batch-size", "64", "--data.limit-train", "256",
    "--data.limit-test", "64", "--epochs", "1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "model"),
    [
        ("bytes=1000", "spikformer_toy"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (
            ("sops=1", "spikformer_toy"), ("bytes=12000", "qkformer_toy"),
        )),
    ],
)  # fmt: skip
def test_multisp_names_the_smallest_value_that_its_floors_allow(
    budget: str, model: str, recipes: Any, tmp_path: Path
) -> None:
    limit = "1024" if "sops" in budget else "99"  # with fewer it stays silent
    line = ["multisp", "--data.name", "digits", "--data.image-size", "16", "--model.name", model,
            "--model.T", "2", "--train.cpu", "--train.batch-size", "64", "--data.limit-train",
            limit, "--data.limit-test", "40", "--multisp.epochs", "1", "--epochs", "1"]  # fmt: skip
    ended = recipes.run("find_ticket", *line, f"--budget.{budget}", "--run.out", tmp_path / "run")
    assert ended.code == 2
    said = rf"budget\.{budget} is below the smallest reachable value, [\d.e+]+$"
    assert re.search(said, ended.err.strip()), ended.err


@pytest.mark.parametrize(
    "what",
    ["bytes", *(pytest.param(what, marks=pytest.mark.slow) for what in ("sops", "energy", "ms"))],
)
def test_a_run_ends_within_its_budget(what: str, recipes: Any, tmp_path: Path) -> None:
    out, line, value = tmp_path / "run", list(LINE), {"bytes": 60_000, "ms": 1000.0}.get(what, 0)
    if not value:  # 4/5 of what a network costs that is alive
        line += ["--epochs", "6", "--data.limit-train", "1024", "--sparsity", "0.3"]
        ended = recipes.run("find_ticket", *line, "--run.out", tmp_path / "whole")
        assert ended.code == 0, ended.err
        whole = json.loads((tmp_path / "whole" / "report.json").read_text())
        value = round(0.8 * whole[{"sops": "sops", "energy": "energy_pj"}[what]], 1)
    line += [f"--budget.{what}", str(value), "--run.out", str(out)]
    ended = recipes.run("find_ticket", *line)
    assert ended.code == 0, ended.err
    about = json.loads((out / "budget.json").read_text())
    report = json.loads((out / "report.json").read_text())
    last = about["tries"][-1]
    assert (about["budget"], about["limit"]) == (what, value)
    assert LEAST[what] * value <= last["value"] <= value
    assert report["sparsity"]["total_weight"] == pytest.approx(last["sparsity"], abs=1e-3)
    if what == "bytes":
        exported = export_run(out, tmp_path / "export")
        assert (exported.folder / "model.safetensors").stat().st_size == last["value"]
    assert what != "ms" or last["quartiles"][0] <= last["value"] <= last["quartiles"][1]
    unfit = sorted((tmp_path / "run.tries").iterdir()) if len(about["tries"]) > 1 else []
    assert len(unfit) == len(about["tries"]) - 1
    assert not any((folder / "report.json").exists() for folder in unfit), (
        "their test set is unread"
    )
    again = recipes.run("find_ticket", *line)
    assert again.code == 2 and "a new directory, with a budget" in again.err
