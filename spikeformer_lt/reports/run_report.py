"""The report of a run: test once, count what is left, write it down."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.reports.ledger import build_ledger
from spikeformer_lt.reports.plots import plot_training
from spikeformer_lt.reports.purity import audit
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.training.environment import describe_environment
from spikeformer_lt.training.evaluation import Metrics, evaluate
from spikeformer_lt.training.experiment import Experiment
from spikeformer_lt.training.predictions import PREDICTIONS
from spikeformer_lt.training.ranks import digest

log = logging.getLogger(__name__)
LEDGER_IMAGES = 256
"""Test images that firing rates, SOPs and the purity audit are measured on."""


def describe(
    model: nn.Module, data: Splits, split: str, accelerator: Any, batch_size: int = 256
) -> tuple[Metrics, dict[str, Any]]:
    """Evaluate one split and build the ledger on its first images."""
    dataset = getattr(data, split)
    metrics = evaluate(model, dataset, data, accelerator, batch_size=batch_size)
    loader = eval_loader(dataset, min(64, len(dataset)))
    some = islice(loader, max(1, LEDGER_IMAGES // 64))
    batches = [images.to(accelerator.device) for images, _, _ in some]
    model.eval()
    return metrics, {**build_ledger(model, batches), "purity": audit(model, batches[0])}


def save_predictions(
    path: str | Path, metrics: Metrics, model: nn.Module, data: Splits, split: str, run_id: str
) -> None:
    """Save the predictions of an evaluation with the data, split, run and weights they are of.

    Raises:
        CheckpointError: the file in the way holds no predictions, or the disk refuses.
    """
    classes = getattr(getattr(data, split), "classes", None)
    facts = {
        "dataset": data.name,
        "split": split,
        "split_sha256": data.split_sha256,
        "run_id": run_id,
        "weights_sha256": digest(model.state_dict()),
        "classes": list(classes) if classes else None,
    }
    metrics.predictions.save(path, facts)


def write_report(experiment: Experiment, model: nn.Module, ticket: Ticket | None) -> dict[str, Any]:
    """Evaluate the finished network on the test set, once; write predictions and ``report.json``.

    The report holds what design and papers ask for: accuracies, sparsities apart, bits per
    ConvPEP weight, firing rates, MACs, SOPs, the split's hash, versions and every choice made.
    Where the ticket holds start weights, the network trained from it goes into ``trained``.
    """
    trainer = experiment.trainer
    metrics, ledger = describe(model, experiment.data, "test", trainer.accelerator)
    phases = ticket.provenance.get("phases", []) if ticket else []
    report: dict[str, Any] = {
        "run_id": experiment.run.run_id,
        "seed": experiment.cfg.train.seed,
        "dataset": experiment.data.name,
        "split_sha256": experiment.data.split_sha256,
        "test_accuracy": metrics.accuracy,
        "test_count": metrics.count,
        "test_loss": metrics.loss,
        "top5": metrics.top5,
        "accuracy_at_t": list(metrics.accuracy_at_t),
        "confusion": metrics.confusion.tolist(),
        "val_accuracy": phases[-1]["val_accuracy"] if phases else None,
        "best_on_test": phases[-1].get("best_on_test") if phases else None,
        "seconds": sum(phase["seconds"] for phase in phases),
        "choices": ticket.provenance.get("config", {}) if ticket else {},
        **ledger,
        "ticket": _about(ticket) if ticket else {},
        "mask_sha256": ticket.mask.sha256 if ticket else None,
        "versions": describe_environment()["versions"],
    }
    if trainer.main:
        if ticket is not None and ticket.provenance.get("trained") is False:
            known = {**ticket.provenance, "trained": True}
            trained = Ticket.of(model, ticket.mask, known)
            trained.save(experiment.run.path / "trained", overwrite=True)
        run_id, file = experiment.run.run_id, experiment.run.path / PREDICTIONS
        save_predictions(file, metrics, model, experiment.data, "test", run_id)
        experiment.run.write_report(report)
        plot_training(experiment.run.path / "summary.csv", experiment.run.path / "plots")
        log.info("test %.2f %% of %d images", metrics.accuracy, metrics.count)
        shares = {k: round(v, 4) for k, v in report["sparsity"].items() if v is not None}
        log.info("sparsity %s", shares)
        if report["dead_layers"]:
            log.warning("no energy headline: %s", report["energy_note"])
        log.info("report: %s", experiment.run.path / "report.json")
    return report


def _about(ticket: Ticket) -> dict[str, Any]:
    """What a ticket says of its search: names, sparsities, cost."""
    known = ticket.provenance
    names = ("search", "trained", "prunable_sparsity", "total_sparsity", "search_seconds")
    found = {name: known.get(name) for name in names}
    if "ledger" in known:
        found["ledger"] = known["ledger"]
    steps = known.get("early_time", {}).get("T_early")
    return found if steps is None else {**found, "T_search": steps}
