"""Channels that are removed can be cut out: the smaller network computes the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import find_groups, shrink
from spikeformer_lt.tickets.early_bird import channel_mask, norm_scales

IMAGES = (3, 3, 16, 16)


@pytest.fixture
def model(make) -> nn.Module:
    made = make().eval()
    torch.manual_seed(1)
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.3, 1.0)
    return made


def test_a_shrunk_network_computes_the_same_with_fewer_weights(model):
    torch.manual_seed(0)
    images = torch.randn(IMAGES)
    groups = find_groups(model, images)
    channels = Mask.from_scores(norm_scales(model, groups), 0.5, floor=0.05)
    mask = channel_mask(model, groups, channels)
    plain = model(images)
    mask.apply_(model)
    masked = model(images)
    assert not torch.equal(masked, plain)
    smaller = shrink(copy.deepcopy(model), groups, mask)
    torch.testing.assert_close(smaller(images), masked, rtol=1e-4, atol=1e-4)
    lost = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in smaller.parameters())
    assert lost == mask.removed > 0


def test_a_search_for_groups_changes_nothing(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    find_groups(model, torch.randn(IMAGES, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_residual_streams_and_heads_are_left_alone(model):
    groups = find_groups(model, torch.randn(IMAGES))
    consumers = {group.consumer for group in groups}
    if not hasattr(model, "conv_pep"):
        assert {"head", "4"} & consumers or len(groups) >= 2
        return
    assert not any(name.endswith(("q.linear", "proj.linear", "fc1.linear")) for name in consumers)
    assert "head" not in consumers and "conv_pep.rpe.conv" not in consumers
    assert {"blocks.0.mlp.fc2.linear", "conv_pep.stages.1.conv"} <= consumers


def test_a_network_of_residuals_alone_is_refused():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(x + self.norm(self.a(x)).relu())

    with pytest.raises(ConfigError, match="no channel of Residual"):
        find_groups(Residual(), torch.randn(5, 4))


def test_a_weight_mask_cannot_shrink(model):
    groups = find_groups(model, torch.randn(IMAGES))
    with pytest.raises(MaskError, match="not of the channel form"):
        shrink(model, groups, {})
