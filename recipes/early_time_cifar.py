"""Search with fewer time steps (Early-Time), whatever the search; train the ticket with all.

accelerate launch recipes/early_time_cifar.py    # CIFAR-10 under ./data
accelerate launch recipes/early_time_cifar.py --data.name digits    # embedded, no download
accelerate launch recipes/early_time_cifar.py --search early_bird

Where CIFAR-10 is not on disk and no data set is named, the embedded digits are used instead, with
a notice; options left alone then take small values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from spikeformer_lt import tickets
from spikeformer_lt.cli import Choice, ImageRecipe, find, full_size, small
from spikeformer_lt.config import check_fields, run_recipe
from spikeformer_lt.tickets import with_preset

SEARCHES = ("imp", "early_bird", "edge_popup", "biprop")


@dataclass(frozen=True)
class EarlyTimeCifar(ImageRecipe):
    """Early-Time tickets on RGB images."""

    search: str = "imp"
    """The search that runs with fewer steps: imp, early_bird, edge_popup or biprop."""
    preset: str = "default"
    """Published settings by name: eccv22 with imp and early_bird, cvpr20 with edge_popup, iclr21 or
    iclr21-global with biprop; Early-Time itself then takes its own, eccv22."""
    early_time: tickets.EarlyTimeConfig = field(default_factory=tickets.EarlyTimeConfig)
    imp: tickets.ImpConfig = field(default_factory=full_size("imp"))
    early_bird: tickets.EarlyBirdConfig = field(default_factory=full_size("early_bird"))
    edge_popup: tickets.EdgePopupConfig = field(default_factory=full_size("edge_popup"))
    biprop: tickets.BipropConfig = field(default_factory=full_size("biprop"))
    epochs: int = 300
    """Epochs of training from the ticket; a preset has its own."""

    def __post_init__(self) -> None:
        check_fields(self, search=SEARCHES)
        with_preset(getattr(self, self.search), self.preset)


def choose(cfg: EarlyTimeCifar) -> Choice:
    """Early-Time around the chosen search, both with the preset."""
    early = cfg.early_time if cfg.preset == "default" else with_preset(cfg.early_time, "eccv22")
    return "early_time", early, (cfg.search, with_preset(getattr(cfg, cfg.search), cfg.preset))


def main(cfg: EarlyTimeCifar) -> None:
    """Choose the time, search, train the ticket with all steps, test once, write the report."""
    find(cfg, choose, small(*SEARCHES, epochs=8))


if __name__ == "__main__":
    run_recipe(main, EarlyTimeCifar)
