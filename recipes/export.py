"""Pack a ticket into a small folder that loads by itself, verified before it appears.

python recipes/export.py --run runs/x --out exported/x                  # float32, bit for bit
python recipes/export.py --run runs/x --out exported/x-bf16 --precision bf16
python recipes/export.py --run runs/x --out exported/x-graphs --graphs pt2,onnx
"""

from dataclasses import dataclass
from pathlib import Path

from spikeformer_lt.cli import outputs
from spikeformer_lt.config import check, check_fields, run_recipe
from spikeformer_lt.errors import check_license

GRAPHS = ("pt2", "onnx", "int8.onnx", "nir")


@dataclass(frozen=True)
class Export:
    """Pack a ticket into a small folder that loads by itself."""

    NEEDS = ("run", "out")
    run: str = ""
    """A run directory, of which the trained network is taken, a ticket folder or an export."""
    out: str = ""
    """New folder to write; or one of an earlier export, with --overwrite."""
    precision: str = "fp32"
    """Of the values that are neither mask nor sign nor gain."""
    graphs: str = ""
    """Graphs beside the folder: pt2, onnx, int8.onnx (binary convolutions in integers), nir."""
    data: str = ""
    """Data set whose preprocess goes along, for a ticket without one (a converted checkpoint)."""
    root: str = "data"
    """Folder of its files."""
    license: str = ""
    """Licence of the weights, in the hub's words, such as mit; the card says if there is none."""
    overwrite: bool = False
    """Replace the export that is there, and graphs that are not as an earlier call wrote them."""

    def __post_init__(self) -> None:
        check_fields(self, precision=("fp32", "fp16", "bf16"))
        names = self.graphs.split(",") if self.graphs else []
        sound = set(names) <= set(GRAPHS) and len(names) == len(set(names))
        check(sound, "graphs", self.graphs, f"some of {', '.join(GRAPHS)}, once, with commas")
        check_license(self.license)


def main(cfg: Export) -> None:
    """Load, pack, verify, print, write."""
    from spikeformer_lt.export import export_run, load_exported, write_graph

    how = {"precision": cfg.precision, "license": cfg.license, "overwrite": cfg.overwrite}
    graphs = [Path(f"{cfg.out.rstrip('/')}.{name}") for name in cfg.graphs.split(",") if name]
    with outputs(graphs[0].parent if graphs else "", cfg.overwrite, *graphs):
        done = export_run(cfg.run, cfg.out, data=cfg.data, root=cfg.root, **how)
        print(f"{done.summary()}\nwrote {cfg.out}")
        for path in graphs:
            print(f"wrote {path}: {write_graph(load_exported(cfg.out), path)}")


if __name__ == "__main__":
    run_recipe(main, Export)
