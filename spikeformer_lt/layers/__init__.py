"""Neurons, synapses, stems, attention, patch selection and subnetworks."""

from typing import TYPE_CHECKING

from spikeformer_lt.lazy import lazy

if TYPE_CHECKING:
    from spikeformer_lt.layers.attention import EncoderBlock as EncoderBlock
    from spikeformer_lt.layers.attention import SpikingMLP as SpikingMLP
    from spikeformer_lt.layers.attention import SpikingSelfAttention as SpikingSelfAttention
    from spikeformer_lt.layers.inputs import time_first as time_first
    from spikeformer_lt.layers.neuron import LIF as LIF
    from spikeformer_lt.layers.neuron import Activation as Activation
    from spikeformer_lt.layers.neuron import BatchNorm as BatchNorm
    from spikeformer_lt.layers.neuron import Heaviside as Heaviside
    from spikeformer_lt.layers.neuron import Relu as Relu
    from spikeformer_lt.layers.neuron import Sign as Sign
    from spikeformer_lt.layers.neuron import make_activation as make_activation
    from spikeformer_lt.layers.neuron import make_lif as make_lif
    from spikeformer_lt.layers.neuron import reset_state as reset_state
    from spikeformer_lt.layers.patches import PatchScore as PatchScore
    from spikeformer_lt.layers.patches import PatchSelect as PatchSelect
    from spikeformer_lt.layers.patches import gather_tokens as gather_tokens
    from spikeformer_lt.layers.patches import kept_count as kept_count
    from spikeformer_lt.layers.patches import make_score as make_score
    from spikeformer_lt.layers.patches import patches_of as patches_of
    from spikeformer_lt.layers.stems import ConvPEP as ConvPEP
    from spikeformer_lt.layers.stems import Stem as Stem
    from spikeformer_lt.layers.stems import StemUnit as StemUnit
    from spikeformer_lt.layers.stems import stem_of as stem_of
    from spikeformer_lt.layers.subnet import SubnetConv2d as SubnetConv2d
    from spikeformer_lt.layers.subnet import SubnetLinear as SubnetLinear
    from spikeformer_lt.layers.subnet import collapse as collapse
    from spikeformer_lt.layers.subnet import get_masks as get_masks
    from spikeformer_lt.layers.subnet import rankings as rankings
    from spikeformer_lt.layers.subnet import set_masks as set_masks
    from spikeformer_lt.layers.subnet import subnets as subnets
    from spikeformer_lt.layers.units import Chain as Chain
    from spikeformer_lt.layers.units import ConvLayer as ConvLayer
    from spikeformer_lt.layers.units import ConvUnit as ConvUnit
    from spikeformer_lt.layers.units import Folded as Folded
    from spikeformer_lt.layers.units import HiddenLayer as HiddenLayer
    from spikeformer_lt.layers.units import Integers as Integers
    from spikeformer_lt.layers.units import LinearUnit as LinearUnit
    from spikeformer_lt.layers.units import Unit as Unit
else:
    __getattr__, __dir__, __all__ = lazy(__name__)
