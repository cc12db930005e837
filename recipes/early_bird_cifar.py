"""Draw an Early-Bird ticket, of weights or of whole channels, and train it.

accelerate launch recipes/early_bird_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/early_bird_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/early_bird_cifar.py --early-bird.kind channels

Where CIFAR-10 is not on disk, the embedded digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import ImageRecipe, find, full_size, small
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import EarlyBirdConfig

SMALL = small("early_bird", epochs=8)


@dataclass(frozen=True)
class EarlyBirdCifar(ImageRecipe):
    """Early-Bird tickets on RGB images."""

    preset: str = "default"
    """Published settings by name."""
    early_bird: EarlyBirdConfig = field(default_factory=full_size("early_bird"))
    epochs: int = 300
    """Epochs of the tested network, with those before a rewind point; a preset has its own."""


def main(cfg: EarlyBirdCifar) -> None:
    """Search until the mask changes little; train the ticket, test once, write the report."""
    find(cfg, "early_bird", SMALL)


if __name__ == "__main__":
    run_recipe(main, EarlyBirdCifar)
