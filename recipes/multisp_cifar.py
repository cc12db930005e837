"""Train a spiking transformer into a MultiSp ticket on RGB images.

accelerate launch recipes/multisp_cifar.py                              # CIFAR-10 under ./data
accelerate launch recipes/multisp_cifar.py --data.name digits           # embedded, no download
accelerate launch recipes/multisp_cifar.py --multisp.preset literal     # Algorithm 1 as printed

Defaults are the papers' CIFAR settings. Where CIFAR-10 is not on disk and no data set is named,
the embedded digits are used instead, with a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets.configs import MultiSpConfig
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
    "multisp.epochs": 12,
    "multisp.stem_epochs": 6,
}


@dataclass(frozen=True)
class MultiSpCifar:
    """MultiSp on RGB images: patch, ConvPEP-weight and ConvPEP-activation sparsity."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    multisp: MultiSpConfig = field(
        default_factory=lambda: MultiSpConfig(epochs=300, stem_epochs=100)
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)


def main(cfg: MultiSpCifar) -> None:
    """Search, save the ticket, test once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_page import write_report

    with Experiment(cfg, fallback="digits", small=SMALL) as experiment:
        model = experiment.model()
        search = create_search("multisp", config=experiment.cfg.multisp, seed=cfg.train.seed)
        ticket = search.find(model, experiment.trainer.fit)
        ticket = experiment.save_ticket(ticket)
        write_report(experiment, model, ticket)


if __name__ == "__main__":
    run_recipe(main, MultiSpCifar)
