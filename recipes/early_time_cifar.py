"""Search with fewer time steps (Early-Time), whatever the search; train the ticket with all.

accelerate launch recipes/early_time_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/early_time_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/early_time_cifar.py --search early_bird

Where CIFAR-10 is not on disk and no data set is named, the embedded digits are used instead, with
a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import check, run_recipe
from spikeformer_lt.tickets.base import retrain, with_phase
from spikeformer_lt.tickets.configs import preset_optim, with_preset
from spikeformer_lt.tickets.early_bird import EarlyBirdConfig
from spikeformer_lt.tickets.early_time import EarlyTimeConfig
from spikeformer_lt.tickets.imp import ImpConfig
from spikeformer_lt.tickets.scores import BipropConfig, EdgePopupConfig
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

PUBLISHED_EPOCHS = 300
SEARCHES = ("imp", "early_bird", "edge_popup", "biprop")
PAPER = OptimConfig(lr=5e-4, weight_decay=0.06, min_lr=1e-5, warmup_epochs=20, warmup_lr=1e-5)
SMALL = {
    "model.name": "spikformer_digits",
    "data.image_size": 16,
    "train.batch_size": 16,
    "train.optim": OptimConfig(lr=5e-3, weight_decay=0.01, min_lr=1e-4, warmup_epochs=1),
    "imp": ImpConfig(epochs=8, rounds=4, rewind="1ep"),
    "early_bird": EarlyBirdConfig(epochs=8),
    "edge_popup": EdgePopupConfig(epochs=12),
    "biprop": BipropConfig(epochs=12),
    "epochs": 8,
}


@dataclass(frozen=True)
class EarlyTimeCifar:
    """Early-Time tickets on RGB images."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    search: str = "imp"
    """The search that runs with fewer steps: imp, early_bird, edge_popup or biprop."""
    preset: str = "default"
    """Published settings by name: eccv22 with imp and early_bird, cvpr20 with edge_popup, iclr21 or
    iclr21-global with biprop; Early-Time itself then takes its own, eccv22."""
    early_time: EarlyTimeConfig = field(default_factory=EarlyTimeConfig)
    imp: ImpConfig = field(default_factory=lambda: ImpConfig(epochs=300, rewind="20ep"))
    early_bird: EarlyBirdConfig = field(default_factory=lambda: EarlyBirdConfig(epochs=300))
    edge_popup: EdgePopupConfig = field(default_factory=lambda: EdgePopupConfig(epochs=100))
    biprop: BipropConfig = field(default_factory=lambda: BipropConfig(epochs=100))
    epochs: int = 300
    """Epochs of training from the ticket; a preset has its own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        check(self.search in SEARCHES, "search", self.search, f"one of {', '.join(SEARCHES)}")
        with_preset(getattr(self, self.search), self.preset)


def main(cfg: EarlyTimeCifar) -> None:
    """Choose the time, search, train the ticket with all steps, test once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_page import write_report

    with Experiment(cfg, fallback="digits", small=SMALL) as experiment:
        model, fit = experiment.model(), experiment.trainer.fit
        chosen = with_preset(getattr(experiment.cfg, cfg.search), cfg.preset)
        early, seed = experiment.cfg.early_time, cfg.train.seed
        early = early if cfg.preset == "default" else with_preset(early, "eccv22")
        options = {"batch": experiment.trainer.batch} if cfg.search == "early_bird" else {}
        inner = create_search(cfg.search, config=chosen, seed=seed, **options)
        batch = experiment.trainer.batch
        search = create_search("early_time", config=early, search=inner, batch=batch)
        ticket = experiment.save_ticket(search.find(model, fit))
        if not search.trained:
            preset = chosen.preset
            epochs = experiment.cfg.epochs if preset == "default" else PUBLISHED_EPOCHS
            result = retrain(model, ticket, fit, epochs, preset_optim(preset))
            ticket = with_phase(ticket, result)
        write_report(experiment, model, ticket)


if __name__ == "__main__":
    run_recipe(main, EarlyTimeCifar)
