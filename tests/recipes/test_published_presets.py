"""--preset NAME of each recipe: the phases that the trainer is asked for, none of them trained."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from spikeformer_lt.config import parse
from spikeformer_lt.reports import plots
from spikeformer_lt.training.phase import FitResult, Hooks
from spikeformer_lt.training.trainer import Trainer

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = shlex.split(
    "--data.name digits --data.limit-train 64 --data.limit-test 20 --data.image-size 8 "
    "--model.name spiking_vgg_toy --model.T 3 --train.cpu --train.batch-size 16"
)
ROUNDS = [("imp-0", 300, 0.3), *((f"imp-{i}", 280, 0.3) for i in range(1, 14))]
PUBLISHED = {
    "imp_cifar --preset eccv22": [*ROUNDS, ("retrain", 280, 0.3)],
    "imp_cifar --imp.preset eccv22": [*ROUNDS, ("retrain", 280, 0.3)],
    "early_bird_cifar --preset eccv22": [("early_bird", 300, 0.6), ("retrain", 300, 0.3)],
    "early_time_cifar --preset eccv22": [
        ("early_time", 2, 0.3), *ROUNDS, ("retrain", 300, 0.3)
    ],
    "early_time_cifar --preset eccv22 --search early_bird": [
        ("early_time", 2, 0.3), ("early_bird", 300, 0.6), ("retrain", 300, 0.3)
    ],
    "early_time_cifar --preset iclr21 --search biprop": [
        ("early_time", 2, 0.3), ("biprop", 100, 0.1)
    ],
    "edge_popup_cifar --preset cvpr20": [("edge_popup", 100, 0.1)],
    "biprop_cifar --preset iclr21": [("biprop", 100, 0.1)],
    "biprop_cifar --preset iclr21-global": [("biprop", 100, 0.1)],
}  # fmt: skip


@pytest.mark.parametrize("line", PUBLISHED)
def test_a_preset_asks_for_the_published_phases(line, tmp_path, monkeypatch) -> None:
    asked: list[Any] = []

    def fit(trainer: Trainer, model: Any, phase: Any) -> FitResult:
        optim = phase.optimizer(trainer.config.optim)
        asked.append((phase, optim))
        assert trainer.config.loss == ("tet" if "eccv22" in line else "mean")
        hooks, steps = Hooks(phase.hooks), 2
        hooks.start(model, steps, phase.epochs)
        hooks.after_step(model, steps * phase.epochs, None)
        return FitResult(phase.name, 50.0, 0, phase.epochs, 1.0)

    monkeypatch.setattr(Trainer, "fit", fit)
    monkeypatch.setattr(plots, "plot_training", lambda *_: None)  # there are no epochs
    AcceleratorState._reset_state(reset_partial_state=True)
    name, *options = line.split()
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, recipe)
    spec.loader.exec_module(recipe)
    kind = next(v for k, v in vars(recipe).items() if k == name.title().replace("_", ""))
    recipe.main(parse(kind, [*SMALL, *options, "--run.out", str(tmp_path / "run")]))
    found = [(phase.name, phase.epochs, pytest.approx(o.lr)) for phase, o in asked]
    assert found == PUBLISHED[line]
    for _, optim in asked:
        known = (optim.opt, optim.momentum, optim.sched, optim.min_lr, optim.warmup_epochs)
        assert known == ("momentum", 0.9, "cosine", 0.0, 0.0)
        assert optim.clip_grad == 0 and optim.decay_vectors == (optim.lr >= 0.3)  # the ECCV paper's
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    if "imp" in line:
        assert report["ticket"]["prunable_sparsity"] == pytest.approx(1 - 0.75**14, abs=1e-4)
        assert all(str(phase.lr_from) == "0it" for phase, _ in asked)  # the schedule restarts
