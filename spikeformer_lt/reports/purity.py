"""Spike-purity audit: every tensor that enters a multiplication and is not made of spikes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeformer_lt.reports.operations import count_operations


def audit(model: Any, images: Tensor) -> dict[str, Any]:
    """List the inputs of convolutions, linear maps and attentions that are not {0,1}.

    Args:
        model: with ``T``; run in eval mode on the images.
        images: probe batch ``[B, C, H, W]`` or ``[B, T, C, H, W]``.

    Returns:
        ``impure``: {layer: kind of values}; ``pure_after_first``: whether only the first
        convolution, which reads the image, and the head, which reads a mean, are listed.
    """
    counted = count_operations(model, [images], model.T)
    impure = {n: layer.kind for n, layer in counted.layers.items() if layer.kind != "{0,1}"}
    first = next(iter(counted.layers))
    return {"impure": impure, "pure_after_first": set(impure) <= {first, "head"}}
