"""Neurons, synapses, ConvPEP, attention, subnetworks and patch selection."""
