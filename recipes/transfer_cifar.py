"""Train a ticket that was found elsewhere: on another data set, with another T, or without spikes.

accelerate launch recipes/transfer_cifar.py --ticket runs/x    # on CIFAR-10 under ./data
accelerate launch recipes/transfer_cifar.py --ticket runs/x --data.name cifar100 --fresh head
accelerate launch recipes/transfer_cifar.py --ticket runs/relu --model.neuron lif --norm estimate

The network is the ticket's own, but for the model options that are given. Where CIFAR-10 is not on
disk, the embedded digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass

from spikeformer_lt.cli import IMAGES_SMALL, ImageRecipe, transfer
from spikeformer_lt.config import check_fields, run_recipe
from spikeformer_lt.tickets import CONTROLS, NORMS

SMALL = {name: IMAGES_SMALL[name] for name in ("train.batch_size", "train.optim")} | {"epochs": 8}


@dataclass(frozen=True)
class TransferCifar(ImageRecipe):
    """Transfer of a ticket to RGB images."""

    NEEDS = ("ticket",)
    ticket: str = ""
    """A run directory, whose ticket is taken as it was before training, or a ticket folder."""
    norm: str = "keep"
    """BatchNorm's statistics: keep the ticket's, reset them, or estimate them on training images,
    as other neurons need."""
    norm_images: int = 512
    """Training images that statistics are estimated on."""
    fresh: tuple[str, ...] = ()
    """Layers that keep this run's own start weights and no mask, such as head for other classes."""
    control: str = "none"
    """none, or what the ticket is compared with: random (its weights at random places of each
    layer), shuffle (permuted within each layer) or fresh (start weights drawn anew)."""
    epochs: int = 300
    """Epochs of training from the ticket."""

    def __post_init__(self) -> None:
        check_fields(self, norm=NORMS, norm_images=2, control=CONTROLS)


def main(cfg: TransferCifar) -> None:
    """Move the ticket into the new network, train it, test once, write the report."""
    transfer(cfg, SMALL)


if __name__ == "__main__":
    run_recipe(main, TransferCifar)
