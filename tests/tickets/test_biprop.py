"""Biprop: the gain, its identities, and the gradient of the scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt.layers.subnet import SubnetLinear, get_masks, install, set_masks
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import Biprop, BipropConfig, PruneConfig


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_kept_weights_are_signs_times_the_mean_of_the_kept(make, bench, tmp_path, scope):
    model = make()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    config = BipropConfig(sparsity=0.8, epochs=2, scope=scope)
    ticket = Biprop(config).find(model, bench.trainer(tmp_path).fit)
    for name, kept in ticket.mask.items():
        weight, own = ticket.tensors[name], start[name][kept]
        if not len(own):
            assert not weight.any()
            continue
        assert len(weight[kept].abs().unique()) == 1
        torch.testing.assert_close(weight[kept].abs()[0], own.abs().mean())
        assert torch.equal(weight[kept].sign(), torch.where(own >= 0, 1.0, -1.0))


def binary_linear(sparsity: float) -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 7)).double()
    install(net, "0", "scores", binary=True)
    scores = {"0.weight": net[0].ranking()}
    set_masks(net, Mask.from_scores(scores, sparsity))
    return net, net[0].weight.detach()


def test_the_gain_is_the_best_one_for_its_mask():
    net, weight = binary_linear(0.6)
    layer, kept = net[0], net[0].mask
    gain = float(layer.effective_weight().detach().abs().max())
    assert gain == pytest.approx(float((weight * kept).abs().sum() / kept.sum()), rel=1e-14)

    def error(a: float) -> float:
        return float(((weight - a * weight.sign()) * kept).square().sum())

    assert error(gain) < min(error(gain * 1.001), error(gain * 0.999))


def test_the_score_gradient_is_grad_times_weight_times_sign_of_score():
    net, weight = binary_linear(0.6)
    x, target = torch.randn(5, 12).double(), torch.randn(5, 7).double()
    effective = net[0].effective_weight().detach().requires_grad_()
    (x @ effective.T + net[0].bias - target).square().sum().backward()
    (net(x) - target).square().sum().backward()
    expected = effective.grad * weight * net[0].scores.detach().sign()
    torch.testing.assert_close(net[0].scores.grad, expected, rtol=1e-12, atol=0)
    assert bool((net[0].scores.grad[~net[0].mask] != 0).any())  # the removed learn, too


def test_a_collapsed_layer_is_zero_and_not_nan():
    net, _ = binary_linear(0.0)
    set_masks(net, Mask({"0.weight": torch.zeros(7, 12).bool()}))
    assert not net[0].effective_weight().any()
    assert isinstance(net[0], SubnetLinear) and get_masks(net).sparsity == 1


def test_all_kept_is_the_sign_network_and_prunes_nothing():
    net, weight = binary_linear(0.0)
    assert torch.equal(net[0].effective_weight().sign(), weight.sign())


def test_the_global_preset_ramps_from_one_half():
    config = Biprop(BipropConfig(preset="iclr21-global", sparsity=0.95)).config
    assert (config.scope, config.ramp_epochs, config.ramp_from) == ("global", 10.0, 0.5)
    assert config.sparsity == 0.95 and isinstance(config.prune, PruneConfig)
