"""One self-contained report.html of a run, or of several runs side by side.

python recipes/report.py --runs runs/x                             # into runs/x
python recipes/report.py --runs runs/dense runs/x --out compare/   # a comparison

The page needs no server: pictures are inside it. A CSV for each and the energy lie beside it.
"""

from dataclasses import dataclass, field
from pathlib import Path

from spikeformer_lt.cli import open_finished, outputs
from spikeformer_lt.config import check, check_fields, run_recipe
from spikeformer_lt.training import EventDataConfig


@dataclass(frozen=True)
class Report:
    """Pictures, ledger and energy of finished runs as one HTML page."""

    NEEDS = ("runs",)
    runs: tuple[str, ...] = ()
    """Run directories, ticket folders or exports; more than one makes a comparison."""
    out: str = ""
    """Folder for report.html; empty is the run itself, and required for a comparison."""
    overwrite: bool = False
    """Replace files there that are not as an earlier call wrote them."""
    title: str = "Comparison of tickets"
    """Heading of a comparison."""
    images: int = 256
    """Test inputs that operations, rates and kept patches are measured on."""
    data: EventDataConfig = field(default_factory=EventDataConfig)

    def __post_init__(self) -> None:
        check_fields(self, images=1)
        alone = len(self.runs) < 2 or bool(self.out)
        check(alone, "out", self.out, "a folder for the comparison")


def main(cfg: Report) -> None:
    """Open, draw, write."""
    from spikeformer_lt.reports import write_comparison_page, write_run_page

    runs = [open_finished(path, cfg) for path in cfg.runs]
    out = Path(cfg.out or cfg.runs[0])
    with outputs(out, cfg.overwrite or not cfg.out, "report.html", "plots/*", "energy/energy.*"):
        if len(runs) == 1:
            page = write_run_page(runs[0], out, cfg.images)
        else:
            page = write_comparison_page(runs, out, cfg.title, cfg.images)
    print(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_recipe(main, Report)
