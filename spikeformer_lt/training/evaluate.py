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

from spikeformer_lt.disk import read_tensors, refuse_link, write_tensors
from spikeformer_lt.errors import CheckpointError, DataError, name_of
from spikeformer_lt.images.loader import Workers, eval_loader
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.layers.inputs import check_values, kept_modes, values_checked

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
    kept: Workers | None = None,
) -> Metrics:
    """Evaluate in eval mode; `kept` as of `eval_loader`.

    Raises:
        DataError: the ranks did not see each sample exactly once, or a sample has values that
            `check_values` refuses.
    """
    device, classes = accelerator.device, data.num_classes
    rank, world = accelerator.process_index, accelerator.num_processes
    how: Any = {"workers": workers, "pin_memory": device.type == "cuda", "kept": kept}
    loader = eval_loader(dataset, batch_size=batch_size, rank=rank, world_size=world, **how)
    hits = torch.zeros(1, dtype=torch.int64, device=device)  # for each t once T is known
    none = torch.zeros(0, dtype=torch.int64, device=device)
    rows = [(none, none, torch.zeros(0, classes, device=device))]  # indices, labels, mean logits
    with kept_modes(model):
        model.eval()
        for images, labels, indices in loader:
            check_values(images)  # here, of every model, and where no device waits for it
            labels = labels.to(device)
            with accelerator.autocast(), values_checked():
                logits = model(images.to(device, non_blocking=True)).float()
            rows.append((indices.to(device), labels, logits.mean(1)))
            steps = torch.arange(1, logits.shape[1] + 1, device=device)
            early = logits.cumsum(1) / steps[None, :, None]
            hits = hits + (early.argmax(2) == labels[:, None]).sum(0)
    index, label, means = (torch.cat(column) for column in zip(*rows, strict=True))
    found = gather_predictions(index, label, means, len(dataset), accelerator)
    hits = accelerator.reduce(hits, "sum") if world > 1 else hits
    label, count = found.label, len(dataset)
    confusion = torch.bincount(label * classes + found.predicted, minlength=classes**2)
    best = found.logits.topk(min(5, classes), dim=1).indices
    return Metrics(
        accuracy=found.accuracy, loss=float(F.cross_entropy(found.logits.double(), label)),
        count=count, correct=int((found.predicted == label).sum()),
        top5=100 * int((best == label[:, None]).sum()) / count,
        accuracy_at_t=tuple(100 * n / count for n in hits.tolist()),
        confusion=confusion.view(classes, classes), predictions=found,
    )  # fmt: skip


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"Metrics({self.accuracy:.2f} % of {self.count:,}, loss {self.loss:.4g})"


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"Predictions({self.accuracy:.2f} % of {len(self.label):,})"

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
        refuse_link(path, CheckpointError)
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

    `index` and `label` are int64 ``[m]``, positions and classes of this rank's samples; `logits`
    are float32 ``[m, K]``; the split has `count` samples. A DataError says that one was lost or
    seen twice.
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
