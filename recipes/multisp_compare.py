"""Compare MultiSp variants over seeds: independent, resumable runs, one table with mean and spread.

python recipes/multisp_compare.py --suite demo --out runs/demo                 # 3 runs, minutes
python recipes/multisp_compare.py --suite ablation --seeds 0 1 2 --jobs 2   # each level, controls
python recipes/multisp_compare.py --suite curves --seeds 0 1 2 --jobs 2     # where it breaks
python recipes/multisp_compare.py --suite families --options="--model.name qkformer_digits"
python recipes/multisp_compare.py --recipe multisp_dvs128 --data moving_digits --seeds 0 1 2
python recipes/multisp_compare.py --recipe multisp_dvs128 --data moving_gestures --suite time
"""

from dataclasses import dataclass

from spikeformer_lt.cli import MULTISP_SUITES, Comparison, compare
from spikeformer_lt.config import check_fields, run_recipe

RECIPES = {"multisp_cifar": 300, "multisp_dvs128": 202, "multisp_cifar10_dvs": 106}  # epochs


@dataclass(frozen=True)
class MultiSpCompare(Comparison):
    """Run a suite of MultiSp variants over seeds and write one table."""

    recipe: str = "multisp_cifar"
    """What each run is: multisp_cifar, multisp_dvs128 or multisp_cifar10_dvs."""
    suite: str = "demo"
    """demo, ablation, parts, families, halting, time (of recordings) or curves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, recipe=tuple(RECIPES), suite=tuple(MULTISP_SUITES))


def main(cfg: MultiSpCompare) -> None:
    """Run what is not finished, then write table, CSV and curves."""
    begin, suite = f"{cfg.recipe}.py --multisp.epochs {{e}}", MULTISP_SUITES[cfg.suite]
    rows = {name: f"{begin} {options}" for name, options in suite.items()}
    compare(cfg, rows, f"MultiSp: {cfg.suite} on {cfg.data}", published=RECIPES[cfg.recipe])


if __name__ == "__main__":
    run_recipe(main, MultiSpCompare)
