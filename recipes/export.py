"""Pack a ticket into a small folder that loads by itself, verified before it appears.

python recipes/export.py --run runs/x --out exported/x                  # float32, bit for bit
python recipes/export.py --run runs/x --out exported/x-bf16 --precision bf16
python recipes/export.py --run runs/x --out exported/x-graphs --graphs pt2,onnx
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spikeformer_lt.config import check, run_recipe
from spikeformer_lt.errors import ExportError

REPORTED = ("test_accuracy", "val_accuracy", "test_count", "sparsity", "run_id")
GRAPHS = ("pt2", "onnx", "int8.onnx", "nir")


@dataclass(frozen=True)
class Export:
    """Pack a ticket into a small folder that loads by itself."""

    run: str = ""
    """A run directory, of which the trained network is taken, or a ticket folder."""
    out: str = ""
    """New folder to write; or one of an earlier export, with --overwrite."""
    precision: str = "fp32"
    """Of the values that are neither mask nor sign nor gain: fp32, fp16 or bf16."""
    graphs: str = ""
    """Graphs to write beside the folder, as OUT.pt2, OUT.onnx, OUT.int8.onnx (binary convolutions
    in integers) or OUT.nir: names with commas."""
    overwrite: bool = False
    """Replace the export that is there."""

    def __post_init__(self) -> None:
        allowed = ("fp32", "fp16", "bf16")
        check(self.precision in allowed, "precision", self.precision, ", ".join(allowed))
        odd = [name for name in self.graphs.split(",") if name and name not in GRAPHS]
        check(not odd, "graphs", self.graphs, f"some of {', '.join(GRAPHS)}, with commas")


def main(cfg: Export) -> None:
    """Load, pack, verify, print, write."""
    check(bool(cfg.run), "run", cfg.run, "a run directory or a ticket folder: --run DIR")
    check(bool(cfg.out), "out", cfg.out, "a new folder: --out DIR")

    from spikeformer_lt import Ticket, load_exported
    from spikeformer_lt.disk import parse_json
    from spikeformer_lt.export import export_ticket
    from spikeformer_lt.export.verify import size_table
    from spikeformer_lt.ticket import finished_folder

    folder = Path(cfg.run)
    ticket = Ticket.load(finished_folder(folder))
    if ticket.provenance.get("trained") is False:
        print("NOTICE: this ticket holds its start weights: an untrained network is exported")
    about: dict[str, Any] = {}
    if (folder / "report.json").is_file():
        text = (folder / "report.json").read_text(encoding="utf-8")
        report = parse_json(text, str(folder / "report.json"), ExportError)
        about = {name: report[name] for name in REPORTED if name in report}
    done = export_ticket(
        ticket, cfg.out, precision=cfg.precision, about=about, overwrite=cfg.overwrite
    )
    print(size_table(done.sizes))
    found = done.check
    print(
        f"verified: reloaded logits within {found.reload_gap:.3g}; compact within "
        f"{found.compact_gap_float64:.3g} (float64), {found.compact_gap_float32:.3g} (float32); "
        f"same class {100 * found.same_class:.0f} %"
    )
    print(f"wrote {cfg.out}")
    if cfg.graphs:
        from spikeformer_lt.export.graphs import write_graph

        model = load_exported(cfg.out)
        for name in cfg.graphs.split(","):
            path = Path(f"{cfg.out.rstrip('/')}.{name}")
            print(f"wrote {path}: {write_graph(model, path)}")


if __name__ == "__main__":
    run_recipe(main, Export)
