"""Neurons, synapses, stems, attention, patch selection and subnetworks."""

from typing import TYPE_CHECKING

from spikeformer_lt.runtime import lazy

__all__ = [
    "LIF", "Activation", "BatchNorm", "Chain", "ConvLayer", "ConvPEP", "ConvUnit", "EncoderBlock",
    "Folded", "Heaviside", "HiddenLayer", "Integers", "LinearUnit", "NeuronConfig", "NeuronState",
    "PatchScore", "PatchSelect", "Relu", "Sign", "SpikingClassifier", "SpikingMLP",
    "SpikingSelfAttention", "Stem", "StemUnit", "SubnetConv2d", "SubnetLinear", "Unit", "carry",
    "chain_of", "chains_of", "check_values", "collapse", "gather_tokens", "get_masks", "kept_count",
    "make_activation", "make_lif", "make_score", "patches_of", "rankings", "reset_state",
    "set_masks", "stem_of", "subnets", "time_first", "trace_chains",
]  # fmt: skip

if TYPE_CHECKING:
    from spikeformer_lt.layers.attention import EncoderBlock, SpikingMLP, SpikingSelfAttention
    from spikeformer_lt.layers.inputs import SpikingClassifier, check_values, time_first
    from spikeformer_lt.layers.neuron import (
        LIF,
        Activation,
        BatchNorm,
        Heaviside,
        NeuronConfig,
        NeuronState,
        Relu,
        Sign,
        carry,
        make_activation,
        make_lif,
        reset_state,
    )
    from spikeformer_lt.layers.patches import (
        PatchScore,
        PatchSelect,
        gather_tokens,
        kept_count,
        make_score,
        patches_of,
    )
    from spikeformer_lt.layers.stems import ConvPEP, Stem, StemUnit, stem_of
    from spikeformer_lt.layers.subnet import (
        SubnetConv2d,
        SubnetLinear,
        collapse,
        get_masks,
        rankings,
        set_masks,
        subnets,
    )
    from spikeformer_lt.layers.tracing import trace_chains
    from spikeformer_lt.layers.units import (
        Chain,
        ConvLayer,
        ConvUnit,
        Folded,
        HiddenLayer,
        Integers,
        LinearUnit,
        Unit,
        chain_of,
        chains_of,
    )
else:
    __getattr__, __dir__ = lazy(__name__)
