"""The estimate before a run measures and leaves no trace."""

from __future__ import annotations

import torch

from spikeformer_lt import create_model
from spikeformer_lt.training.monitor import estimate_step


def toy(**kwargs):
    return create_model(
        "spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2, **kwargs
    )


def test_an_estimate_touches_neither_model_nor_random_streams():
    model = toy()
    images = torch.rand(4, 3, 16, 16)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    estimate_step(model, images, 16)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_memory_scales_with_the_batch_and_grows_with_time_steps():
    images = torch.rand(4, 3, 16, 16)
    small = estimate_step(toy(), images, 4)
    large = estimate_step(toy(), images, 16)
    assert large.saved_mb == 4 * small.saved_mb
    assert large.weights_mb == small.weights_mb
    assert estimate_step(toy(T=8), images, 4).saved_mb > 1.5 * small.saved_mb
    assert small.seconds_per_step > 0
