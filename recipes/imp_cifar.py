"""Find a lottery ticket by iterative magnitude pruning with late rewinding, and train it.

accelerate launch recipes/imp_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/imp_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/imp_cifar.py --preset eccv22     # the published schedule
accelerate launch recipes/imp_cifar.py --patches.sparsity 0.314     # joint: patches and encoder

Where CIFAR-10 is not on disk, the embedded digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import Choice, ImageRecipe, find, full_size, small
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import ImpConfig, JointConfig, PatchConfig, on_encoder, with_preset

SMALL = small("imp", epochs=8)


@dataclass(frozen=True)
class ImpCifar(ImageRecipe):
    """Iterative magnitude pruning on RGB images."""

    preset: str = "default"
    """Published settings by name."""
    imp: ImpConfig = field(default_factory=full_size("imp"))
    patches: PatchConfig = field(default_factory=lambda: PatchConfig(0.0))
    """Where patches are removed, too, weights of the encoder alone are, unless imp.prune says
    otherwise: one ticket of both, with one ledger."""
    epochs: int = 300
    """Epochs of the tested network, with those before a rewind point; a preset has its own."""


def choose(cfg: ImpCifar) -> Choice:
    """IMP, or the joint search if patches are removed, too."""
    imp = with_preset(cfg.imp, cfg.preset)
    if cfg.patches.sparsity > 0:
        return "joint", JointConfig(cfg.patches, on_encoder(imp))
    return "imp", imp


def main(cfg: ImpCifar) -> None:
    """Prune, rewind, repeat; train the last ticket, test once, write the report."""
    find(cfg, choose, SMALL)


if __name__ == "__main__":
    run_recipe(main, ImpCifar)
