"""A 3x3 convolution of channels-last maps by Winograd's F(4x4, 3x3), with its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import winograd_kernels as kernels
from spikeformer_lt.layers.kernels.functions import again, once
from spikeformer_lt.layers.kernels.lanes import BYTES
from spikeformer_lt.layers.kernels.tiles import panel_vectors
from spikeformer_lt.layers.kernels.work import Array, cut, flat, new, run

__all__ = ["WinogradFunction", "convolve", "direct", "fits", "pays", "weights_back"]

_BLOCK = 48  # tiles turned and multiplied together; 24 and 96 are as fast
_DEPTH = 128  # channels summed at a time: that height of a panel stays in the first cache
_WORTH = 96  # tiles from which turning the weights is repaid


def fits(rows: Tensor, weight: Tensor) -> bool:
    """Whether whole vectors of channels go in and out."""
    lanes = BYTES // rows.element_size()
    return (
        weight.shape[2:] == (3, 3)
        and rows.shape[-1] == weight.shape[1]
        and weight.shape[0] % lanes == 0
        and weight.shape[1] % max(lanes, 8) == 0
        and min(rows.shape[2:4]) >= 2
    )


def pays(rows: Tensor) -> bool:
    """Whether the maps are large enough for it to be faster than a direct convolution."""
    height, width = rows.shape[2:4]
    wasted = (-height % 4 + height) * (-width % 4 + width) > 1.6 * height * width
    return not wasted and _tiles(rows) >= _WORTH


def _tiles(rows: Tensor) -> int:
    height, width = rows.shape[2:4]
    return rows.shape[0] * rows.shape[1] * -(-height // 4) * -(-width // 4)


def _planes(weight: Tensor, turned: bool) -> tuple[Array, int]:
    """Planes of the weights, of those that give the inputs' gradient if `turned`; panel width."""
    made, summed = weight.shape[:2]
    steps = (9, 9 * summed)
    if turned:
        made, summed, steps = summed, made, (steps[1], steps[0])
    lanes = BYTES // weight.element_size()
    vectors = panel_vectors(made, lanes)
    data = flat(weight.contiguous())
    planes: Array = np.empty(4 * data.size, data.dtype)
    cuts = cut(made // lanes, planes.size, 1)
    args = (data, planes, summed, made, *steps, turned, vectors, lanes)
    run(kernels.planes, kernels.planes_parallel, cuts, args)
    return planes, vectors


def convolve(rows: Tensor, weight: Tensor, turned: bool = False) -> Tensor:
    """The convolution of rows [T, B, H, W, C].

    With `turned`, rows are the gradient of its outputs, and the result is that of its inputs.
    """
    planes, vectors = _planes(weight, turned)
    summed, made = rows.shape[-1], weight.shape[1 if turned else 0]
    out = new(rows, (*rows.shape[:-1], made))
    height, width = rows.shape[2:4]
    lanes = BYTES // rows.element_size()
    tiles = _tiles(rows)
    cuts = cut(tiles, planes.size // 36 * tiles, 1)
    sizes = (height, width, summed, made, vectors, lanes, _BLOCK, _DEPTH)
    args = (flat(rows), planes, flat(out), *sizes)
    run(kernels.convolve, kernels.convolve_parallel, cuts, args)
    return out


def _parts(summed: int, made: int, lanes: int, threads: int) -> tuple[Array, int]:
    """Bounds of inputs and outputs of each thread's share of the weights; panel width.

    A share turns its own inputs and outputs, so the fewest channels turned twice are the best.
    """
    best = (1, 1)
    for a in range(1, threads + 1):
        for b in range(1, threads // a + 1):
            whole = summed % (a * max(lanes, 8)) == 0 and made % (b * lanes) == 0
            cost = summed // a + made // b
            if whole and (a * b, -cost) > (
                best[0] * best[1],
                -(summed // best[0] + made // best[1]),
            ):
                best = (a, b)
    a, b = best
    tall, wide = summed // a, made // b
    bounds = [
        (i * tall, (i + 1) * tall, j * wide, (j + 1) * wide) for i in range(a) for j in range(b)
    ]
    return np.array(bounds), panel_vectors(wide, lanes)


def weights_back(rows: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight [C', C, 3, 3] from rows and the gradient of the outputs."""
    made, summed = weight.shape[:2]
    lanes = BYTES // rows.element_size()
    tiles = _tiles(rows)
    threads = cut(made * summed, made * summed * tiles, 1).size - 1
    parts, vectors = _parts(summed, made, lanes, threads)
    gw = weight.new_empty(weight.shape)
    sizes = (tiles, *rows.shape[2:4], summed, made, vectors, lanes, _BLOCK)
    args = (flat(rows), flat(grad), flat(gw), *sizes, parts)
    cuts = np.arange(len(parts) + 1)
    run(kernels.weights_back, kernels.weights_back_parallel, cuts, args)
    return gw


def direct(rows: Tensor, weight: Tensor) -> Tensor:
    """The convolution in torch's operations, of ``[T, B, H, W, C]``."""
    maps = F.conv2d(rows.flatten(0, 1).permute(0, 3, 1, 2), weight, padding=1)
    out: Tensor = maps.permute(0, 2, 3, 1).unflatten(0, rows.shape[:2])
    return out


class WinogradFunction(torch.autograd.Function):
    """Convolution (3x3, stride 1, padding 1) of ``[T, B, H, W, C]``; saves rows and weight.

    Source: Lavin & Gray, CVPR 2016 (arXiv 1509.09308), section 4.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        """Convolve."""
        ctx.save_for_backward(rows, weight)
        return convolve(rows, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Convolve with the weights turned, and the planes of inputs and outputs."""
        rows, weight = ctx.saved_tensors

        def kernels() -> tuple[Tensor | None, ...]:
            g = grad.contiguous()
            gx = convolve(g, weight, True) if ctx.needs_input_grad[0] else None
            return gx, weights_back(rows, g, weight) if ctx.needs_input_grad[1] else None

        found = once(kernels)
        return again(direct, (rows, weight), grad) if found is None else found
