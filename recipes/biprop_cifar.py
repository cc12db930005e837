"""Learn a binary subnetwork of frozen random weights: no weight is ever trained.

accelerate launch recipes/biprop_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/biprop_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/biprop_cifar.py --preset iclr21

Where CIFAR-10 is not on disk and no data set is named, the embedded digits are used instead, with
a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets.configs import with_preset
from spikeformer_lt.tickets.scores import BipropConfig
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

PAPER = OptimConfig(lr=5e-4, weight_decay=0.06, min_lr=1e-5, warmup_epochs=20, warmup_lr=1e-5)
SMALL = {
    "model.name": "spikformer_digits",
    "data.image_size": 16,
    "train.batch_size": 16,
    "train.optim": OptimConfig(lr=5e-3, weight_decay=0.01, min_lr=1e-4, warmup_epochs=1),
    "biprop.epochs": 12,
}


@dataclass(frozen=True)
class BipropCifar:
    """Biprop on RGB images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    preset: str = "default"
    """Published settings by name: iclr21 or iclr21-global."""
    biprop: BipropConfig = field(default_factory=lambda: BipropConfig(epochs=100))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        with_preset(self.biprop, self.preset)


def main(cfg: BipropCifar) -> None:
    """Learn the scores, test the subnetwork once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_page import write_report

    with Experiment(cfg, fallback="digits", small=SMALL) as experiment:
        model, fit = experiment.model(), experiment.trainer.fit
        chosen = with_preset(experiment.cfg.biprop, cfg.preset)
        search = create_search("biprop", config=chosen, seed=cfg.train.seed)
        ticket = experiment.save_ticket(search.find(model, fit))
        write_report(experiment, model, ticket)


if __name__ == "__main__":
    run_recipe(main, BipropCifar)
