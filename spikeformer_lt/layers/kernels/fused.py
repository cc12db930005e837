"""A linear map and its LIF neurons in one pass, for inference."""

from __future__ import annotations

from torch import Tensor

from spikeformer_lt.layers.kernels import fused_kernels as kernels
from spikeformer_lt.layers.kernels.lanes import BYTES
from spikeformer_lt.layers.kernels.reference import LIFParams
from spikeformer_lt.layers.kernels.tiles import panel_vectors
from spikeformer_lt.layers.kernels.work import constants, cut, flat, new, run

__all__ = ["as_panels", "linear_lif"]

_BLOCK = 48  # rows of a step that are multiplied together


def as_panels(weight: Tensor) -> Tensor | None:
    """Weights [D', D] in the order that the kernel reads, [panel, D, column]; None if they cannot.

    The D' columns must be whole vectors.
    """
    vectors = panel_vectors(weight.shape[0], BYTES // weight.element_size())
    if not vectors:
        return None
    columns = vectors * BYTES // weight.element_size()
    return weight.reshape(-1, columns, weight.shape[1]).transpose(1, 2).contiguous()


def linear_lif(
    x: Tensor, panels: Tensor, shift: Tensor, v: Tensor | None, T: int, p: LIFParams
) -> tuple[Tensor, Tensor]:
    """Spikes [T, ..., D'] of LIF neurons on ``x @ weight.T + shift``, and the last voltage.

    Args:
        x: [T|1, ..., D], contiguous.
        panels: the weight, by :func:`as_panels`.
        shift: [D'].
        v: voltage before the first step, [..., D'], or None for rest.
        T: number of steps.
        p: constants of the neuron.
    """
    made, summed = shift.numel(), x.shape[-1]
    n = x.numel() // (x.shape[0] * summed)
    shape = (*x.shape[1:-1], made)
    spikes, last = new(x, (T, *shape)), new(x, shape)
    lanes = BYTES // x.element_size()
    vectors = panels.shape[2] // lanes
    pieces = -(-n // _BLOCK) * panels.shape[0]
    start = flat(x[:0]) if v is None else flat(v.contiguous())
    static = True if x.shape[0] == 1 and T > 1 else None
    where = (flat(spikes), flat(last), n, summed)
    flags = (constants(p, flat(x[:0]).dtype), p.decay_input or None, vectors, lanes, _BLOCK)
    args = (flat(x), static, flat(panels), flat(shift), start, *where, *flags)
    cuts = cut(pieces, x.numel() * made, 1)
    run(kernels.linear_lif, kernels.linear_lif_parallel, cuts, args)
    return spikes, last
