"""Opening a finished run or a ticket."""

from __future__ import annotations

import json

import pytest
import torch

from spikeformer_lt.errors import DataError, TicketError
from spikeformer_lt.reports.finished import open_run
from spikeformer_lt.tickets.surgery import model_from_ticket


def test_a_run_opens_with_its_model_split_and_report(saved, tmp_path):
    model = saved(tmp_path / "run")
    (tmp_path / "run" / "report.json").write_text(json.dumps({"test_accuracy": 12.5}))
    run = open_run(tmp_path / "run", model_from_ticket)
    assert run.name == "run" and run.own_split and run.report == {"test_accuracy": 12.5}
    images = run.batches("test", 20, batch_size=8)
    assert [len(x) for x in images] == [8, 8, 4]
    assert sum(len(x) for x in run.batches("test", 999)) == 30
    with torch.no_grad():
        assert torch.equal(run.model(images[0]), model.eval()(images[0]))


def test_another_split_is_noticed_and_T_can_be_changed(saved, tmp_path):
    saved(tmp_path / "run", split_sha256="0" * 64)
    run = open_run(tmp_path / "run", model_from_ticket, T=3)
    assert not run.own_split and run.report is None
    assert run.model(run.batches("val", 2)[0]).shape == (2, 3, 10)


def test_a_ticket_without_origin_and_a_broken_report_are_named(saved, tmp_path):
    saved(tmp_path / "a", dataset=None)
    with pytest.raises(TicketError, match="does not say its dataset"):
        open_run(tmp_path / "a", model_from_ticket)
    saved(tmp_path / "b")
    for text in ("{", "[]"):
        (tmp_path / "b" / "report.json").write_text(text)
        with pytest.raises(DataError, match=r"report\.json"):
            open_run(tmp_path / "b", model_from_ticket)


def test_a_weight_tickets_run_opens_with_the_network_that_was_trained_from_it(saved, tmp_path):
    """Its ticket holds start weights; without the trained network next to it, it says so."""
    saved(tmp_path / "run", trained=False)
    assert open_run(tmp_path / "run", model_from_ticket).untrained
    saved(tmp_path / "other", trained=True)
    (tmp_path / "other" / "ticket").rename(tmp_path / "run" / "trained")
    assert not open_run(tmp_path / "run", model_from_ticket).untrained
    assert open_run(tmp_path / "run" / "ticket", model_from_ticket).untrained
