"""Record of one forward for the pictures: spikes, membranes and kept patches of a few inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import DataError
from spikeformer_lt.layers.inputs import kept_modes
from spikeformer_lt.layers.patches import patches_of
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.training.monitor import spiking_layers

MEMBRANES = 6
CONFIDENCES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


@dataclass
class Probe:
    """Record of one batch; spikes and membranes are those of its first sample."""

    inputs: Tensor = field(default_factory=lambda: torch.empty(0))  # as the model saw them
    logits: Tensor = field(default_factory=lambda: torch.empty(0))  # ``[B, T, K]``
    kept: Tensor | None = None  # kept token indices ``[B, K]``; None where no patch is removed
    grid: tuple[int, int] | None = None  # rows and columns of the tokens; None without a stem
    spikes: dict[str, Tensor] = field(default_factory=dict)  # layer -> ``[T, neurons]``, 0 and 1
    membrane: dict[str, tuple[Tensor, Tensor, float]] = field(default_factory=dict)
    """Layer -> membranes and spikes ``[T, n]`` of some neurons, and the threshold."""
    neurons: dict[str, list[int]] = field(default_factory=dict)  # layer -> n neurons of `membrane`


@contextmanager
def recording(model: nn.Module, membranes: Sequence[str] = ()) -> Iterator[Probe]:
    """Record the next forward of a model; the hooks are gone after it.

    `membranes` names the spiking layers whose membranes are recorded; the first layer if empty.
    A name that is no spiking layer of the model raises DataError.
    """
    found, layers = Probe(), spiking_layers(model)
    wanted = list(membranes) or list(layers)[:1]
    for name in wanted:
        if name not in layers:
            raise DataError(f"{name} is no spiking layer; they are {', '.join(layers)}")
    stem, patches = stem_of(model), patches_of(model)
    open_hooks = ExitStack()

    def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.inputs = inputs[0]
        if stem is not None:
            height, width = found.inputs.shape[-2:]
            found.grid = height // stem.stride, width // stem.stride

    def select(module: nn.Module, inputs: object, output: tuple[Tensor, Any]) -> None:
        found.kept = output[0].clone()

    def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
        found.logits = output
        open_hooks.close()

    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(stop)]
    if patches is not None:
        hooks.append(patches.register_forward_hook(select))
    for name, layer in layers.items():
        hooks.append(layer.register_forward_hook(partial(_record, found, name, name in wanted)))
        if name in wanted and hasattr(layer, "store_v_seq"):
            open_hooks.callback(setattr, layer, "store_v_seq", layer.store_v_seq)
            layer.store_v_seq = True  # type: ignore[assignment]
    for hook in hooks:
        open_hooks.callback(hook.remove)
    with open_hooks:
        yield found


@torch.no_grad()
def run_probe(model: nn.Module, inputs: Tensor, membranes: Sequence[str] = ()) -> Probe:
    """Run a batch in eval mode and record it; arguments as `recording`."""
    with kept_modes(model), recording(model.eval(), membranes) as found:
        model(inputs)
    return found


def _record(
    found: Probe, name: str, membrane: bool, module: nn.Module, inputs: object, output: Any
) -> None:
    batch, output = len(found.inputs), output[0] if isinstance(output, tuple) else output
    output = output[None] if getattr(module, "stepwise", False) else output  # one call a step
    before = [found.spikes[name]] if name in found.spikes else []
    spikes = torch.cat([*before, _first_sample(output.detach(), batch).cpu()])
    found.spikes[name] = spikes
    v = getattr(module, "v_seq", None)
    if membrane and isinstance(v, Tensor):
        trace = _first_sample(v.detach(), batch).cpu()
        found.neurons[name] = chosen = busy_neurons(trace, spikes)
        threshold = float(module.v_threshold)  # type: ignore[arg-type]
        found.membrane[name] = (trace[:, chosen], spikes[:, chosen], threshold)


def _first_sample(x: Tensor, batch: int) -> Tensor:
    """``[T, B, ...]`` (or time and batch folded) -> ``[T, neurons]`` of sample 0."""
    if x.shape[1] != batch:
        x = x.unflatten(0, (-1, batch))
    return x[:, 0].flatten(1)


def busy_neurons(trace: Tensor, spikes: Tensor, count: int = MEMBRANES) -> list[int]:
    """Choose at most `count` of ``[T, neurons]``: half that fire, then those that move most.

    No two membranes are alike within a twentieth of the range.
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


def keep_frequency(kept: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """How often each token is kept over batches of indices ``[B, K]``, ``[rows, columns]``."""
    index = torch.cat(list(kept))
    counts = torch.bincount(index.flatten(), minlength=grid[0] * grid[1])
    return (counts.double() / len(index)).view(grid)


def early_exit(
    logits: Tensor, labels: Tensor, confidences: Sequence[float] = CONFIDENCES
) -> list[tuple[float, float, float]]:
    """Stop at the first step whose mean logits are sure enough, or at the last.

    Args:
        logits, labels: ``[B, T, K]`` and ``[B]``.
        confidences: least softmax probabilities of the best class.

    Returns:
        For each: confidence, mean steps used, accuracy (%).
    """
    mean = logits.cumsum(1) / torch.arange(1, logits.shape[1] + 1)[None, :, None]
    best, answer = mean.softmax(2).max(2)
    right, found = answer == labels[:, None], []
    for confidence in confidences:
        sure = best >= confidence
        sure[:, -1] = True
        at = sure.int().argmax(1)
        accuracy = 100 * float(right.gather(1, at[:, None]).double().mean())
        found.append((confidence, float((at + 1).double().mean()), accuracy))
    return found
