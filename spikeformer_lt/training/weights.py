"""Weights from a checkpoint into a model that they must fit exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import CheckpointError, near, shown

__all__ = ["load_weights"]

LISTED = 5  # tensors that a message shows before it counts the rest


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, differences: Sequence[str] = ()
) -> None:
    """Copy tensors into a model that has exactly these names, shapes and dtypes.

    Args:
        model: changed in place; its parameters stay the same objects.
        tensors: name -> tensor, as in ``model.state_dict()``.
        source: where they come from, for messages.
        differences: in what the two configurations differ, for messages.

    Raises:
        CheckpointError: names, shapes or dtypes differ; the first five with both shapes, and
            `differences`. The model is untouched.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    odd = []
    for name in [*own, *(name for name in tensors if name not in own)]:
        there = _kind(tensors[name]) if name in tensors else "nothing"
        here = _kind(own[name]) if name in own else "nothing"
        if there == here:
            continue
        spare = [other for other in tensors if other not in own]
        hint = near(name, spare) if name not in tensors else ""
        odd.append(f"{shown(name)}: {there} in the checkpoint, {here} in the model{hint}")
    if odd:
        more = f"; and {len(odd) - LISTED} more" if len(odd) > LISTED else ""
        config = f"; the configurations differ: {'; '.join(differences)}" if differences else ""
        raise CheckpointError(
            f"{source} does not fit the model: {'; '.join(odd[:LISTED])}{more}{config}; "
            "build the model from the config.json beside the checkpoint"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
