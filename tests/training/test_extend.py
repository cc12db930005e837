"""A finished run is trained on, honestly: more rows, the last learning rates, the same facts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from spikeformer_lt import create_dataset, create_model
from spikeformer_lt.errors import ConfigError, Interrupted
from spikeformer_lt.images.augment import Augment, Mixing
from spikeformer_lt.training.options import OptimConfig, TrainConfig
from spikeformer_lt.training.phase import FitResult, Phase
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.trainer import Trainer

TRAIN = TrainConfig(batch_size=16, cpu=True, optim=OptimConfig(lr=5e-3, cooldown_epochs=1))


@pytest.fixture(scope="module")
def data():
    return create_dataset("digits", image_size=16, limit_train=48, limit_test=40)


def run(folder: Path, data, extend: int = 0, stop: Any = None, **given) -> FitResult:
    """A run of two phases with a report at its end."""
    with RunDir(folder, resumed=folder.exists()) as directory:
        folder.mkdir(exist_ok=True)
        usual = {"augment": Augment.standard("digits"), "mixing": Mixing(mixup=0.5, until=0.5)}
        trainer = Trainer(
            data, TRAIN, directory, Accelerator(cpu=True), extend=extend, stop=stop, **usual
        )
        torch.manual_seed(0)
        sizes = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
        model: nn.Module = create_model("spikformer_toy", **sizes)
        trainer.fit(model, Phase("dense", 1))
        result = trainer.fit(model, Phase("joint", 2, **given))
        directory.write_report({"weights": float(model.head.weight.detach().sum())})
        return result


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.fault(61)
def test_the_last_phase_goes_on_at_its_last_rates_and_no_further_than_asked(tmp_path, data, caplog):
    first = run(tmp_path / "run", data)
    before, seen = rows(tmp_path / "run"), []
    for _ in range(2):  # asking once more trains nothing
        longer = run(tmp_path / "run", data, extend=2, before_step=seen.append)
        assert (first.epochs, longer.epochs) == (2, 4)
    after = rows(tmp_path / "run")
    assert after[:3] == before
    assert [(row["phase"], row["epoch"]) for row in after[3:]] == [("joint", "3"), ("joint", "4")]
    assert {row["lr"] for row in after[2:]} == {"1e-05"}
    assert [p.epoch for p in seen] == [2, 2, 2, 3, 3, 3] and all(p.fraction > 1 for p in seen)
    assert "phase joint goes on from epoch 2 to 4" in caplog.text
    assert run(tmp_path / "run", data).epochs == 4, "what was trained stays trained"


@pytest.mark.fault(61)
def test_an_extension_that_was_stopped_goes_on_to_the_same_bits(tmp_path, data, stop_after):
    for name in ("whole", "parts"):
        run(tmp_path / name, data)
    run(tmp_path / "whole", data, extend=2)
    for stops in (1, 1, 1):
        with pytest.raises(Interrupted, match="stopped at joint"):
            run(tmp_path / "parts", data, extend=2, stop=stop_after(stops))
    run(tmp_path / "parts", data, extend=2)
    reports = [(tmp_path / name / "report.json").read_text() for name in ("whole", "parts")]
    assert reports[0] == reports[1]
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


@pytest.mark.fault(61)
def test_a_run_that_is_not_finished_is_not_extended(tmp_path, data):
    with pytest.raises(ConfigError, match=r"run\.extend=2 is not allowed: .* is not a finished"):
        run(tmp_path / "run", data, extend=2)
    run(tmp_path / "run", data)
    with pytest.raises(ConfigError, match=r"joint\.distill: 0\.0 -> 0\.5"):
        run(tmp_path / "run", data, extend=2, distill=0.5)
