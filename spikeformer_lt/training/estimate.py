"""Memory and time of a training step, measured on a small batch before the run starts."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeformer_lt.rng import isolated_rng


@dataclass(frozen=True)
class Estimate:
    """What a step of the run will need, scaled from a probe batch."""

    saved_mb: float
    """Tensors kept for the backward pass, MB."""
    weights_mb: float
    """Parameters, gradients and two optimizer moments, MB."""
    seconds_per_step: float
    """Forward and backward of one batch."""

    @property
    def total_mb(self) -> float:
        """Sum of what was counted; workspace and the framework itself come on top."""
        return self.saved_mb + self.weights_mb


def estimate_step(model: nn.Module, images: Tensor, batch_size: int) -> Estimate:
    """Measure one forward and backward of a copy of the model.

    Args:
        model: left untouched, BatchNorm buffers and random streams included.
        images: probe batch ``[b, ...]`` with b >= 2.
        batch_size: size to scale to.
    """
    probe = copy.deepcopy(model).train()
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in probe.parameters()}
    scale = batch_size / len(images)
    with isolated_rng(0):
        probe(images).float().mean().backward()  # warm-up: kernels compile here
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            out = probe(images).float().mean()
        out.backward()
        seconds = time.perf_counter() - start
    saved = sum(size for pointer, size in seen.items() if pointer not in weights)
    numel = sum(p.numel() for p in model.parameters())
    return Estimate(saved * scale / 1e6, 4 * 4 * numel / 1e6, seconds * scale)
