"""Train a spiking transformer into a MultiSp ticket on CIFAR10-DVS.

accelerate launch recipes/multisp_cifar10_dvs.py                            # CIFAR10-DVS in ./data
accelerate launch recipes/multisp_cifar10_dvs.py --data.name moving_digits  # embedded
accelerate launch recipes/multisp_cifar10_dvs.py --data.values binary       # spikes in, too

Defaults are Spikformer's for CIFAR10-DVS: 2-256, T 16, 16x16 patches, 96 epochs and 10 more at
the last learning rate. Where it is not on disk, the embedded moving digits stand in, with a notice.
"""

from dataclasses import dataclass, field, replace

from spikeformer_lt.cli import EVENTS_SMALL as SMALL
from spikeformer_lt.cli import PAPER_EVENTS, EventRecipe, find
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import MultiSpConfig
from spikeformer_lt.training import ModelConfig, TrainConfig

OPTIM = replace(PAPER_EVENTS, of_epochs=106)


@dataclass(frozen=True)
class MultiSpCifar10Dvs(EventRecipe):
    """MultiSp on CIFAR10-DVS: patch, ConvPEP-weight and ConvPEP-activation sparsity."""

    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(name="spikformer_dvs", T=16, num_heads=16)
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(batch_size=16, optim=OPTIM))
    multisp: MultiSpConfig = field(
        default_factory=lambda: MultiSpConfig(epochs=106, stem_epochs=50)
    )


def main(cfg: MultiSpCifar10Dvs) -> None:
    """Search, save the ticket, test once, write the report."""
    find(cfg, "multisp", SMALL, fallback="moving_digits", wanted="cifar10_dvs")


if __name__ == "__main__":
    run_recipe(main, MultiSpCifar10Dvs)
