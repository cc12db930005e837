"""Compare MultiSp variants over seeds: independent, resumable runs, one table with mean and spread.

python recipes/multisp_compare.py --suite demo --out runs/demo                 # 3 runs, minutes
python recipes/multisp_compare.py --suite ablation --seeds 0 1 2 --jobs 2   # each level, controls
python recipes/multisp_compare.py --suite curves --seeds 0 1 2 --jobs 2     # where it breaks
python recipes/multisp_compare.py --recipe multisp_dvs128 --data moving_digits --seeds 0 1 2

A comparison that was killed goes on where it stopped: finished runs are kept, the others resume.
"""

from __future__ import annotations

from dataclasses import dataclass

from spikeformer_lt.cli import Comparison, compare
from spikeformer_lt.config import check_fields, run_recipe

W, P, A = "--multisp.weights.", "--multisp.patches.", "--multisp.activation."
RECIPES = ("multisp_cifar", "multisp_dvs128", "multisp_cifar10_dvs")
NO_WEIGHTS, NO_PATCHES = f"{W}method off", f"{P}sparsity 0"
DENSE = f"{NO_WEIGHTS} {NO_PATCHES}"
HARD = f"{W}sparsity 0.95 {P}sparsity 0.65"
SUITES: dict[str, dict[str, str]] = {
    "demo": {
        "dense": DENSE,
        "MultiSp": "",
        "random control": f"{W}method random {P}score random",
    },
    "ablation": {
        "dense": DENSE,
        "level 1 only (patches)": NO_WEIGHTS,
        "level 2 only (weights)": NO_PATCHES,
        "level 3 only: heaviside": f"{DENSE} {A}kind heaviside",
        "level 3 only: sign": f"{DENSE} {A}kind sign",
        "level 3 only: relu (reference)": f"{DENSE} {A}kind relu",
        "all levels (default)": "",
        "all levels, heaviside": f"{A}kind heaviside",
        "all levels, sign": f"{A}kind sign",
        "all levels, iand residual": f"{A}residual iand",
        "all levels, random patches": f"{P}score random",
        "all levels, random mask": f"{W}method random",
        "sequential": "--multisp.schedule sequential",
        "reverse": "--multisp.schedule reverse",
        "literal Algorithm 1": "--multisp.preset literal",
    },
    "parts": {
        "latent (default)": HARD,
        "frozen scores": f"{HARD} {W}method scores",
        "scores over latent": f"{HARD} {W}method both",
        "annealed scores over latent": f"{HARD} {W}method both {W}anneal 4",
        "magnitude, fixed": f"{HARD} {W}method magnitude",
        "per-filter gains": f"{HARD} {W}gain filter",
        "global budget": f"{HARD} {W}scope global {W}floor 0.02",
        "from dense weights": f"{HARD} --multisp.dense-epochs 12",
        "from dense, distilled": f"{HARD} --multisp.dense-epochs 12 --multisp.distill 0.5",
    },
    "curves": {
        "dense": DENSE,
        **{f"weights {s}": f"{W}sparsity {s}" for s in (0.5, 0.8, 0.9, 0.95, 0.98)},
        **{f"random mask {s}": f"{W}sparsity {s} {W}method random" for s in (0.5, 0.9, 0.95)},
        **{f"patches {s}": f"{P}sparsity {s}" for s in (0.314, 0.5, 0.65, 0.8)},
        **{f"random patches {s}": f"{P}sparsity {s} {P}score random" for s in (0.314, 0.65, 0.8)},
    },
}


@dataclass(frozen=True)
class MultiSpCompare(Comparison):
    """Run a suite of MultiSp variants over seeds and write one table."""

    recipe: str = "multisp_cifar"
    """What each run is: multisp_cifar, multisp_dvs128 or multisp_cifar10_dvs."""
    suite: str = "demo"
    """demo, ablation, parts or curves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, recipe=RECIPES, suite=tuple(SUITES))


def main(cfg: MultiSpCompare) -> None:
    """Run what is not finished, then write table, CSV and curves."""

    def folder(variant: str, seed: int) -> str:
        return f"{variant.replace(' ', '_').replace(':', '')}-{seed}"

    rows = {name: f"{cfg.recipe}.py {options}" for name, options in SUITES[cfg.suite].items()}
    compare(cfg, rows, folder, f"MultiSp: {cfg.suite} on {cfg.data}")


if __name__ == "__main__":
    run_recipe(main, MultiSpCompare)
