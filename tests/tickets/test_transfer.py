"""Tickets moved from ReLU networks to spiking ones, to another T and to other classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt import Mask, Ticket, create_model
from spikeformer_lt.errors import ConfigError, DataError, TicketError
from spikeformer_lt.images.loader import eval_loader
from spikeformer_lt.layers.neuron import BatchNorm
from spikeformer_lt.tickets import (
    PruneConfig,
    magnitudes,
    model_from_ticket,
    retrain,
    transfer_ticket,
)
from spikeformer_lt.tickets.surgery import estimate_norms
from spikeformer_lt.training.phase import Phase

ARGS = {"image_size": 8, "T": 3, "num_classes": 10}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def network(seed: int = 0, **options) -> nn.Module:
    torch.manual_seed(seed)
    return create_model("spiking_vgg_toy", **{**ARGS, **options})


def images(count: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def found(**options) -> Ticket:
    """A ticket of a ReLU network with statistics of its own activity."""
    model = network(neuron="relu", **options)
    mask = Mask.from_scores(magnitudes(PruneConfig().weights(model)), 0.5)
    mask.apply_(model)
    estimate_norms(model, [images(seed=9)])
    args = {**ARGS, "neuron": "relu", **options}
    return Ticket.of(model, mask, {"model": {"name": "spiking_vgg_toy", "args": args}})


def split(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights, and BatchNorm's running statistics."""
    statistics = {name: tensor for name, tensor in state.items() if name.endswith(STATISTICS)}
    return {name: state[name] for name in state if name not in statistics}, statistics


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_weights_mask_and_norms_arrive_bit_for_bit() -> None:
    ticket, model = found(), network(seed=1).eval()
    moved = transfer_ticket(ticket, model, neuron="lif")
    assert moved.mask == ticket.mask and moved.mask.sparsity == 0.5
    assert_same(dict(model.state_dict()), ticket.tensors)
    assert_same(moved.tensors, ticket.tensors)
    for name, kept in moved.mask.items():
        assert not model.get_parameter(name)[~kept].any()
    spiking, plain = model(images()), model_from_ticket(ticket)(images())
    assert not torch.allclose(spiking, plain)
    model.set_neuron("relu")
    assert torch.equal(model(images()), plain)


@pytest.mark.parametrize("kind", ["random", "shuffle", "fresh"])
def test_a_control_stands_in_the_tickets_place(kind: str) -> None:
    ticket, model = found(), network(seed=1)
    moved = transfer_ticket(ticket, model, control=kind, seed=3, neuron="lif")
    again = transfer_ticket(ticket, network(seed=2), control=kind, seed=3, neuron="lif")
    assert (moved.mask == ticket.mask) == (kind != "random") and moved.mask == again.mask
    assert moved.provenance["control"] == kind
    for name, kept in moved.mask.items():
        own, values = ticket.tensors[name], moved.tensors[name]
        assert int(kept.sum()) == int(ticket.mask[name].sum()) and not values[~kept].any()
        assert torch.equal(values, again.tensors[name]) and not torch.equal(values, own)
        same = torch.equal(values[kept].sort()[0], own[ticket.mask[name]].sort()[0])
        assert same == (kind != "fresh")
        assert torch.equal(model.get_parameter(name), values)


@pytest.mark.parametrize("norm", ["reset", "estimate"])
def test_new_statistics_leave_weights_alone(norm: str) -> None:
    ticket, model = found(), network(seed=1)
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    moved = transfer_ticket(
        ticket, model, norm=norm, batches=[images(), images(8, 1)], neuron="lif"
    )
    weights, statistics = split(moved.tensors)
    assert_same(weights, split(ticket.tensors)[0])
    assert all(bool(value.isfinite().all()) for value in statistics.values())
    fresh = BatchNorm(16).state_dict()
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if norm == "reset":
        assert torch.equal(norms[0].running_var, fresh["running_var"])
        assert not any(layer.running_mean.any() for layer in norms)
    else:
        assert all(int(layer.num_batches_tracked) == 2 for layer in norms)
    assert [module.training for module in model.modules()] == modes
    assert all(layer.momentum == 0.1 for layer in norms)


