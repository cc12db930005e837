"""Draw an Early-Bird ticket, of weights or of whole channels, and train it.

accelerate launch recipes/early_bird_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/early_bird_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/early_bird_cifar.py --early-bird.kind channels

Where CIFAR-10 is not on disk and no data set is named, the embedded digits are used instead, with
a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets.base import retrain, with_phase
from spikeformer_lt.tickets.configs import preset_optim, with_preset
from spikeformer_lt.tickets.early_bird import EarlyBirdConfig
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

PUBLISHED_EPOCHS = 300
PAPER = OptimConfig(lr=5e-4, weight_decay=0.06, min_lr=1e-5, warmup_epochs=20, warmup_lr=1e-5)
SMALL = {
    "model.name": "spikformer_digits",
    "data.image_size": 16,
    "train.batch_size": 16,
    "train.optim": OptimConfig(lr=5e-3, weight_decay=0.01, min_lr=1e-4, warmup_epochs=1),
    "early_bird.epochs": 8,
    "epochs": 8,
}


@dataclass(frozen=True)
class EarlyBirdCifar:
    """Early-Bird tickets on RGB images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    preset: str = "default"
    """Published settings by name: eccv22."""
    early_bird: EarlyBirdConfig = field(default_factory=lambda: EarlyBirdConfig(epochs=300))
    epochs: int = 300
    """Epochs of training from the ticket; a preset has its own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        with_preset(self.early_bird, self.preset)


def main(cfg: EarlyBirdCifar) -> None:
    """Search until the mask stands still; train the ticket, test once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_page import write_report

    with Experiment(cfg, fallback="digits", small=SMALL) as experiment:
        model, fit = experiment.model(), experiment.trainer.fit
        chosen = with_preset(experiment.cfg.early_bird, cfg.preset)
        search = create_search(
            "early_bird",
            config=chosen,
            seed=cfg.train.seed,
            batch=experiment.trainer.batch,
        )
        ticket = experiment.save_ticket(search.find(model, fit))
        preset = chosen.preset
        epochs = experiment.cfg.epochs if preset == "default" else PUBLISHED_EPOCHS
        result = retrain(model, ticket, fit, epochs, preset_optim(preset))
        write_report(experiment, model, with_phase(ticket, result))


if __name__ == "__main__":
    run_recipe(main, EarlyBirdCifar)
