"""Time of linear maps by the events of their inputs, against the dense product.

python benchmarks/events.py --clock cpu                     # layers of a 4-384, one thread
python benchmarks/events.py --models spikingformer_cifar    # whole compact networks, dense weights

Both ways run in turn; figures are medians. Layers and networks fire as often as the column says.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import sparsity_clock
import torch
from torch.nn import functional as F

from spikeformer_lt.export.inference import compact
from spikeformer_lt.export.synapses import FoldedLinear
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.events import Panels

SIZES = (384, 384), (384, 1152), (384, 1536), (1536, 384)


def asked(way: str, call: Any, x: torch.Tensor) -> None:
    """Run with events chosen as `way` says."""
    dispatch.event_mode = lambda: way  # type: ignore[assignment]
    with torch.no_grad():
        call(x)


def layers(args: argparse.Namespace) -> None:
    """Rows of layers."""
    for rows in args.rows:
        for wide, made in SIZES:
            torch.manual_seed(0)
            weight, bias = torch.randn(made, wide) / wide**0.5, torch.randn(made)
            layer, panels = FoldedLinear(weight, bias, whole=True), Panels.of(weight, bias)
            found = []
            for rate in args.rates:
                x = (torch.rand(rows, wide) < rate).float()
                wanted = F.linear(x.double(), weight.double(), bias.double())
                gap = float((panels(x, 1) - wanted).abs().max())
                assert gap < 1e-4, gap
                ways = {"dense": partial(asked, "never", layer, x), "events": partial(panels, x, 1)}
                took = sparsity_clock.timed(ways, args.rounds, args.clock)
                found.append(f"{rate:.0%} {took['dense'] / took['events']:.2f}x")
            print(f"{wide} -> {made}, {rows} rows: {', '.join(found)}", flush=True)


def networks(args: argparse.Namespace) -> None:
    """Rows of networks."""
    for name in args.models:
        for rate in args.rates:
            sparsity_clock.RATE = rate
            model, rates = sparsity_clock.network("add", 0.0, name)
            net = compact(model).use_lists("never")
            x = torch.randn(args.batch, 3, *model.image_size)
            ways = {way: partial(asked, way, net, x) for way in ("never", "auto")}
            took = sparsity_clock.timed(ways, args.rounds, args.clock)
            print(
                f"{name}, batch {args.batch}, firing {min(rates.values()):.2f} to "
                f"{max(rates.values()):.2f}: {took['never']:.1f} and {took['auto']:.1f} ms, "
                f"{took['never'] / took['auto']:.2f}x",
                flush=True,
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05, 0.1, 0.15, 0.25, 0.4])
    parser.add_argument("--rows", type=int, nargs="+", default=[176, 5632])
    parser.add_argument("--models", nargs="*", default=[], help="whole networks in place of layers")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=tuple(sparsity_clock.CLOCKS), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, spikeformer_lt {spikeformer_lt.__version__}")
    (networks if args.models else layers)(args)


if __name__ == "__main__":
    main()
