"""Evaluate a run or a ticket on any split, with its sparsity ledger.

accelerate launch recipes/evaluate.py --run runs/x              # its own data set, test split
accelerate launch recipes/evaluate.py --run runs/x --split val
accelerate launch recipes/evaluate.py --run runs/x --data.name dvs128_gesture --data.root data
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from spikeformer_lt.cli import open_finished
from spikeformer_lt.config import check, check_fields, run_recipe
from spikeformer_lt.disk import write_atomic
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training import EventDataConfig


@dataclass(frozen=True)
class Evaluate:
    """Accuracy, ledger and purity audit of a ticket on disk."""

    run: str = ""
    """A run directory, a ticket folder or an export."""
    split: str = "test"
    """train, val or test."""
    out: str = ""
    """JSON file for the result; predictions go beside it; empty prints only."""
    batch_size: int = 256
    """Images per step."""
    T: int | None = None
    """Time steps, if others than the ticket was trained with."""
    cpu: bool = False
    """Stay on the CPU even where a GPU is present."""
    data: EventDataConfig = field(default_factory=EventDataConfig)

    def __post_init__(self) -> None:
        check_fields(self, split=("train", "val", "test"), batch_size=1)


def main(cfg: Evaluate) -> None:
    """Load, evaluate, print."""
    from accelerate import Accelerator

    from spikeformer_lt.reports import describe, save_predictions
    from spikeformer_lt.training import PREDICTIONS

    check(bool(cfg.run), "run", cfg.run, "a run directory, a ticket folder or an export: --run DIR")
    run = open_finished(cfg.run, cfg, report=False, T=cfg.T)
    model, splits, known = run.model, run.splits, run.ticket.provenance
    if splits.name == known["dataset"] and not run.own_split:
        own = known["split_sha256"][:12]
        print(f"NOTICE: split {splits.split_sha256[:12]} is not the ticket's own ({own}); "
              "its training images may be among these")  # fmt: skip
    accelerator = Accelerator(cpu=cfg.cpu)
    model.to(accelerator.device)
    if known.get("trained") is False:
        accelerator.print(
            "NOTICE: this ticket holds its start weights, to be trained again; "
            "the report of its run has the accuracy of the trained network"
        )
    metrics, ledger = describe(model, splits, cfg.split, accelerator, batch_size=cfg.batch_size)
    accelerator.print(
        f"{splits.name} {cfg.split}: {metrics.accuracy:.2f} % of {metrics.count} "
        f"(top-5 {metrics.top5:.2f} %, loss {metrics.loss:.4f})"
    )
    bits = [name for name in ledger if name.endswith("bits_per_weight")]
    told = {name: ledger[name] for name in ("sparsity", *bits, "macs", "sops", "params")}
    told["sparsity"] = {kind: s for kind, s in told["sparsity"].items() if s is not None}
    for name, value in told.items():
        if value is not None:
            accelerator.print(f"  {name}: {value}")
    if cfg.out and accelerator.is_main_process:
        result = {"accuracy": metrics.accuracy, "count": metrics.count, "loss": metrics.loss}
        text = json.dumps({**result, "split": cfg.split, **ledger}, indent=2)
        write_atomic(cfg.out, f"{text}\n".encode(), ConfigError)
        beside = Path(cfg.out).with_suffix(f".{PREDICTIONS}")
        run_id = str(known.get("run_id", ""))
        save_predictions(beside, metrics, model, splits, cfg.split, run_id)


if __name__ == "__main__":
    run_recipe(main, Evaluate)
