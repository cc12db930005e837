"""The two gradients of a linear map without a transposed copy of either factor."""

from __future__ import annotations

from torch import Tensor

from spikeformer_lt.layers.kernels import dense_kernels as kernels
from spikeformer_lt.layers.kernels.lanes import BYTES
from spikeformer_lt.layers.kernels.tiles import panel_vectors
from spikeformer_lt.layers.kernels.work import cut, flat, new, run

__all__ = ["fits", "inputs_back", "weights_back"]

_TALL = 48  # a part is whole tiles of 6 or 8 rows


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the widths are whole vectors, and the memory is in order."""
    lanes = BYTES // x.element_size()
    return (
        weight.shape[1] % max(lanes, 8) == 0  # tiles of 8 rows need 8 lanes, or two vectors of 4
        and weight.shape[0] % max(lanes, 8) == 0
        and x.dtype == weight.dtype
        and x.is_contiguous()
        and weight.is_contiguous()
    )


def inputs_back(grad: Tensor, weight: Tensor) -> Tensor:
    """``grad @ weight``, of [N, D'] and [D', D]."""
    summed, made = weight.shape
    lanes = BYTES // grad.element_size()
    gx = new(grad, (grad.shape[0], made))
    cuts = cut(grad.shape[0], grad.numel() * made, _TALL)
    args = (flat(grad), flat(weight), flat(gx), made, summed, panel_vectors(made, lanes), lanes)
    run(kernels.inputs_back, kernels.inputs_back_parallel, cuts, args)
    return gx


def weights_back(grad: Tensor, x: Tensor) -> Tensor:
    """``grad.T @ x``, of [N, D'] and [N, D]."""
    rows, tall, wide = *grad.shape, x.shape[1]
    lanes = BYTES // x.element_size()
    gw = new(x, (tall, wide))
    cuts = cut(tall, grad.numel() * wide, max(lanes, 8))
    args = (flat(grad), flat(x), flat(gw), rows, tall, wide, panel_vectors(wide, lanes), lanes)
    run(kernels.weights_back, kernels.weights_back_parallel, cuts, args)
    return gw
