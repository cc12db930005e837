"""The page of a comparison, from reports and tickets of its runs."""

from __future__ import annotations

import csv
import json
import re
import weakref

import pytest
import torch

from spikeformer_lt import Ticket
from spikeformer_lt.errors import DataError
from spikeformer_lt.mask import Mask
from spikeformer_lt.reports.comparison import accuracy_at_t, read_rows, timed, write_comparison
from spikeformer_lt.reports.finished import FinishedRun
from spikeformer_lt.training.jobs import Job


def finished(folder, variant, seed, accuracy, mask):
    job = Job(variant, seed, folder / f"{variant}-{seed}", ())
    sparsity = {"patch": 0.0, "conv_pep_weight": 0.5, "total_weight": 0.5}
    report = {
        "dataset": "digits", "split_sha256": "s", "test_accuracy": accuracy, "seed": seed,
        "accuracy_at_t": [accuracy - 10, accuracy], "sparsity": sparsity, "firing_rate": {"a": 0.1},
    }  # fmt: skip
    Ticket(Mask(mask), {n: kept.float() for n, kept in mask.items()}, {}).save(
        job.folder / "ticket"
    )
    job.report.write_text(json.dumps(report))
    return job


@pytest.fixture
def jobs(tmp_path):
    kept = {"w": torch.tensor([True, True, False, False])}
    other = {"w": torch.tensor([True, False, True, False])}
    return [
        finished(tmp_path, "imp 0.5", 0, 90.0, kept),
        finished(tmp_path, "imp 0.5", 1, 80.0, other),
        finished(tmp_path, "imp 0.9", 0, 60.0, other),
        finished(tmp_path, "random <b> 0.5", 0, 70.0, other),
        Job("snip 0.5", 0, tmp_path / "none", ()),
    ]


def test_a_comparison_has_a_page_with_table_curves_and_masks_inside(jobs, tmp_path):
    write_comparison(tmp_path, jobs, "Tickets")
    text = (tmp_path / "report.html").read_text()
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"curve-ConvPEP-weights.png", "anytime.png", "masks.png"}
    assert text.count("data:image/png;base64,") == 3 == text.count("<img alt=")
    assert all((tmp_path / name).with_suffix(".csv").exists() for name in pictures)
    assert "85.00 ± 7.07" in text and "embedded test bed" in text
    assert "snip 0.5 (0 of 1)" in text and 'class="notice"' in text
    assert "<b>" not in text and not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    rows = list(csv.DictReader((tmp_path / "masks.csv").open()))
    assert float(rows[0]["random <b> 0.5"]) == 0.5  # the first seeds: half of the entries differ


def test_accuracy_at_t_is_a_mean_over_seeds_of_one_length(jobs):
    reports = {row.variant: row.reports for row in read_rows(jobs)}
    assert accuracy_at_t(reports) == {
        "imp 0.5": [75.0, 85.0],
        "imp 0.9": [50.0, 60.0],
        "random <b> 0.5": [60.0, 70.0],
    }
    reports["imp 0.5"].append({"accuracy_at_t": [1.0, 2.0, 3.0]})
    assert list(accuracy_at_t(reports)) == ["imp 0.9", "random <b> 0.5"]


def test_masks_of_different_layers_have_no_distance(jobs, tmp_path):
    jobs.append(finished(tmp_path, "other", 0, 60.0, {"v": torch.ones(3).bool()}))
    write_comparison(tmp_path, jobs, "Tickets")
    assert "No distances" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "masks.png").exists()


def test_nothing_finished_still_has_a_page(tmp_path):
    write_comparison(tmp_path, [Job("a", 0, tmp_path / "none", ())], "Tickets")
    assert "a (0 of 1)" in (tmp_path / "report.html").read_text()


def test_a_clock_needs_one_data_set_at_a_time_and_stops_no_comparison(saved, tmp_path, monkeypatch):
    report = {"dataset": "digits", "split_sha256": "s", "seed": 0, "test_accuracy": 90.0,
              "firing_rate": {"a": 0.1}, "sparsity": {"total_weight": 0.5}}  # fmt: skip
    jobs = [Job(name, 0, tmp_path / name, ()) for name in ("imp 0.5", "imp 0.9", "snip 0.9")]
    for job in jobs:
        saved(job.folder)
        job.report.write_text(json.dumps(report))
    batches, opened = FinishedRun.batches, []

    def read(run, *how):
        assert all(other() is None for other in opened)
        opened.append(weakref.ref(run))
        if run.name == "imp 0.9":
            raise DataError("a recording cannot be read")
        return batches(run, *how)

    monkeypatch.setattr(FinishedRun, "batches", read)
    rows = {row.variant: row.values("ms per input") for row in timed(read_rows(jobs))}
    assert [name for name, known in rows.items() if known] == ["imp 0.5", "snip 0.9"]
    assert len(opened) == 3
