"""Time of the LIF neuron, alone and after BatchNorm, against spikingjelly's multi-step LIFNode.

python benchmarks/lif.py
python benchmarks/lif.py --threads 1 --clock cpu    # on a machine that others are using
python benchmarks/lif.py --compiled    # torch.compile of the plain loop, too; needs a compiler

All variants run in turn, round after round, so that a busy machine slows them alike; figures are
medians over rounds, ratios are medians of the ratios within a round. The same run checks that the
spikes are equal: bit for bit in float32 for the LIF alone, in float64 after BatchNorm, where the
order of sums differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from spikingjelly.activation_based.neuron import LIFNode
from torch import Tensor

from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.reference import lif_loop, spike
from spikeformer_lt.layers.neuron import BatchNorm, make_lif, norm_act

SHAPES = [(4, 16, 32, 32, 96), (16, 2, 128, 128, 32), (4, 16, 64, 384)]  # [T, ..., C]
PEER = "spikingjelly"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what to count")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds per shape")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    args = parser.parse_args()
    kernels = os.environ.get("SPIKEFORMER_KERNELS", "auto")
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, kernels {kernels}"
    )
    print(", ".join(f"{p} {version(p)}" for p in ("torch", "spikingjelly", "numba")))
    check()
    for threads in args.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread(s): ms ours / ms {PEER} = times faster")
        for shape in SHAPES:
            for name, variants in cases(shape, args.compiled).items():
                seconds = measure(variants, args.rounds, CLOCKS[args.clock])
                ours, peer = seconds["ours"], seconds[PEER]
                ratio = statistics.median(p / o for o, p in zip(ours, peer, strict=True))
                times = [1e3 * statistics.median(s) for s in (ours, peer)]
                line = f"{shape!s:24} {name:22} {times[0]:8.2f} / {times[1]:8.2f} = {ratio:5.1f}x"
                if "compiled" in seconds:
                    other = statistics.median(
                        c / o for o, c in zip(ours, seconds["compiled"], strict=True)
                    )
                    line += f", {other:5.1f}x torch.compile"
                print(line)


def cases(
    shape: tuple[int, ...], compiled: bool = False
) -> dict[str, dict[str, Callable[[], object]]]:
    """Pairs of functions to time, by the name of what they do."""
    torch.manual_seed(0)
    x = torch.randn(shape).mul_(1.5).requires_grad_()
    once = x.detach()[:1].clone().requires_grad_()
    weight = torch.randn(shape)
    T = shape[0]
    norm, lif = BatchNorm(shape[-1]), make_lif()
    peer = LIFNode(detach_reset=True, step_mode="m")
    affine = [x, norm.weight, norm.bias]

    def ours(current: Tensor) -> Tensor:
        return lif(current, T)

    def fused() -> Tensor:
        return norm_act(norm, lif, x, T)

    def theirs(current: Tensor) -> Tensor:
        peer.reset()
        return peer(current)

    def copies() -> Tensor:
        return once.expand(shape)

    def grad(out: Tensor, of: Tensor | list[Tensor]) -> object:
        return torch.autograd.grad(out, of, weight)

    params = lif.params()
    assert params is not None
    rest = torch.zeros(shape[1:])

    def loop(current: Tensor) -> Tensor:
        return lif_loop(current, rest, T, params, lambda u: spike(u, "sigmoid", 4.0))[0]

    def normed(current: Tensor) -> Tensor:
        rows = current.reshape(-1, shape[-1])
        flat = torch.nn.functional.batch_norm(
            rows, None, None, norm.weight, norm.bias, True, 0.0, norm.eps
        )
        return loop(flat.reshape(shape))

    fast, fast_normed = (torch.compile(f) if compiled else f for f in (loop, normed))
    more = {
        "lif, forward": torch.no_grad()(lambda: fast(x)),
        "lif, with backward": lambda: grad(fast(x), x),
        "bn + lif, forward": torch.no_grad()(lambda: fast_normed(x)),
        "bn + lif, with backward": lambda: grad(fast_normed(x), affine),
    }
    found = {
        "lif, forward": {
            "ours": torch.no_grad()(lambda: ours(x)),
            PEER: torch.no_grad()(lambda: theirs(x)),
        },
        "lif, with backward": {"ours": lambda: grad(ours(x), x), PEER: lambda: grad(theirs(x), x)},
        "lif, static input": {
            "ours": lambda: grad(ours(once), once),
            PEER: lambda: grad(theirs(copies()), once),
        },
        "bn + lif, forward": {
            "ours": torch.no_grad()(fused),
            PEER: torch.no_grad()(lambda: theirs(norm(x))),
        },
        "bn + lif, with backward": {
            "ours": lambda: grad(fused(), affine),
            PEER: lambda: grad(theirs(norm(x)), affine),
        },
    }
    if compiled:
        for name, run in more.items():
            found[name]["compiled"] = run
    return found


def measure(
    variants: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, run in variants.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: values[1:] for name, values in seconds.items()}


def check() -> None:
    """Refuse to time what is not equal."""
    torch.manual_seed(1)
    x = torch.randn(5, 64, 96) * 1.5 + 0.6
    peer = LIFNode(detach_reset=True, step_mode="m")
    spikes = make_lif()(x)
    if not torch.equal(spikes, peer(x)):
        raise SystemExit("float32 spikes of the LIF differ")
    peer.reset()
    before = dispatch.mode()
    dispatch.set_mode("numba" if before == "auto" else before)  # in float64, too
    norm = BatchNorm(96).double()
    torch.nn.init.constant_(norm.bias, 0.6)
    fused = norm_act(norm, make_lif(), x.double())
    dispatch.set_mode(before)
    if not torch.equal(fused, peer(norm(x.double()))):
        raise SystemExit("float64 spikes after BatchNorm differ")
    print(f"spikes equal (firing rate {spikes.mean():.2f} and {fused.mean():.2f})")


if __name__ == "__main__":
    main()
