"""Find a lottery ticket by iterative magnitude pruning with late rewinding, and train it.

accelerate launch recipes/imp_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/imp_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/imp_cifar.py --imp.preset eccv22     # the published schedule

Where CIFAR-10 is not on disk and no data set is named, the embedded digits are used instead, with
a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets.base import retrain, with_phase
from spikeformer_lt.tickets.imp import ImpConfig
from spikeformer_lt.tickets.presets import preset_optim
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import DataConfig, ModelConfig, RunConfig
from spikeformer_lt.training.phase import OptimConfig
from spikeformer_lt.training.settings import TrainConfig

PUBLISHED_EPOCHS = 280
PAPER = OptimConfig(lr=5e-4, weight_decay=0.06, min_lr=1e-5, warmup_epochs=20, warmup_lr=1e-5)
SMALL = {
    "model.name": "spikformer_digits",
    "data.image_size": 16,
    "train.batch_size": 16,
    "train.optim": OptimConfig(lr=5e-3, weight_decay=0.01, min_lr=1e-4, warmup_epochs=1),
    "imp.epochs": 8,
    "imp.rounds": 4,
    "imp.rewind": "1ep",
    "epochs": 8,
}


@dataclass(frozen=True)
class ImpCifar:
    """Iterative magnitude pruning on RGB images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    imp: ImpConfig = field(default_factory=lambda: ImpConfig(epochs=300, rewind="20ep"))
    epochs: int = 300
    """Epochs of training from the ticket; a preset has its own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)


def main(cfg: ImpCifar) -> None:
    """Prune, rewind, repeat; train the last ticket, test once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_report import write_report

    with Experiment(cfg, fallback="digits", small=SMALL) as experiment:
        model, fit = experiment.model(), experiment.trainer.fit
        search = create_search("imp", config=experiment.cfg.imp, seed=cfg.train.seed)
        ticket = experiment.save_ticket(search.find(model, fit))
        preset = experiment.cfg.imp.preset
        epochs = experiment.cfg.epochs if preset == "default" else PUBLISHED_EPOCHS
        result = retrain(model, ticket, fit, epochs, preset_optim(preset))
        write_report(experiment, model, with_phase(ticket, result))


if __name__ == "__main__":
    run_recipe(main, ImpCifar)
