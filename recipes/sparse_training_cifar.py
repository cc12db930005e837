"""Train sparse from the start: a mask that moves, or one that was chosen before training.

accelerate launch recipes/sparse_training_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/sparse_training_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/sparse_training_cifar.py --method snip --sparsity 0.95

Where CIFAR-10 is not on disk and no data set is named, the embedded digits are used instead, with
a notice; options left alone then take small values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from spikeformer_lt.config import check, run_recipe
from spikeformer_lt.tickets.at_init import GraspConfig, SnipConfig, SynflowConfig
from spikeformer_lt.tickets.base import retrain, with_phase
from spikeformer_lt.tickets.one_shot import MagnitudeConfig, NmConfig, RandomConfig
from spikeformer_lt.tickets.sparse_training import SparseTrainingConfig
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

MOVING = ("set", "rigl", "granet")
FIXED: dict[str, Callable[[float], Any]] = {
    "random": RandomConfig,
    "erk": lambda sparsity: RandomConfig(sparsity, "erk"),
    "magnitude": MagnitudeConfig,
    "snip": SnipConfig,
    "grasp": GraspConfig,
    "synflow": SynflowConfig,
    "nm": lambda sparsity: NmConfig(round(4 * (1 - sparsity)), 4),
}
WITH_IMAGES = ("snip", "grasp", "synflow")
PAPER = OptimConfig(lr=5e-4, weight_decay=0.06, min_lr=1e-5, warmup_epochs=20, warmup_lr=1e-5)
SMALL = {
    "model.name": "spikformer_digits",
    "data.image_size": 16,
    "train.batch_size": 16,
    "train.optim": OptimConfig(lr=5e-3, weight_decay=0.01, min_lr=1e-4, warmup_epochs=1),
    "epochs": 12,
    "every": 20,
}


@dataclass(frozen=True)
class SparseTrainingCifar:
    """Sparse training on RGB images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: str = "rigl"
    """set, rigl or granet (the mask moves); random, erk, magnitude, snip, grasp, synflow, or nm
    (2:4 at a sparsity of 0.5; 1:4 at 0.75)."""
    sparsity: float = 0.9
    """Fraction of the prunable weights removed, in [0, 1); 0 with random is the dense network."""
    epochs: int = 300
    """Epochs of training."""
    every: int = 100
    """Optimizer steps between two moves of the mask."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        known = (*MOVING, *FIXED)
        check(self.method in known, "method", self.method, f"one of {', '.join(known)}")
        check(0 <= self.sparsity < 1, "sparsity", self.sparsity, "in [0, 1)")
        fours = self.method != "nm" or self.sparsity in (0.25, 0.5, 0.75)
        check(fours, "sparsity", self.sparsity, "0.25, 0.5 or 0.75 with nm")


def main(cfg: SparseTrainingCifar) -> None:
    """Train sparse, test once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_page import write_report

    with Experiment(cfg, fallback="digits", small=SMALL) as experiment:
        model, fit = experiment.model(), experiment.trainer.fit
        method, seed = cfg.method, cfg.train.seed
        epochs, every = experiment.cfg.epochs, experiment.cfg.every
        if method in MOVING:  # their names are their published settings
            config = SparseTrainingConfig(method, cfg.sparsity, every=every, epochs=epochs)
            search = create_search("sparse_training", config=config, seed=seed)
            ticket = experiment.save_ticket(search.find(model, fit))
        else:
            options = {"batch": experiment.trainer.batch} if method in WITH_IMAGES else {}
            name = "random" if method == "erk" else method
            search = create_search(name, config=FIXED[method](cfg.sparsity), seed=seed, **options)
            ticket = experiment.save_ticket(search.find(model, fit))
            ticket = with_phase(ticket, retrain(model, ticket, fit, epochs))
        write_report(experiment, model, ticket)


if __name__ == "__main__":
    run_recipe(main, SparseTrainingCifar)
