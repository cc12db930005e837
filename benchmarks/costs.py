"""Calibrate the costs that choose lists of kept weights (`dispatch.Costs`) on this processor.

python benchmarks/costs.py --clock cpu

Times are of one thread, for 256 columns: medians over rounds of products of several sizes and
densities, to which the costs of an entry, an output and an input are fitted (least squares of
relative errors, none negative). What is fitted is printed beside what was measured.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import numpy as np
import sparsity_clock
import torch
from scipy.optimize import nnls

from spikeformer_lt.export.synapses import FoldedLinear
from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import maps, simd, sparse, winograd
from spikeformer_lt.layers.kernels.bits import Bits, Neurons
from spikeformer_lt.layers.kernels.lists import Lists
from spikeformer_lt.runtime import keep_heap

SIZES = (128, 128), (128, 512), (512, 128), (384, 384), (384, 1536), (1536, 384)
MAPS = (32, 64, 32), (48, 96, 32), (96, 192, 16), (192, 384, 16), (384, 384, 8)
DENSITIES = 0.5, 0.2, 0.1, 0.05
ROWS, T, RATE = 4096, 4, 0.17
PARTS = "fused", "forward", "weights", "numbers", "maps"


def ways(wide: int, made: int, density: float) -> dict[str, Any]:
    """What is timed for a linear map of ROWS rows."""
    torch.manual_seed(0)
    x = (torch.rand(T, 1, ROWS // T, wide) < RATE).float()
    kept = torch.rand(made, wide) < density
    weight, bias, grad = torch.randn(made, wide) * kept, torch.zeros(made), torch.randn(ROWS, made)
    neurons = Neurons.of(NeuronConfig())
    fused, lists = sparse.Product.of(weight, bias, neurons), Lists.of(kept)
    turned, bits = lists.turned(), Bits.of(x)
    flat = x.view(1, ROWS, wide)
    dense = FoldedLinear(weight, bias)
    return {
        "dense": partial(dense, flat),
        "fused": partial(fused, bits, T),
        "forward": lambda: sparse._multiply(Bits.of(flat), lists, weight, bias),
        "weights": partial(sparse.weights_back, Bits.of(flat), lists, grad[None]),
        "numbers": partial(sparse._multiply, grad[None], turned, weight, None),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=tuple(sparsity_clock.CLOCKS), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_heap()
    print(f"{simd.PROCESSOR}, torch {torch.__version__}, {spikeformer_lt.__version__}; ns")
    per = 1e6 * 256 / ROWS
    seen: dict[str, list[tuple[float, ...]]] = {part: [] for part in PARTS}
    dense = []
    with torch.no_grad():
        for wide, made in SIZES:
            for density in DENSITIES:
                took = sparsity_clock.timed(ways(wide, made, density), args.rounds, args.clock)
                size = wide * made
                dense.append(took["dense"] * per / size)
                for part in PARTS[:-1]:
                    seen[part].append((size * density, made, wide, took[part] * per))
        convolved = []
        for wide, made, side in MAPS:
            grad = torch.rand(4, 8, side, side, made)
            weight, tile = torch.randn(made, wide, 3, 3), maps.Tile.of(grad.shape)
            assert tile is not None
            per = 1e6 * 256 / (32 * side * side)
            found = {"winograd": partial(winograd.convolve, grad, weight, True)}
            for density in DENSITIES:
                kept = Lists.of(torch.rand(weight.shape) < density)
                lists = maps.by_inputs(kept, *tile.places)
                found[f"{density}"] = partial(maps.inputs_back, grad, tile, lists, weight)
            took = sparsity_clock.timed(found, args.rounds, args.clock)
            convolved.append(took["winograd"] * per / weight.numel())
            for density in DENSITIES:
                share = weight.numel() * density
                seen["maps"].append((share, made, wide, took[f"{density}"] * per))
    print(f"dense {statistics.median(dense):.2f} ({min(dense):.2f} to {max(dense):.2f})")
    print(
        f"winograd {statistics.median(convolved):.2f} "
        f"({min(convolved):.2f} to {max(convolved):.2f})"
    )
    for part, rows in seen.items():
        table = np.array(rows)
        costs, _ = nnls(table[:, :3] / table[:, 3:], np.ones(len(table)))
        off = table[:, :3] @ costs / table[:, 3]
        told = ", ".join(f"{cost:.1f}" for cost in costs)
        print(f"{part}: {told}; fit over time {off.min():.2f} to {off.max():.2f}")


if __name__ == "__main__":
    main()
