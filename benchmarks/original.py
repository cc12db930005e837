"""The original formulation of a Spikformer: the same network and weights, computed as published.

What the published code does, written anew: images are repeated T times and every copy is convolved;
maps are [N, C, H, W] with BatchNorm on its own; LIF neurons run step by step under autograd; q k^T
is formed before v; tokens are transposed around every BatchNorm. Its neurons are those of
spikingjelly 0.0.0.0.12; they are used where a folder with it is given
(`pip install --no-deps --target FOLDER spikingjelly==0.0.0.0.12`), and leaner ones written here
elsewhere.

Source: Zhou et al., Spikformer, ICLR 2023, arXiv 2209.15425, section 3.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.layers.kernels.reference import spike
from spikeformer_lt.layers.neuron import LIF


def lif(x: Tensor, neuron: LIF) -> Tensor:
    """Spikes of currents ``[T, ...]``, one step after another."""
    p = neuron.params()
    assert p is not None and p.v_reset == 0 and p.decay_input and p.detach_reset
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        h = v + (current - v) / p.tau
        s = spike(h - p.v_threshold, p.surrogate, p.steepness)
        v = h * (1.0 - s.detach())
        spikes.append(s)
    return torch.stack(spikes)


def published_lif(folder: Path) -> Callable[[Tensor, LIF], Tensor]:
    """The LIF of the spikingjelly in `folder`, which is loaded beside the one that is installed."""
    if not (folder / "spikingjelly" / "clock_driven" / "neuron.py").is_file():
        raise SystemExit(f"{folder}: no spikingjelly 0.0.0.0.12 in this folder")
    mine = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "spikingjelly"}
    for name in mine:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        neurons: Any = importlib.import_module("spikingjelly.clock_driven.neuron")
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.split(".")[0] == "spikingjelly"]:
            del sys.modules[name]
        sys.modules.update(mine)

    def run(x: Tensor, neuron: LIF) -> Tensor:
        p = neuron.params()
        assert p is not None and p.surrogate == "sigmoid" and p.detach_reset and p.decay_input
        surrogate = neurons.surrogate.Sigmoid(p.steepness)
        node = neurons.MultiStepLIFNode(
            p.tau, True, p.v_threshold, p.v_reset, surrogate, True, "torch"
        )
        return node(x)  # type: ignore[no-any-return]

    return run


def batch_norm(maps: Tensor, norm: Any) -> Tensor:
    """BatchNorm of ``[N, C, ...]``, moving the running statistics in training."""
    if norm.training:
        norm.num_batches_tracked.add_(1)
    own = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return F.batch_norm(maps, *own, norm.training, norm.momentum, norm.eps)


class Original(nn.Module):
    """Runs a Spikformer of this package as the published code would.

    Args:
        net: the network; its weights are used, its forward is not.
        run_lif: how neurons run.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.
    """

    def __init__(self, net: Any, run_lif: Callable[[Tensor, LIF], Tensor] = lif) -> None:
        super().__init__()
        self.net, self.run_lif = net, run_lif
        self.spikes: dict[str, Tensor] | None = None  # by the name of the neuron, if asked for

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        T = self.net.T
        frames = x.transpose(0, 1) if x.ndim == 5 else x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
        tokens = self.embed(frames.contiguous())
        for i, block in enumerate(self.net.blocks):
            tokens = tokens + self.attend(f"blocks.{i}.attn", block.attn, tokens)
            hidden = self.linear(f"blocks.{i}.mlp.fc1", block.mlp.fc1, tokens)
            tokens = tokens + self.linear(f"blocks.{i}.mlp.fc2", block.mlp.fc2, hidden)
        logits: Tensor = self.net.head(tokens.mean(2))
        return logits.transpose(0, 1)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens ``[T, B, N, D]`` of frames ``[T, B, C, H, W]``."""
        stem = self.net.conv_pep
        for i, unit in enumerate(stem.stages):
            x = self.convolve(f"conv_pep.stages.{i}", unit, x)
        x = x + self.convolve("conv_pep.rpe", stem.rpe, x)
        return x.flatten(3).transpose(-1, -2)

    def convolve(self, name: str, unit: Any, x: Tensor) -> Tensor:
        """Convolution, BatchNorm, neurons and pool of ``[T, B, C, H, W]``."""
        time = x.shape[:2]
        maps = batch_norm(unit.conv(x.flatten(0, 1)), unit.norm)
        if unit.pool is not None and unit.pool_before_act:
            maps = unit.pool(maps)
        spikes = self.fire(f"{name}.act", unit.act, maps.unflatten(0, time).contiguous())
        if unit.pool is not None and not unit.pool_before_act:
            spikes = unit.pool(spikes.flatten(0, 1)).unflatten(0, time)
        return spikes.contiguous()

    def linear(self, name: str, unit: Any, x: Tensor) -> Tensor:
        """Linear map, BatchNorm over ``[TB, D, N]``, neurons of ``[T, B, N, D]``."""
        rows = unit.linear(x.flatten(0, 1))
        rows = batch_norm(rows.transpose(-1, -2), unit.norm).transpose(-1, -2)
        return self.fire(f"{name}.act", unit.act, rows.unflatten(0, x.shape[:2]).contiguous())

    def attend(self, name: str, attn: Any, x: Tensor) -> Tensor:
        """Spiking self attention of ``[T, B, N, D]``."""
        q, k, v = (
            self.linear(f"{name}.{part}", getattr(attn, part), x)
            .unflatten(-1, (attn.num_heads, -1))
            .transpose(2, 3)
            .contiguous()
            for part in "qkv"
        )
        mixed = ((q @ k.transpose(-2, -1)) * attn.scale) @ v
        mixed = mixed.transpose(2, 3).flatten(-2).contiguous()
        return self.linear(
            f"{name}.proj", attn.proj, self.fire(f"{name}.attn_act", attn.attn_act, mixed)
        )

    def fire(self, name: str, neuron: LIF, current: Tensor) -> Tensor:
        """Spikes of a layer, kept where they are asked for."""
        spikes = self.run_lif(current, neuron)
        if self.spikes is not None:
            self.spikes[name] = spikes.detach()
        return spikes
