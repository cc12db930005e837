"""Rows of an epoch: each spiking layer's rate is that of the spikes that were made in it."""

from __future__ import annotations

import csv
import logging
from types import SimpleNamespace

import pytest
import torch

from spikeformer_lt.training.phase import Hooks
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.trainer import record_epoch

ROW = {
    "phase": "joint", "epoch": 2, "train_loss": 0.5, "train_accuracy": 50.0, "firing_rate": 0.2,
    "val_accuracy": None, "weight_sparsity": 0.0, "patch_sparsity": 0.25,
}  # fmt: skip


def a_run(folder, main=True, log=None):
    trainer = SimpleNamespace(
        main=main, run=RunDir(folder, writer=main), tracked=("board",) * bool(log)
    )
    trainer.accelerator = SimpleNamespace(log=log)
    trainer.later = lambda phase: 3
    return SimpleNamespace(
        trainer=trainer,
        until=4,
        hooks=Hooks(()),
        model=torch.nn.Identity(),
        at=SimpleNamespace(epoch=1, seconds=2.0),
        phase=SimpleNamespace(name="joint", epochs=4, tags={"round": "1"}),
        watch=SimpleNamespace(rates=lambda: {"a.act": 0.25, "b.act": 0.0}),
    )


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_epoch_has_one_row_in_each_table_and_a_line_in_the_log(tmp_path, caplog):
    run = a_run(tmp_path)
    with caplog.at_level(logging.INFO, "spikeformer_lt.training.trainer"):
        record_epoch(run, ROW, 100.0)
    assert read(tmp_path / "firing.csv") == [
        {"phase": "joint", "epoch": "2", "a.act": "0.25", "b.act": "0.0"}
    ]
    (row,) = read(tmp_path / "summary.csv")
    assert (row["train_loss"], row["val_accuracy"], row["round"]) == ("0.5", "", "1")
    assert "joint epoch 2/4" in caplog.text and "ETA 0:00:02, run 0:00:05" in caplog.text


def test_other_ranks_write_and_say_nothing(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        record_epoch(a_run(tmp_path, main=False), ROW, 100.0)
    assert not list(tmp_path.iterdir()) and not caplog.records


@pytest.mark.parametrize("key", ["joint/train_loss", "joint/firing/a.act"])
def test_a_board_gets_every_number(tmp_path, key):
    seen = {}

    def log(numbers, step):
        seen.update(numbers)
        assert step == 2

    record_epoch(a_run(tmp_path, log=log), ROW, 100.0)
    assert seen[key] == {"joint/train_loss": 0.5, "joint/firing/a.act": 0.25}[key]
    assert "joint/phase" not in seen and "joint/val_accuracy" not in seen
