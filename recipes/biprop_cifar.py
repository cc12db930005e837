"""Learn a binary subnetwork of frozen random weights: no weight is ever trained.

accelerate launch recipes/biprop_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/biprop_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/biprop_cifar.py --preset iclr21

Where CIFAR-10 is not on disk, the embedded digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import ImageRecipe, find, full_size, small
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import BipropConfig

SMALL = small("biprop")


@dataclass(frozen=True)
class BipropCifar(ImageRecipe):
    """Biprop on RGB images."""

    preset: str = "default"
    """Published settings by name."""
    biprop: BipropConfig = field(default_factory=full_size("biprop"))


def main(cfg: BipropCifar) -> None:
    """Learn the scores, test the subnetwork once, write the report."""
    find(cfg, "biprop", SMALL)


if __name__ == "__main__":
    run_recipe(main, BipropCifar)
