"""Train sparse from the start: a mask that moves, or one that was chosen before training.

accelerate launch recipes/sparse_training_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/sparse_training_cifar.py --data.name digits --method snip    # embedded

Where CIFAR-10 is not on disk, the embedded digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass, replace

from spikeformer_lt.cli import Choice, ImageRecipe, find, full_size, small
from spikeformer_lt.config import check, check_fields, run_recipe
from spikeformer_lt.tickets import NmConfig, RandomConfig, SparseTrainingConfig

MOVING = ("set", "rigl", "granet")
CONTROLS = ("none", "start", "random", "shuffle", "fresh")
FIXED = ("random", "erk", "magnitude", "snip", "grasp", "synflow", "nm")
SMALL = small(epochs=12, every=20)


@dataclass(frozen=True)
class SparseTrainingCifar(ImageRecipe):
    """Sparse training on RGB images."""

    method: str = "rigl"
    """The mask of set, rigl and granet moves; nm is 2:4."""
    sparsity: float = 0.9
    """Fraction of the prunable weights removed, in [0, 1); 0 with random is the dense network."""
    epochs: int = 300
    """Epochs of training."""
    every: int = 100
    """Optimizer steps between two moves of the mask."""
    control: str = "none"
    """What the ticket is compared with; start where the mask moves alone."""

    def __post_init__(self) -> None:
        check_fields(self, method=(*MOVING, *FIXED), sparsity="[0, 1)", control=CONTROLS)
        fours = self.method != "nm" or self.sparsity in (0.25, 0.5, 0.75)
        check(fours, "sparsity", self.sparsity, "0.25, 0.5 or 0.75 with nm")


def choose(cfg: SparseTrainingCifar) -> Choice:
    """The search of a method, at the sparsity."""
    method, sparsity = cfg.method, cfg.sparsity
    if method in MOVING:  # their names are their published settings
        config = SparseTrainingConfig(method, sparsity, every=cfg.every, epochs=cfg.epochs)
        return "sparse_training", replace(config, control=cfg.control)
    if method == "erk":
        return "random", RandomConfig(sparsity, "erk", control=cfg.control)
    if method == "nm":
        return "nm", NmConfig(round(4 * (1 - sparsity)), 4, control=cfg.control)
    return method, replace(full_size(method)(), sparsity=sparsity, control=cfg.control)


def main(cfg: SparseTrainingCifar) -> None:
    """Train sparse, test once, write the report."""
    find(cfg, choose, SMALL)


if __name__ == "__main__":
    run_recipe(main, SparseTrainingCifar)
