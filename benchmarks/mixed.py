"""Time of a training step in bfloat16 (autocast) against float32.

OMP_NUM_THREADS=1 python benchmarks/mixed.py --embed-dim 96 --depth 2 --num-heads 3 --batch 64

A step is forward, backward and AdamW of a network with random images. Both run in turn, round after
round; figures are medians, the ratio is the median of the rounds', above 1 where bfloat16 is the
faster one. The same run says how far the losses are apart. Neurons and BatchNorm are float32 in
both. ONEDNN_MAX_CPU_ISA=AVX512_CORE shows a processor without bfloat16.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import torch
from torch import Tensor, nn

from spikeformer_lt import create_model

KNOWN = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def stepper(model: nn.Module, x: Tensor, y: Tensor, half: bool) -> Callable[[], float]:
    """One training step, which returns its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            loss = nn.functional.cross_entropy(model(x).mean(1).float(), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def main() -> None:
    """Time both in turn, print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="spikformer_cifar")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    for size in ("--embed-dim", "--depth", "--num-heads"):
        parser.add_argument(size, type=int)
    args = parser.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    sizes = {n: getattr(args, n) for n in ("embed_dim", "depth", "num_heads")}
    given: dict[str, Any] = {name: value for name, value in sizes.items() if value is not None}
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    steps = []
    for half in (False, True):
        torch.manual_seed(0)
        model = create_model(args.model, num_classes=10, **given).to(args.device).train()
        x = torch.randn(args.batch, model.in_channels, *model.image_size, device=args.device)
        y = torch.randint(10, (args.batch,), device=args.device)
        steps.append(stepper(model, x, y, half))
    losses = [step() for step in steps]
    times: list[list[float]] = [[], []]
    for _ in range(args.rounds):
        for own, step in zip(times, steps, strict=True):
            begin = clock()
            step()  # which reads the loss, and so waits for the device
            own.append(1e3 * (clock() - begin))
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    single, half_ms = map(statistics.median, times)
    print(f"{args.device} ({', '.join(k for k in KNOWN if k in flags)}), OpenMP "
          f"{spikeformer_lt.OPENMP}, {torch.get_num_threads()} threads, {args.model} {given}, "
          f"batch {args.batch}")  # fmt: skip
    print(f"float32 {single:.0f} ms, bfloat16 {half_ms:.0f} ms: {ratio:.2f}x")
    print(f"first losses {losses[0]:.5f} and {losses[1]:.5f}")


if __name__ == "__main__":
    main()