def test_the_estimate_is_the_mean_of_what_the_layers_see() -> None:
    model = network().double()
    batches = [images().double(), images(8, 1).double()]
    estimate_norms(model, batches)
    first = model.layers[0]
    means, variances = [], []
    for batch in batches:
        current = first.conv(batch).detach().transpose(0, 1).flatten(1)
        count = current.shape[1] * model.T  # the image stands for T equal steps
        means.append(current.mean(1))
        variances.append(current.var(1, correction=0) * count / (count - 1))
    torch.testing.assert_close(first.norm.running_mean, sum(means) / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(first.norm.running_var, sum(variances) / 2, rtol=0, atol=1e-12)
    # Deeper layers see spikes of layers that normalise by the batch, as one training step does.
    trained = network().double().train()
    for layer in trained.modules():
        if isinstance(layer, BatchNorm):
            layer.momentum = 1.0
    trained(batches[0])
    estimate_norms(model, batches[:1])
    for one, other in zip(model.modules(), trained.modules(), strict=True):
        if isinstance(one, BatchNorm):
            torch.testing.assert_close(one.running_mean, other.running_mean, rtol=0, atol=1e-12)
            torch.testing.assert_close(one.running_var, other.running_var, rtol=0, atol=1e-12)


def test_spiking_activity_has_other_statistics_than_that_of_relu() -> None:
    ticket = found()
    moved = transfer_ticket(
        ticket, network(), norm="estimate", batches=[images(seed=9)], neuron="lif"
    )
    name = "layers.2.norm.running_var"
    assert not torch.allclose(moved.tensors[name], ticket.tensors[name], rtol=0.05)
    again = transfer_ticket(
        ticket, network(neuron="relu"), norm="estimate", batches=[images(seed=9)]
    )
    torch.testing.assert_close(again.tensors[name], ticket.tensors[name])  # the same neurons


def test_the_moved_ticket_can_be_saved_and_built_again(tmp_path) -> None:
    model = network(seed=1, T=2)
    moved = transfer_ticket(found(), model, norm="estimate", batches=[images()], neuron="lif", T=2)
    moved.save(tmp_path / "ticket")
    loaded = Ticket.load(tmp_path / "ticket")
    assert loaded.provenance["transfer"] == {
        "norm": "estimate",
        "images": 16,
        "fresh": [],
        "changed": {"neuron": "lif", "T": 2},
        "mask_sha256": moved.mask.sha256,
    }
    again = model_from_ticket(loaded)
    assert torch.equal(again(images()), model.eval()(images()))
    assert again(images()).shape == (16, 2, 10)


def test_another_data_set_keeps_its_own_head() -> None:
    ticket, model = found(), network(seed=1, num_classes=4)
    before = model.head.weight.detach().clone()
    with pytest.raises(TicketError, match=r"head\.weight"):
        transfer_ticket(ticket, model, num_classes=4)
    moved = transfer_ticket(ticket, model, fresh=("head",), num_classes=4, neuron="lif")
    assert torch.equal(model.head.weight, before)
    assert set(ticket.mask) - set(moved.mask) == {"head.weight"}
    assert all(torch.equal(moved.mask[name], ticket.mask[name]) for name in moved.mask)
    assert model_from_ticket(moved)(images()).shape == (16, 3, 4)


def test_what_does_not_fit_is_refused_and_nothing_is_written() -> None:
    ticket, model = found(), network(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="norm.*'kept'.*keep, reset, estimate"):
        transfer_ticket(ticket, model, norm="kept")
    with pytest.raises(ConfigError, match="estimate.*needs batches"):
        transfer_ticket(ticket, model, norm="estimate")
    with pytest.raises(ConfigError, match="fresh.*'heat'"):
        transfer_ticket(ticket, model, fresh=("heat",))
    with pytest.raises(TicketError, match="not of this model"):
        transfer_ticket(ticket, create_model("spikformer_toy"))
    assert_same(dict(model.state_dict()), before)


def test_an_estimate_that_fails_leaves_modes_and_momenta() -> None:
    model = create_model("spiking_vgg_toy", image_size=4, pooled=1, T=1, layers=(4, "M", 4, "M", 4))
    with pytest.raises(DataError, match="one value per channel"):
        estimate_norms(model, [torch.rand(1, 3, 4, 4)])
    assert all(module.training for module in model.modules())
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, BatchNorm))


def test_a_ticket_of_a_trained_relu_network_trains_on_as_a_spiking_one(bench, tmp_path) -> None:
    trainer = bench.trainer(tmp_path / "run")
    torch.manual_seed(0)
    plain = create_model("spiking_vgg_toy", image_size=16, T=3, neuron="relu")
    trainer.fit(plain, Phase("ann", 2))
    mask = Mask.from_scores(magnitudes(PruneConfig().weights(plain)), 0.8)
    ticket = Ticket.of(plain, mask)
    spiking = create_model("spiking_vgg_toy", image_size=16, T=3)
    batch = next(iter(eval_loader(bench.data.train, 32)))[0]
    moved = transfer_ticket(ticket, spiking, norm="estimate", batches=[batch], neuron="lif")
    retrain(spiking, moved, trainer.fit, 1)
    for name, kept in moved.mask.items():
        weight = spiking.get_parameter(name).detach().cpu()
        assert not weight[~kept].any()
        assert not torch.equal(weight, ticket.tensors[name])
