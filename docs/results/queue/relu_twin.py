"""The Spikformer with ReLU in place of its spiking neurons: an ANN of the same layers.

python recipes/sparse_training_cifar.py --plugins docs/results/queue/relu_twin.py \
    --model.name relu_twin --model.T 1
"""

from __future__ import annotations

from typing import Any

from spikeformer_lt.layers import LIF
from spikeformer_lt.layers.neuron import Relu
from spikeformer_lt.models.spikformer import Spikformer, spikformer_cifar
from spikeformer_lt.registry import register_model


@register_model
def relu_twin(**options: Any) -> Spikformer:
    """``spikformer_cifar``, full-precision: each LIF is a ReLU, and T is 1 unless given."""
    net = spikformer_cifar(**{"T": 1, "activation": "relu", **options})
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LIF):
                setattr(module, name, Relu())
    for module in net.modules():
        if getattr(module, "reads", "real") != "real":
            module.reads = "real"
    return net
