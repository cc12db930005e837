"""Energy of finished runs, layer by layer, beside the papers' formula.

python recipes/energy_report.py --runs runs/dense runs/x --out energy/       # dense against ticket

The first run is what the others are divided by. Every energy is an estimate and says so.
"""

from dataclasses import dataclass, field
from pathlib import Path

from spikeformer_lt.cli import open_finished, outputs
from spikeformer_lt.config import check_fields, run_recipe
from spikeformer_lt.errors import emphasised
from spikeformer_lt.training import EventDataConfig


@dataclass(frozen=True)
class EnergyReport:
    """Per-layer operations and energy estimates of runs or tickets: table, JSON, CSV, bars."""

    NEEDS = ("runs",)
    runs: tuple[str, ...] = ()
    """Run directories, ticket folders or exports; the first is the reference."""
    out: str = ""
    """Folder for energy.md, energy.json, energy.csv and energy-bars.png; empty prints only."""
    overwrite: bool = False
    """Replace files there that are not as an earlier call wrote them."""
    split: str = "test"
    """train, val or test: which images the operations are counted on."""
    images: int = 256
    """How many of them."""
    batch_size: int = 64
    """Images per forward."""
    T: int | None = None
    """Time steps; None is those of the training."""
    data: EventDataConfig = field(default_factory=EventDataConfig)

    def __post_init__(self) -> None:
        check_fields(self, split=("train", "val", "test"), batch_size=1, images=1)


def main(cfg: EnergyReport) -> None:
    """Open, count, write, print."""
    from spikeformer_lt.reports import energy_markdown, measure_energy, plot_energy, write_energy

    networks = {}
    with outputs(cfg.out, cfg.overwrite, "energy.*", "energy-bars.*"):
        for path in cfg.runs:
            run = open_finished(path, cfg, T=cfg.T)
            print("".join(f"NOTICE: {line}\n" for line in run.notices()), end="")
            name = run.name if run.name not in networks else str(run.path)
            batches = run.batches(cfg.split, cfg.images, cfg.batch_size)
            networks[name] = measure_energy(run.model, batches, run.model.T)
        if cfg.out:
            write_energy(Path(cfg.out), networks)
            plot_energy(Path(cfg.out) / "energy-bars.png", networks)
    print(emphasised(energy_markdown(networks)))


if __name__ == "__main__":
    run_recipe(main, EnergyReport)
