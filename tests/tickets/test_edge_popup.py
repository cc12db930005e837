"""Edge-popup: frozen weights, learned scores, masks that may regrow."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.subnet import Subnet, subnets
from spikeformer_lt.tickets import EdgePopup, EdgePopupConfig, PruneConfig
from spikeformer_lt.training.phase import FitResult


class Spy:
    """Passes phases on to a trainer and looks at the model before and after."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer

    def __call__(self, model, phase):
        self.learning = [n for n, p in model.named_parameters() if p.requires_grad]
        layers = dict(subnets(model))
        self.weights = {n: layer.weight.detach().clone() for n, layer in layers.items()}
        self.masks = {n: layer.mask.clone() for n, layer in layers.items()}
        result = self.trainer.fit(model, phase)
        self.kept_weights = all(
            torch.equal(layer.weight, self.weights[n]) for n, layer in subnets(model)
        )
        self.regrown = sum(int((layer.mask & ~self.masks[n]).sum()) for n, layer in subnets(model))
        return result


def test_weights_stay_and_masks_move(make, bench, tmp_path):
    model, spy = make(), Spy(bench.trainer(tmp_path))
    start = {k: v.clone() for k, v in model.state_dict().items()}
    names = set(PruneConfig().weights(model))
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    ticket = EdgePopup(EdgePopupConfig(sparsity=0.6, epochs=3)).find(model, spy)
    assert set(spy.weights) == names
    assert spy.kept_weights and spy.regrown > 0
    for name in names:
        assert torch.equal(ticket.tensors[name], start[name] * ticket.mask[name])
    assert not any(isinstance(module, Subnet) for module in model.modules())
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted


def test_what_the_network_freezes_stays(bench, tmp_path):
    """Of a random attention q and k stay as drawn."""
    sizes = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
    model = create_model("spikformer_toy", attention="random", **sizes)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    EdgePopup(EdgePopupConfig(epochs=1)).find(model, bench.trainer(tmp_path).fit)
    after = dict(model.named_parameters())
    assert frozen
    for name, value in frozen.items():
        assert torch.equal(after[name], value) and not after[name].requires_grad


@pytest.mark.parametrize("init", ["keep", "signed", "kaiming"])
def test_the_mask_by_itself_begins_with_the_weights_of_its_search(make, init):
    """What `control=start` trains again are the weights that the scores were of."""
    frozen = {}

    def fit(model, phase):
        frozen.update({n: layer.weight.detach().clone() for n, layer in subnets(model)})
        return FitResult(phase.name, 50.0, 1, phase.epochs, 0.1, None)

    config = EdgePopupConfig(epochs=1, init=init, control="start")
    ticket = EdgePopup(config, seed=3).find(make(), fit)
    for name, kept in ticket.mask.items():
        assert torch.equal(ticket.tensors[name], torch.where(kept, frozen[name], 0))


@pytest.mark.parametrize("learn", [True, False])
def test_norms_and_biases_learn_only_if_asked(make, bench, tmp_path, learn):
    model, spy = make(), Spy(bench.trainer(tmp_path))
    EdgePopup(EdgePopupConfig(epochs=1, learn_norm=learn)).find(model, spy)
    others = [name for name in spy.learning if not name.endswith(".scores")]
    assert bool(others) == learn
    assert not set(others) & set(spy.weights)


def test_convolutions_with_a_bias_are_searched_too(bench, tmp_path):
    model = create_model("spiking_vgg_toy", conv_bias=True, T=2)
    with torch.no_grad():
        model.layers[0].conv.bias.copy_(torch.arange(16))
    config = EdgePopupConfig(epochs=1, learn_norm=False)
    ticket = EdgePopup(config).find(model, bench.trainer(tmp_path).fit)
    assert ticket.tensors["layers.0.conv.bias"].tolist() == list(range(16))
    assert ticket.mask.sparsity == config.sparsity


def test_nothing_removed_is_the_frozen_network(make, bench, tmp_path):
    model, twin = make(), make()
    config = EdgePopupConfig(sparsity=0.0, epochs=1, learn_norm=False)
    ticket = EdgePopup(config).find(model, bench.trainer(tmp_path).fit)
    assert ticket.mask.removed == 0
    for name in PruneConfig().weights(twin):
        assert torch.equal(ticket.tensors[name], twin.state_dict()[name])


def test_signed_constants_are_scaled_by_what_is_kept(make, bench, tmp_path):
    config = EdgePopupConfig(sparsity=0.75, epochs=1, init="signed")
    ticket = EdgePopup(config).find(make(), bench.trainer(tmp_path).fit)
    for name, kept in ticket.mask.items():
        weight = ticket.tensors[name]
        std = (2 / (weight[0].numel() * 0.25)) ** 0.5
        torch.testing.assert_close(weight[kept].abs(), torch.full_like(weight[kept], std))


def test_a_global_threshold_ramps_to_the_sparsity(make, bench, tmp_path):
    seen: list[float] = []
    trainer = bench.trainer(tmp_path)

    def fit(model, phase):
        def look(progress):
            phase.before_step(progress)
            masks = [layer.mask for _, layer in subnets(model)]
            total = sum(m.numel() for m in masks)
            seen.append(1 - sum(int(m.sum()) for m in masks) / total)

        from dataclasses import replace

        return trainer.fit(model, replace(phase, before_step=look))

    config = EdgePopupConfig(sparsity=0.9, epochs=3, scope="global", ramp_epochs=2.0)
    EdgePopup(config).find(make(), fit)
    expected = [0.9 + (0.5 - 0.9) * (1 - min(1.0, i / 6)) ** 3 for i in range(9)]
    assert seen == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("preset", "x"), ("init", "x"), ("ramp_from", 1.0), ("epochs", 0), ("freeze_mask_at", 2.0)],
)
def test_bad_options_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        EdgePopupConfig(**{field: value})
