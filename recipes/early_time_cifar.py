"""Search with fewer time steps (Early-Time), whatever the search; train the ticket with all.

accelerate launch recipes/early_time_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/early_time_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/early_time_cifar.py --search early_bird

Where CIFAR-10 is not on disk, the embedded digits stand in, with a notice and smaller values.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import Choice, ImageRecipe, find, full_size, small
from spikeformer_lt.config import check, check_fields, run_recipe
from spikeformer_lt.tickets import (
    BipropConfig,
    EarlyBirdConfig,
    EarlyTimeConfig,
    EdgePopupConfig,
    ImpConfig,
    with_preset,
)

SEARCHES = ("imp", "early_bird", "edge_popup", "biprop")
SMALL = small(*SEARCHES, epochs=8)


@dataclass(frozen=True)
class EarlyTimeCifar(ImageRecipe):
    """Early-Time tickets on RGB images."""

    search: str = "imp"
    """The search that runs with fewer steps."""
    preset: str = "default"
    """eccv22 (imp, early_bird), cvpr20 (edge_popup), iclr21 or iclr21-global (biprop)."""
    early_time: EarlyTimeConfig = field(default_factory=EarlyTimeConfig)
    imp: ImpConfig = field(default_factory=full_size("imp"))
    early_bird: EarlyBirdConfig = field(default_factory=full_size("early_bird"))
    edge_popup: EdgePopupConfig = field(default_factory=full_size("edge_popup"))
    biprop: BipropConfig = field(default_factory=full_size("biprop"))
    epochs: int = 300
    """Epochs of the tested network, with those before a rewind point; a preset has its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, search=SEARCHES)
        inner = self.early_time.search
        check(inner in ("imp", self.search), "early_time.search", inner, "imp, or that of --search")


def choose(cfg: EarlyTimeCifar) -> Choice:
    """Early-Time, with its eccv22 if a preset is named, around the search with that preset."""
    early = cfg.early_time if cfg.preset == "default" else with_preset(cfg.early_time, "eccv22")
    return "early_time", early, (cfg.search, with_preset(getattr(cfg, cfg.search), cfg.preset))


def main(cfg: EarlyTimeCifar) -> None:
    """Choose the time, search, train the ticket with all steps, test once, write the report."""
    find(cfg, choose, SMALL)


if __name__ == "__main__":
    run_recipe(main, EarlyTimeCifar)
