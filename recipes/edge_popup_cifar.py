"""Learn a subnetwork of frozen random weights: no weight is ever trained.

accelerate launch recipes/edge_popup_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/edge_popup_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/edge_popup_cifar.py --preset cvpr20

Where CIFAR-10 is not on disk, the embedded digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import ImageRecipe, find, full_size, small
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import EdgePopupConfig

SMALL = small("edge_popup")


@dataclass(frozen=True)
class EdgePopupCifar(ImageRecipe):
    """EdgePopup on RGB images."""

    preset: str = "default"
    """Published settings by name."""
    edge_popup: EdgePopupConfig = field(default_factory=full_size("edge_popup"))


def main(cfg: EdgePopupCifar) -> None:
    """Learn the scores, test the subnetwork once, write the report."""
    find(cfg, "edge_popup", SMALL)


if __name__ == "__main__":
    run_recipe(main, EdgePopupCifar)
