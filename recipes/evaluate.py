"""Evaluate a run or a ticket on any split, with its sparsity ledger.

accelerate launch recipes/evaluate.py --run runs/x              # its own data set, test split
accelerate launch recipes/evaluate.py --run runs/x --split val
accelerate launch recipes/evaluate.py --run runs/x --data.name dvs128_gesture --data.root data
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import evaluate_finished
from spikeformer_lt.config import check_fields, run_recipe
from spikeformer_lt.training import EventDataConfig


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, ledger and purity audit of a ticket on disk."""

    NEEDS = ("run",)
    run: str = ""
    """A run directory, a ticket folder or an export."""
    split: str = "test"
    """train, val or test."""
    out: str = ""
    """JSON file for the result and the confusion matrix, a row a true class; predictions go beside
    it; empty prints only."""
    overwrite: bool = False
    """Replace files there that are not as an earlier call wrote them."""
    batch_size: int = 256
    """Images per step."""
    T: int | None = None
    """Time steps; None is those of the training."""
    again: bool = False
    """Evaluate even where predictions of these weights and samples are saved."""
    cpu: bool = False
    """Stay on the CPU even where a GPU is present."""
    data: EventDataConfig = field(default_factory=EventDataConfig)

    def __post_init__(self) -> None:
        check_fields(self, split=("train", "val", "test"), batch_size=1)


def main(cfg: Evaluate) -> None:
    """Load, evaluate, print."""
    from accelerate import Accelerator

    from spikeformer_lt.training import process_group

    evaluate_finished(cfg, Accelerator(cpu=cfg.cpu, kwargs_handlers=[process_group()]))


if __name__ == "__main__":
    run_recipe(main, Evaluate)
