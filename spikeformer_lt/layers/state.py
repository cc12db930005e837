"""Neuron state: where it starts and that nothing of it is left behind."""

from __future__ import annotations

from torch import nn

from spikeformer_lt.layers.neuron import LIF


def reset_state(model: nn.Module) -> None:
    """Put every LIF of a model back to its start voltage.

    The modules are listed anew each time: spikingjelly's ``reset_net`` caches its list and would
    miss a neuron that was swapped in after the first reset. ``model.modules()`` takes three times
    as long (measured), which one image through a small network notices.
    """
    left = [model]
    while left:
        module = left.pop()
        if isinstance(module, LIF):
            module.reset()
        left.extend(child for child in module._modules.values() if child is not None)
