"""Evaluation: every sample exactly once, whatever the number of ranks; predictions are kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.disk import read_tensors, write_tensors
from spikeformer_lt.errors import CheckpointError, DataError, name_of
from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.images.splits import Splits

PREDICTIONS = "predictions.safetensors"
_COLUMNS = {"index": 1, "label": 1, "logits": 2, "predicted": 1}  # name -> dimensions

log = logging.getLogger(__name__)


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
    """Evaluate in eval mode; a DataError if the ranks did not see each sample exactly once."""
    device, classes = accelerator.device, data.num_classes
    rank, world = accelerator.process_index, accelerator.num_processes
    loader = eval_loader(
        dataset, batch_size=batch_size, rank=rank, world_size=world, workers=workers
    )
    training = [module for module in model.modules() if module.training]
    model.eval()
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, top-5, count
    at_t = torch.zeros(1, dtype=torch.int64, device=device)  # hits, for each t once T is known
    none = torch.zeros(0, dtype=torch.int64, device=device)
    rows = [(none, none, torch.zeros(0, classes, device=device))]  # indices, labels, mean logits
    try:
        for images, labels, indices in loader:
            images, labels = images.to(device), labels.to(device)
            with accelerator.autocast():
                logits = model(images)
            logits = logits.float()
            mean = logits.mean(1)
            rows.append((indices.to(device), labels, mean))
            cells = labels * classes + mean.argmax(1)
            confusion.view(-1).index_add_(0, cells, torch.ones_like(labels))
            loss = F.cross_entropy(mean, labels, reduction="sum")
            best = mean.topk(min(5, classes), dim=1).indices
            top5 = (best == labels[:, None]).any(1).sum()
            sums += torch.stack((loss, top5, torch.tensor(len(labels), device=device))).double()
            steps = torch.arange(1, logits.shape[1] + 1, device=device)
            early = logits.cumsum(1) / steps[None, :, None]
            at_t = at_t + (early.argmax(2) == labels[:, None]).sum(0)
    finally:
        for module in training:
            module.training = True
    if world > 1:
        confusion, sums, at_t = (accelerator.reduce(v, "sum") for v in (confusion, sums, at_t))
    loss_sum, top5_sum, seen = sums.tolist()
    if seen != len(dataset):
        raise DataError(f"evaluated {int(seen)} samples of {len(dataset)}: ranks lost or repeated")
    index, label, means = (torch.cat(column) for column in zip(*rows, strict=True))
    correct = int(confusion.diagonal().sum())
    return Metrics(
        accuracy=100 * correct / seen,
        loss=loss_sum / seen,
        count=int(seen),
        correct=correct,
        top5=100 * top5_sum / seen,
        accuracy_at_t=tuple(100 * h / seen for h in at_t.tolist()),
        confusion=confusion.cpu(),
        predictions=gather_predictions(index, label, means, len(dataset), accelerator),
    )


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


@dataclass(frozen=True)
class Predictions:
    """Answers of a network to the n samples of a split, in the order of the data set."""

    index: Tensor
    """int64 ``[n]``: position in the split, 0 to n-1."""
    label: Tensor
    """int64 ``[n]``: true class."""
    logits: Tensor
    """float32 ``[n, K]``: mean of the logits over T."""
    predicted: Tensor
    """int64 ``[n]``: class of the largest logit."""

    @property
    def accuracy(self) -> float:
        """Accuracy in percent."""
        return 100 * int((self.predicted == self.label).sum()) / len(self.label)

    def save(self, path: str | Path, facts: Mapping[str, Any]) -> None:
        """Write the predictions and JSON `facts`, ``weights_sha256`` among them.

        An older file that other weights gave is kept under their hash; a CheckpointError for a file
        that holds no predictions.
        """
        path = Path(path)
        if path.exists():
            other = str(read_predictions(path)[1].get("weights_sha256"))
            if other != facts["weights_sha256"]:
                kept = path.with_name(f"{path.stem}-{other[:12]}{path.suffix}")
                path.rename(kept)
                log.warning("predictions of other weights are kept as %s", kept)
        tensors = {name: getattr(self, name) for name in _COLUMNS}
        write_tensors(path, tensors, {**facts, "count": len(self.index)})


def read_predictions(path: str | Path) -> tuple[Predictions, dict[str, Any]]:
    """Read the predictions and facts of `Predictions.save`, or raise a CheckpointError."""
    tensors, facts = read_tensors(path)
    shapes = {name: tensor.ndim for name, tensor in tensors.items()}
    if shapes != _COLUMNS or len({len(tensor) for tensor in tensors.values()}) != 1:
        raise CheckpointError(f"{name_of(path)}: holds no predictions: {sorted(tensors)}")
    return Predictions(**tensors), facts


def gather_predictions(
    index: Tensor, label: Tensor, logits: Tensor, count: int, accelerator: Any
) -> Predictions:
    """Put the samples of all ranks in order; the result is on the CPU, the same on every rank.

    Args:
        index, label: int64 ``[m]``, positions in the split and classes of this rank's samples.
        logits: float32 ``[m, K]``.
        count: samples of the split, n.
        accelerator: of all ranks.

    Raises:
        DataError: a sample was lost or seen twice.
    """
    # Each row is one rank's value plus zeros, so that a sum over ranks changes no bit.
    seen, labels = logits.new_zeros(2, count, dtype=torch.int64)
    index = index.to(logits.device)
    seen.index_add_(0, index, torch.ones_like(index))
    labels.index_add_(0, index, label)
    table = logits.new_zeros(count, logits.shape[1]).index_add_(0, index, logits)
    if accelerator.num_processes > 1:
        seen, labels, table = (accelerator.reduce(v, "sum") for v in (seen, labels, table))
    wrong = torch.nonzero(seen != 1).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise DataError(
            f"sample {first} was evaluated {int(seen[first])} times and {len(wrong) - 1} others "
            "not once: ranks lost or repeated"
        )
    table = table.cpu()
    return Predictions(torch.arange(count), labels.cpu(), table, table.argmax(1))
