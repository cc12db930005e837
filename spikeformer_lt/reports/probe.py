"""What a network does on a few inputs: kept patches, spikes, membranes; the pictures' raw data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import DataError
from spikeformer_lt.layers.patches import patches_of
from spikeformer_lt.training.monitor import spiking_layers

MEMBRANES = 6


@dataclass
class Probe:
    """Of one batch; spikes and membranes are those of its first sample."""

    inputs: Tensor
    """``[B, C, H, W]`` images or ``[B, T, C, H, W]`` frames, as the model saw them."""
    logits: Tensor
    """``[B, T, K]``."""
    kept: Tensor | None
    """Kept token indices ``[B, K]``; None where no patch is removed."""
    grid: tuple[int, int] | None
    """Rows and columns of the tokens; None for a network without a ConvPEP."""
    spikes: dict[str, Tensor] = field(default_factory=dict)
    """Layer -> ``[T, neurons]``, values 0 and 1."""
    membrane: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    """Layer -> membranes and spikes ``[T, n]`` of some neurons, and the threshold."""
    neurons: dict[str, list[int]] = field(default_factory=dict)
    """Layer -> the n neurons of `membrane`, by their place."""


@torch.no_grad()
def run_probe(model: Any, inputs: Tensor, membranes: Sequence[str] = ()) -> Probe:
    """Run a batch in eval mode and keep what the pictures show.

    Args:
        model: a transformer with ``conv_pep``, ``patch`` and ``image_size``, or any other network.
        inputs: ``[B, C, H, W]`` or ``[B, T, C, H, W]``.
        membranes: spiking layers whose membranes are wanted; empty takes the first one.

    Raises:
        DataError: a name that is no spiking layer of the model.
    """
    layers = spiking_layers(model)
    wanted = list(membranes) or list(layers)[:1]
    for name in wanted:
        if name not in layers:
            raise DataError(f"{name} is no spiking layer; they are {', '.join(layers)}")
    found = Probe(inputs, torch.empty(0), None, _grid(model))
    training = model.training
    model.eval()
    kept: list[Tensor] = []
    with _recorded(found, layers, wanted, len(inputs)), _selections(model, kept):
        found.logits = model(inputs)
    model.train(training)
    found.kept = kept[-1] if kept else None
    return found


def _grid(model: Any) -> tuple[int, int] | None:
    if getattr(model, "conv_pep", None) is None:
        return None
    stride = model.conv_pep.stride
    return model.image_size[0] // stride, model.image_size[1] // stride


@contextmanager
def _selections(model: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    """Append the indices of the kept tokens, [B, K], of each forward inside."""
    patch = patches_of(model)
    if patch is None:
        yield
        return
    with patch.register_forward_hook(lambda module, args, out: kept.append(out[0].clone())):
        yield


@contextmanager
def _recorded(
    found: Probe, layers: dict[str, nn.Module], wanted: Sequence[str], batch: int
) -> Iterator[None]:
    handles, before = [], {}
    for name, module in layers.items():
        handles.append(module.register_forward_hook(_hook(found, name, name in wanted, batch)))
        if name in wanted and hasattr(module, "store_v_seq"):
            before[name] = module.store_v_seq
            module.store_v_seq = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, value in before.items():
            layers[name].store_v_seq = value


def busy_neurons(trace: Tensor, spikes: Tensor, count: int = MEMBRANES) -> list[int]:
    """Neurons worth a look: half that fire, then those that move most; none like another.

    Args:
        trace: membranes ``[T, neurons]``; two are alike within a twentieth of its range.
        spikes: the same shape.
        count: how many at most.
    """
    moving = trace.std(0, unbiased=False).sort(descending=True, stable=True).indices
    fires = spikes.bool().any(0)[moving]
    grid = max(float(trace.max() - trace.min()) / 20, 1e-12)
    looks = (trace / grid).round().T.tolist()
    chosen: dict[tuple[float, ...], int] = {}
    for limit, order in ((count - count // 2, moving[fires]), (count, moving[~fires]),
                         (count, moving[fires])):  # fmt: skip
        for neuron in order.tolist():
            if len(chosen) < limit:
                chosen.setdefault(tuple(looks[neuron]), neuron)
    return list(chosen.values())


def _first_sample(x: Tensor, batch: int) -> Tensor:
    """``[T, B, ...]`` (or time and batch folded) -> ``[T, neurons]`` of sample 0."""
    if x.shape[1] != batch:
        x = x.unflatten(0, (-1, batch))
    return x[:, 0].flatten(1)


def _hook(found: Probe, name: str, membrane: bool, batch: int) -> Any:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        spikes = _first_sample(output.detach(), batch)
        found.spikes[name] = spikes.cpu()
        v = getattr(module, "v_seq", None)
        if membrane and isinstance(v, Tensor):
            threshold = float(module.v_threshold)  # type: ignore[arg-type]
            trace = _first_sample(v.detach(), batch).cpu()
            found.neurons[name] = chosen = busy_neurons(trace, spikes.cpu())
            found.membrane[name] = (trace[:, chosen], spikes[:, chosen].cpu(), threshold)

    return hook


@torch.no_grad()
def keep_frequency(model: Any, batches: Sequence[Tensor]) -> Tensor | None:
    """How often each token is kept over a set, ``[rows, columns]`` in [0, 1]; None without level 1.

    Its mean is exactly the kept fraction.
    """
    grid = _grid(model)
    if grid is None or getattr(model, "patch", None) is None:
        return None
    rows, columns = grid
    counts, seen = torch.zeros(rows * columns, dtype=torch.float64), 0
    model.eval()
    for inputs in batches:
        kept: list[Tensor] = []
        with _selections(model, kept):
            model(inputs)
        index = kept[-1].cpu()
        counts += torch.bincount(index.flatten(), minlength=rows * columns).double()
        seen += len(index)
    return (counts / seen).view(rows, columns)
