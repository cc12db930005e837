"""Cost of a mask: applied at every step of a training, and found by a global ranking.

python benchmarks/masks.py
python benchmarks/masks.py --threads 1 --batch 32    # on a machine that others are using

A step is forward, backward and AdamW of a Spikformer; the mask's share is what `Masked` does in
it: clear the gradients of removed weights, and set removed weights to +0.0 after the update. Both
are timed in the same steps, so that a busy machine slows them alike; figures are medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from importlib.metadata import version

import torch
from torch.nn import functional as F

from spikeformer_lt import create_model
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import PruneConfig, magnitudes
from spikeformer_lt.training.phase import Masked, Progress

SHARE_LIMIT, RANKING_LIMIT_S, RANKED = 0.03, 0.3, 10_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--model", default="spikformer_cifar_4_256", help="a registered model")
    parser.add_argument("--batch", type=int, default=64, help="images in a step")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps and rankings")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads, "
          f"torch {version('torch')}")  # fmt: skip
    step, share = steps(args.model, args.batch, args.rounds)
    print(
        f"{args.model}, batch {args.batch}: step {1e3 * step:.1f} ms, mask {1e3 * share:.2f} ms = "
        f"{100 * share / step:.2f} % (limit {100 * SHARE_LIMIT:.0f} %)"
    )
    for sparsity, within in ((0.5, False), (0.9, True)):
        seconds = ranking(sparsity, within, args.rounds)
        about = "inside a mask" if within else "of all"
        print(
            f"global ranking of {RANKED / 1e6:.0f} M weights at {sparsity} {about}: "
            f"{seconds:.3f} s (limit {RANKING_LIMIT_S} s)"
        )


def steps(name: str, batch: int, rounds: int) -> tuple[float, float]:
    """Median seconds of a whole masked step, and of the mask's part of it."""
    torch.manual_seed(0)
    model = create_model(name)
    mask = Mask.from_scores(magnitudes(PruneConfig().weights(model)), 0.9)
    hook = Masked(mask)
    hook.start(model, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    whole, masked = [], []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images).mean(1), labels).backward()
        first = time.perf_counter()
        hook.after_backward(model, optimizer, Progress(0, 0, 1, 1))
        second = time.perf_counter()
        optimizer.step()
        third = time.perf_counter()
        hook.after_step(model, 1)
        end = time.perf_counter()
        whole.append(end - start)
        masked.append(second - first + end - third)
    return statistics.median(whole[1:]), statistics.median(masked[1:])  # the first one warms up


def ranking(sparsity: float, within: bool, rounds: int) -> float:
    """Median seconds of `Mask.from_scores` over layers of all sizes."""
    torch.manual_seed(0)
    sizes = [RANKED // 2, RANKED // 4, RANKED // 8, RANKED // 8]
    scores = {str(i): torch.rand(size) for i, size in enumerate(sizes)}
    before = Mask.from_scores(scores, 0.5) if within else None
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        Mask.from_scores(scores, sparsity, "global", before)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
