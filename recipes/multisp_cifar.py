"""Train a spiking transformer into a MultiSp ticket on RGB images.

accelerate launch recipes/multisp_cifar.py                              # CIFAR-10 under ./data
accelerate launch recipes/multisp_cifar.py --data.name digits           # embedded, no download
accelerate launch recipes/multisp_cifar.py --multisp.preset literal     # Algorithm 1

Defaults are the papers' CIFAR settings. Where CIFAR-10 is not on disk, the embedded digits stand
in, with a notice and smaller values.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import ImageRecipe, find, full_size, small
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import MultiSpConfig

SMALL = small("multisp")


@dataclass(frozen=True)
class MultiSpCifar(ImageRecipe):
    """MultiSp on RGB images: patch, ConvPEP-weight and ConvPEP-activation sparsity."""

    multisp: MultiSpConfig = field(default_factory=full_size("multisp"))


def main(cfg: MultiSpCifar) -> None:
    """Search, save the ticket, test once, write the report."""
    find(cfg, "multisp", SMALL)


if __name__ == "__main__":
    run_recipe(main, MultiSpCifar)
