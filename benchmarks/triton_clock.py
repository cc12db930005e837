"""Our Triton kernels against what runs without them, and the table that says where they are taken.

python3 benchmarks/triton_clock.py --out runs/gpu/triton.json
python3 benchmarks/triton_clock.py --pretend --out /tmp/triton.json    # in the interpreter, tiny

Forward and backward of one operation, in turn, medians. Without our kernels LIF and norm with LIF
are torch's BatchNorm and spikingjelly's LIF, attention two matrix products. An operation is faster
from the smallest size on from which our kernel was the faster one at every larger size, too.
SPIKEFORMER_TRITON=FILE takes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES = ((4, 8), (16, 16), (64, 16), (256, 8))  # samples, rounds
TYPES = ("float32", "bfloat16")


def cases(batch: int, pretend: bool, dtype: Any, device: str) -> dict[str, tuple[Any, Any, Any]]:
    """By operation: its input, ours, and the other."""
    import torch
    from torch import nn

    from spikeformer_lt.layers.attention import spiking_attention
    from spikeformer_lt.layers.kernels.dispatch import load
    from spikeformer_lt.layers.neuron import LIF, BatchNorm, norm_act

    T, tokens, wide, heads = (2, 8, 32, 2) if pretend else (4, 64, 384, 12)
    room, lif, norm = load("triton_kernels"), LIF(), BatchNorm(wide).to(device)
    nn.init.constant_(norm.bias, 0.4)
    p = lif.params()
    assert p is not None
    x = (torch.randn(T, batch, tokens, wide, device=device) * 1.5).to(dtype).requires_grad_()
    spikes = (torch.rand(T, batch, tokens, 3, wide, device=device) < 0.2).to(dtype)

    def fused(x: Any) -> Any:
        return room.norm_lif(x, norm.weight, norm.bias, None, None, norm.eps, None, T, p)[0]

    def products(x: Any) -> Any:
        q, k, v = x.unflatten(-1, (heads, -1)).permute(3, 0, 1, 4, 2, 5)
        return (spiking_attention(q, k, v) * 0.125).transpose(2, 3).flatten(3)

    def attention(x: Any) -> Any:
        return room.attention(x, heads, 0.125)

    return {
        "lif": (x, lambda x: room.lif(x, None, T, p)[0], lif),
        "norm_lif": (x, fused, lambda x: norm_act(norm, lif, x)),
        "attention": (spikes.requires_grad_(), attention, products),
    }


def clock(function: Callable[[Any], Any], x: Any) -> tuple[float, Any]:
    """Seconds of a forward and backward pass, and the output."""
    import torch

    if x.is_cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    out = function(x)
    torch.autograd.grad(out, x, torch.ones_like(out))
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin, out.detach()


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/triton.json"))
    parser.add_argument("--pretend", action="store_true", help="in the interpreter, on the CPU")
    args = parser.parse_args()
    os.environ["SPIKEFORMER_TRITON"] = "off"  # of what ours is compared with
    if args.pretend:
        os.environ["TRITON_INTERPRET"] = "1"

    import torch

    device = "cpu" if args.pretend else "cuda"
    name = "cpu" if args.pretend else torch.cuda.get_device_name()
    ratios: dict[str, dict[int, float]] = {}
    for kind in TYPES[:1] if args.pretend else TYPES:
        for batch, rounds in ((2, 1),) if args.pretend else SIZES:
            made = cases(batch, args.pretend, getattr(torch, kind), device)
            for operation, (x, *both) in made.items():
                outs = [clock(run, x)[1] for run in both]  # compiles, and is compared
                differing = float((outs[0] != outs[1]).float().mean())
                assert differing <= (1e-3 if kind == "float32" else 2e-2), (operation, differing)
                times = [[clock(run, x)[0] for run in both] for _ in range(rounds)]
                ours, theirs = (statistics.median(t) for t in zip(*times, strict=True))
                ratios.setdefault(f"{operation} {kind}", {})[x.numel()] = theirs / ours
                print(
                    f"{operation:10} {kind:9} batch {batch:4}: {1e3 * ours:8.3f} ms, without "
                    f"{1e3 * theirs:8.3f} ms, {theirs / ours:5.2f}x, {differing:.1e} differ",
                    flush=True,
                )
    faster = {}
    for operation, found in ratios.items():
        slower = max((n for n, ratio in found.items() if ratio <= 1), default=0)
        if own := [n for n in found if n > slower]:
            faster[operation] = min(own)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"device": name, "faster": faster, "ratios": ratios}, indent=1))
    print(f"{args.out}: faster from so many elements on: {faster or 'never'}")


if __name__ == "__main__":
    main()
