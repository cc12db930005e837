"""Evaluation: every sample exactly once, whatever the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import DataError
from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.training.predictions import Predictions, gather_predictions


@dataclass(frozen=True)
class Metrics:
    """Result of an evaluation; accuracies in percent."""

    accuracy: float
    loss: float
    count: int
    correct: int
    top5: float
    accuracy_at_t: tuple[float, ...]
    """Accuracy from the mean logits of the first 1, 2, ... T steps."""
    confusion: Tensor
    """``[K, K]`` counts, rows are true classes."""
    predictions: Predictions
    """Label and mean logits of each sample."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Any,
    data: Splits,
    accelerator: Any,
    *,
    batch_size: int,
    workers: int = 0,
) -> Metrics:
    """Evaluate `model` in eval mode; its training mode is put back.

    Raises:
        DataError: the ranks together did not see each sample exactly once.
    """
    device, classes = accelerator.device, data.num_classes
    loader = eval_loader(
        dataset,
        batch_size=batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=workers,
    )
    training = {name: m.training for name, m in model.named_modules()}
    model.eval()
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, top-5, count
    at_t: Tensor | None = None
    rows: list[tuple[Tensor, Tensor, Tensor]] = []  # indices, labels, mean logits
    try:
        for images, labels, indices in loader:
            images, labels = images.to(device), labels.to(device)
            with accelerator.autocast():
                logits = model(images)
            logits = logits.float()
            mean = logits.mean(1)
            predicted = mean.argmax(1)
            rows.append((indices, labels, mean))
            confusion.view(-1).index_add_(0, labels * classes + predicted, torch.ones_like(labels))
            loss = F.cross_entropy(mean, labels, reduction="sum")
            best = mean.topk(min(5, classes), dim=1).indices
            top5 = (best == labels[:, None]).any(1).sum()
            sums += torch.stack((loss, top5, torch.tensor(len(labels), device=device))).double()
            steps = torch.arange(1, logits.shape[1] + 1, device=device)
            early = logits.cumsum(1) / steps[None, :, None]
            hits = (early.argmax(2) == labels[:, None]).sum(0)
            at_t = hits if at_t is None else at_t + hits
    finally:
        for name, module in model.named_modules():
            module.training = training[name]
    if at_t is None:
        at_t = torch.zeros(1, dtype=torch.int64, device=device)
        none = torch.zeros(0, dtype=torch.int64, device=device)
        rows = [(none, none, torch.zeros(0, classes, device=device))]
    if accelerator.num_processes > 1:
        confusion, sums, at_t = (
            accelerator.reduce(value, reduction="sum") for value in (confusion, sums, at_t)
        )
    loss_sum, top5_sum, seen = sums.tolist()
    if seen != len(dataset):
        raise DataError(f"evaluated {int(seen)} samples of {len(dataset)}: ranks lost or repeated")
    index, label, means = (torch.cat(column) for column in zip(*rows, strict=True))
    predictions = gather_predictions(index, label, means, len(dataset), accelerator)
    correct = int(confusion.diagonal().sum())
    return Metrics(
        accuracy=100 * correct / seen,
        loss=loss_sum / seen,
        count=int(seen),
        correct=correct,
        top5=100 * top5_sum / seen,
        accuracy_at_t=tuple(100 * h / seen for h in at_t.tolist()),
        confusion=confusion.cpu(),
        predictions=predictions,
    )
