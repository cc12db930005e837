"""What is recorded of a network is what it did."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import DataError
from spikeformer_lt.layers.patches import PatchSelect, Rate
from spikeformer_lt.reports.ledger import count_operations
from spikeformer_lt.reports.probe import busy_neurons, keep_frequency, recording, run_probe
from spikeformer_lt.training.monitor import FiringWatch


def test_recorded_spikes_are_those_of_the_first_sample(lively, probe):
    one = probe[0][:1]
    found = run_probe(lively, one)
    with FiringWatch(lively, always=True) as watch:
        lively(one)
    rates = watch.rates()
    assert list(found.spikes) == list(rates)
    for name, spikes in found.spikes.items():
        assert spikes.shape[0] == lively.T and set(spikes.unique().tolist()) <= {0.0, 1.0}
        assert float(spikes.double().mean()) == pytest.approx(rates[name])
    many = run_probe(lively, probe[0])  # the others in the batch change nothing
    assert all(torch.equal(many.spikes[n], s) for n, s in found.spikes.items())
    with torch.no_grad():
        assert torch.equal(found.logits, lively(one))


def test_a_membrane_is_below_threshold_after_each_step_and_zero_after_a_spike(lively, probe):
    name = "conv_pep.stages.1.act"
    before = dict(lively.named_modules())[name].store_v_seq
    trace, spikes, threshold = run_probe(lively, probe[0], [name]).membrane[name]
    assert trace.shape == spikes.shape == (lively.T, 6)
    assert bool((trace < threshold).all()) and bool((trace[spikes > 0] == 0).all())
    assert float(trace.abs().sum()) > 0
    assert dict(lively.named_modules())[name].store_v_seq is before
    with pytest.raises(DataError, match="no spiking layer"):
        run_probe(lively, probe[0], ["head"])


def test_membranes_shown_are_of_different_neurons_half_of_which_fire():
    trace = torch.tensor([[0.0, 0, 0, 0, 0, 0], [9, 9, 5, 4, 3, 1]])  # 0 and 1 are one trace
    spikes = torch.zeros(2, 6)
    spikes[1, [4, 5]] = 1
    assert busy_neurons(trace, spikes, 4) == [4, 5, 0, 2]
    assert busy_neurons(trace, spikes, 2) == [4, 0]
    assert sorted(busy_neurons(trace, spikes, 9)) == [0, 2, 3, 4, 5]
    assert busy_neurons(trace, torch.ones(2, 6), 3) == [0, 2, 3]


def test_a_network_without_a_conv_pep_has_spikes_and_membranes_but_no_patches():
    model = create_model("spiking_vgg_toy", T=2).eval()
    found = run_probe(model, torch.rand(2, 3, 16, 16))
    assert found.grid is None and found.kept is None
    assert len(found.spikes) == 4 and len(found.membrane) == 1


def test_keep_frequency_has_the_kept_fraction_as_its_mean(lively, probe):
    counted = count_operations(lively, probe, lively.T)
    assert counted.kept_tokens == [] and run_probe(lively, probe[0]).kept is None
    lively.patch = PatchSelect(Rate(), 0.25)
    with recording(lively) as found:
        counted = count_operations(lively, probe, lively.T)
    often = keep_frequency(counted.kept_tokens, found.grid)
    assert found.inputs is probe[0]  # of two batches the first is recorded
    assert not any(module._forward_hooks for module in lively.modules())
    assert often.shape == (4, 4)
    assert float(often.mean()) == 0.75
    kept = run_probe(lively, probe[0]).kept
    assert kept.shape == (4, 12)
