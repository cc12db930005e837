"""Train a spiking transformer into a MultiSp ticket on CIFAR10-DVS.

accelerate launch recipes/multisp_cifar10_dvs.py                            # CIFAR10-DVS in ./data
accelerate launch recipes/multisp_cifar10_dvs.py --data.name moving_digits  # embedded
accelerate launch recipes/multisp_cifar10_dvs.py --data.values binary       # spikes in, too

Defaults are Spikformer's for CIFAR10-DVS: 2-256, T 16, 16x16 patches, 96 epochs and 10 more at
the last learning rate. Where CIFAR10-DVS is not on disk and no data set is named, the embedded
moving digits are used instead, with a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets.configs import MultiSpConfig
from spikeformer_lt.training.experiment import CIFAR10_DVS, Experiment
from spikeformer_lt.training.options import (
    EventDataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

PAPER = OptimConfig(
    lr=1e-3, weight_decay=0.06, min_lr=1e-5, warmup_epochs=10, warmup_lr=1e-5, cooldown_epochs=10
)
SMALL = {
    "model.name": "spikformer_dvs_toy",
    "model.T": 8,
    "model.num_heads": None,
    "train.optim": OptimConfig(lr=5e-3, weight_decay=0.01, min_lr=1e-4, warmup_epochs=1),
    "multisp.epochs": 20,
    "multisp.stem_epochs": 6,
}


@dataclass(frozen=True)
class MultiSpCifar10Dvs:
    """MultiSp on CIFAR10-DVS: patch, ConvPEP-weight and ConvPEP-activation sparsity."""

    data: EventDataConfig = field(default_factory=EventDataConfig)
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(name="spikformer_dvs", T=16, num_heads=16)
    )
    multisp: MultiSpConfig = field(
        default_factory=lambda: MultiSpConfig(epochs=106, stem_epochs=50)
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=16, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)


def main(cfg: MultiSpCifar10Dvs) -> None:
    """Search, save the ticket, test once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_page import write_report

    with Experiment(cfg, fallback="moving_digits", small=SMALL, wanted=CIFAR10_DVS) as experiment:
        model = experiment.model()
        search = create_search("multisp", config=experiment.cfg.multisp, seed=cfg.train.seed)
        ticket = search.find(model, experiment.trainer.fit)
        ticket = experiment.save_ticket(ticket)
        write_report(experiment, model, ticket)


if __name__ == "__main__":
    run_recipe(main, MultiSpCifar10Dvs)
