"""Find a lottery ticket by iterative magnitude pruning with late rewinding, and train it.

accelerate launch recipes/imp_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/imp_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/imp_cifar.py --preset eccv22     # the published schedule
accelerate launch recipes/imp_cifar.py --patches.sparsity 0.314     # joint: patches and encoder

Where CIFAR-10 is not on disk and no data set is named, the embedded digits are used instead, with
a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets.base import retrain, with_phase
from spikeformer_lt.tickets.configs import PatchConfig, preset_optim, with_preset
from spikeformer_lt.tickets.imp import ImpConfig
from spikeformer_lt.tickets.joint import JointConfig, on_encoder
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.options import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)

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
    preset: str = "default"
    """Published settings by name: eccv22."""
    imp: ImpConfig = field(default_factory=lambda: ImpConfig(epochs=300, rewind="20ep"))
    patches: PatchConfig = field(default_factory=lambda: PatchConfig(0.0))
    """Where patches are removed, too, weights of the encoder alone are, unless imp.prune says
    otherwise: one ticket of both, with one ledger."""
    epochs: int = 300
    """Epochs of training from the ticket; a preset has its own."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=128, optim=PAPER))
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        with_preset(self.imp, self.preset)


def main(cfg: ImpCifar) -> None:
    """Prune, rewind, repeat; train the last ticket, test once, write the report."""
    from spikeformer_lt import create_search
    from spikeformer_lt.reports.run_page import write_report

    with Experiment(cfg, fallback="digits", small=SMALL) as experiment:
        model, fit = experiment.model(), experiment.trainer.fit
        imp = with_preset(experiment.cfg.imp, cfg.preset)
        if cfg.patches.sparsity > 0:
            joint = JointConfig(cfg.patches, on_encoder(imp))
            search = create_search("joint", config=joint, seed=cfg.train.seed)
        else:
            search = create_search("imp", config=imp, seed=cfg.train.seed)
        ticket = experiment.save_ticket(search.find(model, fit))
        preset = imp.preset
        epochs = experiment.cfg.epochs if preset == "default" else PUBLISHED_EPOCHS
        result = retrain(model, ticket, fit, epochs, preset_optim(preset))
        write_report(experiment, model, with_phase(ticket, result))


if __name__ == "__main__":
    run_recipe(main, ImpCifar)
