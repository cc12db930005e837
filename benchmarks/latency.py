"""Latency of a compact 4-384 at batch 1, and the share of it that Python takes at most.

python benchmarks/latency.py
python benchmarks/latency.py --sparsity 0.9 --activation lif --threads 2

Milliseconds are medians of plain calls and of replays of `graphed`, in turn. The share is
cProfile's own time in Python's functions, kernels and operators of torch left out; profiling makes
Python slower, so the true share is less.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import torch
from multisp_step import settle
from torch import nn

from spikeformer_lt.export.inference import CompactModel, compact
from spikeformer_lt.layers.units import ConvUnit, LinearUnit

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def network(activation: str, sparsity: float, name: str = "spikformer_cifar") -> CompactModel:
    """A compact network that fires; its layers behind the first have random masks."""
    torch.manual_seed(0)
    options: Any = {"num_classes": 10, "T": 4, "activation": activation}
    model = spikeformer_lt.create_model(name, **options)
    units = [m for m in model.modules() if isinstance(m, ConvUnit | LinearUnit)]
    with torch.no_grad():
        for unit in units[1:]:
            unit.synapse.weight.mul_(torch.rand(unit.synapse.weight.shape) >= sparsity)
            nn.init.constant_(unit.norm.bias, 0.35)
    settle(model, torch.randn(4, 3, 32, 32))
    return compact(model.eval())


def python_share(net: Any, x: torch.Tensor, rounds: int) -> tuple[float, float]:
    """Share of the time in functions of Python, and their calls, for a forward."""
    from numba.core.dispatcher import Dispatcher

    from spikeformer_lt.layers.kernels import bits, lif, matmul, sparse, winograd

    rooms = (bits, lif, matmul, sparse, winograd)
    kernels = {n for room in rooms for n, v in vars(room).items() if isinstance(v, Dispatcher)}
    profile = cProfile.Profile()
    profile.runcall(lambda: [net(x) for _ in range(rounds)])
    found: Any = pstats.Stats(profile)
    own = [
        row for (file, _, name), row in found.stats.items() if file != "~" and name not in kernels
    ]
    return sum(row[2] for row in own) / found.total_tt, sum(row[1] for row in own) / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spikformer_cifar", help="of 32x32 RGB images")
    parser.add_argument("--activation", default="heaviside")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: busy machines")
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    net, x = network(args.activation, args.sparsity, args.model), torch.randn(1, 3, 32, 32)
    ways: dict[str, Any] = {"called": net, "replayed": net.graphed(x)}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds + 3):
        for name, way in ways.items():
            begin = CLOCKS[args.clock]()
            way(x)
            took[name].append(CLOCKS[args.clock]() - begin)
    print(f"{net.describe()}; torch {torch.__version__}, {args.threads} threads")
    for name, way in ways.items():
        share, calls = python_share(way, x, args.rounds)
        ms = 1e3 * statistics.median(took[name][3:])
        print(f"{name}: {ms:.2f} ms, {calls:.0f} calls, {share:.1%} at most")


if __name__ == "__main__":
    main()
