"""What a benchmark times is what it says: layers that fire, equal settings, options that count."""

from __future__ import annotations

import argparse

import latency
import multisp_step
import pytest
import torch


def firing(net, x):
    """The least firing rate of a network's neurons in evaluation."""
    rates = []
    for name, module in net.named_modules():
        if name.split(".")[-1] in ("act", "attn_act"):
            module.register_forward_hook(lambda m, a, out: rates.append(float(out.mean())))
    with torch.no_grad():
        net.eval()(x)
    return min(rates)


@pytest.mark.parametrize("name", multisp_step.variants([0.5]))
def test_a_network_fires_in_evaluation_as_in_training(name):
    sizes = dict.fromkeys(("embed_dim", "depth", "num_heads", "T"))
    args = argparse.Namespace(model="spikformer_toy", patch_sparsity=0.314, **sizes)
    model = multisp_step.build(args, **multisp_step.variants([0.5])[name])
    assert firing(model, torch.rand(4, model.in_channels, *model.image_size)) > 0.05


def test_the_network_of_the_latency_fires(monkeypatch):
    monkeypatch.setattr(latency, "compact", lambda model: model)
    assert firing(latency.network("heaviside", 0.9), torch.randn(1, 3, 32, 32)) > 0.02
