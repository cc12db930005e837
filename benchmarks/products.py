"""Convolutions, gradients of linear maps, attention and firing products against torch's own ways.

python benchmarks/products.py
python benchmarks/products.py --threads 1 --rounds 21

Both ways of each operation run in turn, round after round, so that a busy machine slows them alike;
figures are medians, ratios are theirs over ours, above 1 is better. The same run checks in float64
that both give the same, to rounding. "theirs" is oneDNN for convolutions and, on an AMD processor,
for linear maps (torch itself would ask MKL there, which is slower still), torch's batched
products for attention, and our kernel of numbers for that of bits.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import spikeformer_lt  # before torch: one OpenMP for all

# isort: split
import torch
from torch import Tensor

from spikeformer_lt.layers.inputs import NeuronConfig
from spikeformer_lt.layers.kernels import matmul, winograd
from spikeformer_lt.layers.kernels.bits import Bits, Neurons
from spikeformer_lt.layers.kernels.dispatch import lif
from spikeformer_lt.runtime import keep_heap

CONVS = [(32, 32, 48, 96), (32, 32, 96, 192), (32, 16, 192, 384), (32, 8, 384, 384)]
CONVS += [(64, 32, 32, 64), (64, 16, 64, 128), (64, 8, 128, 128)]  # images x steps, side, C, C'
LINEARS = [(2048, 384, 1152), (2048, 384, 1536), (2048, 1536, 384), (4096, 128, 512)]
ATTENTIONS = [(4, 8, 64, 384, 12), (4, 8, 44, 384, 12), (16, 2, 64, 256, 16)]
SPIKES = [(4, 1, 64, 384, 12), (4, 32, 64, 384, 12), (4, 8, 64, 256, 8), (4, 8, 64, 128, 4)]
FIRINGS = [(4, 44, 384, 1536), (4, 44, 1536, 384), (4, 1408, 384, 1536)]

Ways = dict[str, tuple[Callable[[], object], Callable[[], object]]]


def convolution(n: int, side: int, channels: int, made: int, dtype: torch.dtype) -> Ways:
    """Forward and both gradients, of spikes."""
    rows = (torch.rand(1, n, side, side, channels) < 0.25).to(dtype)
    weight = torch.randn(made, channels, 3, 3, dtype=dtype) / (9 * channels) ** 0.5
    grad = torch.randn(1, n, side, side, made, dtype=dtype)
    maps, g = rows[0].permute(0, 3, 1, 2), grad[0].permute(0, 3, 1, 2)
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    def back(inputs: bool) -> Tensor:
        mask = [inputs, not inputs, False]
        found = torch.ops.aten.convolution_backward(g, maps, weight, None, *geometry, mask)
        return found[0].permute(0, 2, 3, 1)[None] if inputs else found[1]

    return {
        "forward": (lambda: winograd.direct(rows, weight), lambda: winograd.convolve(rows, weight)),
        "input gradient": (lambda: back(True), lambda: winograd.convolve(grad, weight, True)),
        "weight gradient": (lambda: back(False), lambda: winograd.weights_back(rows, grad, weight)),
    }


def linear(n: int, wide: int, tall: int, dtype: torch.dtype) -> Ways:
    """Both gradients."""
    x, g = torch.rand(n, wide, dtype=dtype), torch.randn(n, tall, dtype=dtype)
    weight = torch.randn(tall, wide, dtype=dtype)

    def product(a: Tensor, b: Tensor) -> Tensor:
        if dtype == torch.float64:
            return a @ b.t()
        out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        return out

    return {
        "input gradient": (lambda: product(g, weight.t()), lambda: matmul.inputs_back(g, weight)),
        "weight gradient": (lambda: product(g.t(), x.t()), lambda: matmul.weights_back(g, x)),
    }


def attend(T: int, B: int, N: int, D: int, heads: int, dtype: torch.dtype) -> Ways:
    """Forward, and backward with it."""
    x = (torch.rand(T, B, N, 3, D) < 0.25).to(dtype).requires_grad_()
    g = torch.randn(T, B, N, D, dtype=dtype)

    def ours() -> Tensor:
        out: Tensor = matmul.AttentionFunction.apply(x, heads, 0.125)
        return out

    def theirs() -> Tensor:
        return matmul.attend(x, heads, 0.125)

    return {
        "forward": (theirs, ours),
        "with backward": (
            lambda: torch.autograd.grad(theirs(), x, g)[0],
            lambda: torch.autograd.grad(ours(), x, g)[0],
        ),
    }


def firing(T: int, n: int, wide: int, tall: int, dtype: torch.dtype) -> Ways:
    """A linear map and its neurons in inference."""
    x, p = (torch.rand(T, n, wide) < 0.25).to(dtype), NeuronConfig()
    weight, shift = torch.randn(tall, wide, dtype=dtype) / wide**0.5, torch.rand(tall, dtype=dtype)
    panels = matmul.as_panels(weight)
    assert panels is not None
    ordered = weight
    if dtype == torch.float32:
        ordered = torch.ops.mkldnn._reorder_linear_weight(weight, T * n)

    def theirs() -> Tensor:
        if dtype == torch.float64:
            return lif(x @ weight.t() + shift, None, T, p)[0]
        current = torch.ops.mkldnn._linear_pointwise(x, ordered, shift, "none", [], "")
        return lif(current, None, T, p)[0]

    return {"one pass": (theirs, lambda: matmul.linear_lif(x, panels, shift, None, T, p)[0])}


def attend_spikes(T: int, B: int, N: int, dim: int, heads: int, dtype: torch.dtype) -> Ways:
    """Attention and its neurons in inference, of spikes as bits against the kernel of numbers."""
    x, p = (torch.rand(T, B, N, 3 * dim) < 0.2).to(dtype), NeuronConfig()
    made, neurons = Bits.of(x), Neurons.of(p)
    numbers = x.unflatten(-1, (3, -1))

    def theirs() -> Tensor:
        return lif(matmul.attended(numbers, heads, 0.125), None, T, p)[0]

    return {"bits": (theirs, lambda: matmul.attend_bits(made, heads, 0.125, neurons))}


def check(ways: Ways) -> float:
    """Largest difference between the two ways over the largest value."""
    gaps = []
    for theirs, ours in ways.values():
        a, b = theirs(), ours()
        b = b.dense() if isinstance(b, Bits) else b
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        gaps.append(float((a - b).detach().abs().max() / a.detach().abs().max()))
    return max(gaps)


def measure(ways: Ways, rounds: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds of both ways of each operation."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for _ in range(rounds + 2):
        for name, pair in ways.items():
            for way, spent in zip(pair, times[name], strict=True):
                begin = time.perf_counter()
                way()
                spent.append((time.perf_counter() - begin) * 1e3)
    return {
        name: (statistics.median(a[2:]), statistics.median(b[2:])) for name, (a, b) in times.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = keep_heap()
    print(f"{args.threads} threads, OpenMP {spikeformer_lt.OPENMP}, freed memory {kept}")
    print(f"{'':54}{'theirs ms':>10}{'ours ms':>9}{'ratio':>8}")
    groups: list[tuple[str, Callable[..., Ways], Sequence[tuple[int, ...]]]] = [
        ("convolution images x steps, side, C, C'", convolution, CONVS),
        ("linear rows, D, D'", linear, LINEARS),
        ("attention T, B, N, D, heads", attend, ATTENTIONS),
        ("attention and LIF T, B, N, D, heads", attend_spikes, SPIKES),
        ("linear and LIF T, rows, D, D'", firing, FIRINGS),
    ]
    for title, make, shapes in groups:
        print(title)
        for shape in shapes:
            gap = check(make(*shape, torch.float64))
            if gap > 1e-12:
                raise SystemExit(f"{title} {shape}: the two ways are {gap:.1e} apart in float64")
            for name, (theirs, ours) in measure(make(*shape, torch.float32), args.rounds).items():
                label = f"  {', '.join(map(str, shape))}: {name}"
                print(f"{label:54}{theirs:>10.2f}{ours:>9.2f}{theirs / ours:>7.2f}x")


if __name__ == "__main__":
    main()
