"""Controls: what a ticket is compared with, of every search whose ticket is trained again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt import Ticket, create_model, create_search
from spikeformer_lt.errors import ConfigError, TicketError
from spikeformer_lt.mask import Mask
from spikeformer_lt.tickets import MultiSp, MultiSpConfig, PatchConfig, WeightConfig, retrain
from spikeformer_lt.tickets.base import fresh_weights
from spikeformer_lt.tickets.levels import CONTROLS
from spikeformer_lt.training.phase import FitResult


class Fit:
    """Moves every trainable parameter a little and remembers where each phase began."""

    def __init__(self) -> None:
        self.begun: dict[str, dict[str, Tensor]] = {}

    def __call__(self, model: nn.Module, phase) -> FitResult:
        self.begun[phase.name] = {k: v.clone() for k, v in model.state_dict().items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    drawn = torch.Generator().manual_seed(len(name))
                    parameter += 0.1 * torch.randn(parameter.shape, generator=drawn)
        return FitResult(phase.name, 0.0, 0, phase.epochs, 0.0)


def spikformer() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}
    return create_model("spikformer_toy", **sizes)


def tickets(make, search: str, **options) -> dict[str, tuple[Ticket, dict[str, Tensor]]]:
    found = {}
    for kind in CONTROLS:
        model = make()
        start = {k: v.clone() for k, v in model.state_dict().items()}
        made = create_search(search, control=kind, seed=3, **options)
        found[kind] = made.find(model, Fit()), start
        assert found[kind][0].provenance["control"] == kind
    return found


@pytest.mark.parametrize(
    ("search", "options"),
    [
        ("magnitude", {"sparsity": 0.7}),
        ("random", {"sparsity": 0.7}),
        ("early_bird", {"sparsity": 0.7, "epochs": 3, "window": 2}),
        ("imp", {"sparsity": 0.7, "rounds": 1, "epochs": 2, "rewind": "0it"}),
    ],
)
def test_controls_keep_the_counts_and_change_what_they_say(make, search, options, monkeypatch):
    if search in ("imp", "early_bird"):
        monkeypatch.setattr(Fit, "__call__", with_hooks(Fit.__call__))
    found = tickets(make, search, **options)
    ticket, start = found["none"]
    for kind, (other, _) in found.items():
        assert other.mask.layer_sparsity() == ticket.mask.layer_sparsity()
        assert (other.mask == ticket.mask) == (kind != "random")
    random, shuffle, fresh = (found[kind][0] for kind in CONTROLS[1:])
    for name, kept in random.mask.items():
        assert torch.equal(random.tensors[name], torch.where(kept, start[name], 0.0))
    for name, kept in ticket.mask.items():
        assert torch.equal(shuffle.tensors[name] != 0, ticket.tensors[name] != 0)
        assert bool(kept.any()) != torch.equal(fresh.tensors[name], ticket.tensors[name])
        values = set(start[name][start[name] != 0].tolist())
        assert set(shuffle.tensors[name][kept].tolist()) - {0.0} <= values


@pytest.mark.parametrize(
    ("search", "options"),
    [
        ("sparse_training", {"sparsity": 0.7, "epochs": 2}),
        ("edge_popup", {"sparsity": 0.7, "scope": "global"}),
        ("biprop", {"sparsity": 0.7, "init": "kaiming"}),
    ],
)
def test_the_mask_of_a_search_that_ends_trained_is_trained_again(
    make, search, options, monkeypatch
):
    monkeypatch.setattr(Fit, "__call__", with_hooks(Fit.__call__))
    trained = create_search(search, seed=3, **options)
    found, start = trained.find(make(), Fit()), make().state_dict()
    assert trained.trained and found.provenance["trained"]
    for kind in ("start", "random", "shuffle", "fresh"):
        model, again = make(), create_search(search, control=kind, seed=3, **options)
        ticket = again.find(model, Fit())
        assert not again.trained and not ticket.provenance["trained"]
        assert ticket.mask.layer_sparsity() == found.mask.layer_sparsity()
        assert (ticket.mask == found.mask) == (kind != "random")
        start = {**start, **again.begun}  # as its initialisation drew them
        for name, value in model.state_dict().items():
            wanted = torch.where(ticket.mask[name], start[name], 0) if name in found.mask else None
            if kind in ("start", "random"):
                assert torch.equal(value, start[name] if wanted is None else wanted)
            elif wanted is not None:
                assert torch.equal(value, wanted) <= (not bool(ticket.mask[name].any()))
            assert torch.equal(value, ticket.tensors[name])


def with_hooks(train):
    def fit(self, model, phase):
        for hook in phase.hooks:
            hook.start(model, 4, phase.epochs)
        for epoch in range(phase.epochs):
            if any(hook.before_epoch(model, epoch) for hook in phase.hooks):
                break
        return train(self, model, phase)

    return fit


def test_fresh_weights_are_those_of_a_model_made_anew(make):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one, same, other = (fresh_weights(model, seed) for seed in (1, 1, 2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the model itself stays"
        assert torch.equal(one[name], same[name])
        if value.ndim > 1:
            assert not torch.equal(one[name], other[name])
            assert float(one[name].std()) == pytest.approx(float(before[name].std()), rel=0.4)


@pytest.mark.parametrize(("scale", "told"), [(1.0, False), (2.0, True), (0.4, True)])
def test_fresh_weights_of_another_spread_than_the_networks_own_are_told(scale, told, caplog):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[0].weight *= scale  # as a constructor of its own may draw them
    create_search("magnitude", sparsity=0.5, control="fresh").find(net, None)
    assert ("control=fresh: 1 layers draw weights 1.5 times" in caplog.text) == told
    assert ("'0.weight'" in caplog.text) == told


def test_a_model_that_cannot_be_drawn_anew_says_so():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    with pytest.raises(ConfigError, match=r"control=fresh: part, a Own, has no reset_parameters"):
        fresh_weights(nn.ModuleDict({"part": Own()}), 0)


@pytest.mark.parametrize("method", ["latent", "scores"])
@pytest.mark.parametrize("control", CONTROLS)
def test_a_multisp_ticket_is_trained_again_from_the_weights_that_the_control_names(
    tmp_path, method, control
):
    levels = {"patches": PatchConfig(0.25), "weights": WeightConfig(method, 0.6)}
    if method == "scores":
        levels["weights"] = WeightConfig(method, 0.6, init="kaiming", binary=False)
    first = Fit()
    found = MultiSp(MultiSpConfig(epochs=2, **levels), 3).find(spikformer(), first)
    noted = {**found.provenance, "seed": 3}
    Ticket(found.mask, found.tensors, noted).save(tmp_path / "ticket")

    again, model = Fit(), spikformer()
    config = MultiSpConfig(epochs=1, ticket=str(tmp_path / "ticket"), control=control)
    ticket = MultiSp(config, 3).find(model, again)
    assert list(again.begun) == ["retrain"]
    begun, searched = again.begun["retrain"], first.begun["joint"]
    for name, kept in found.mask.items():
        assert torch.equal(begun[name], searched[name]) == (control in ("none", "random"))
        assert (
            sorted(begun[name].flatten().tolist()) == sorted(searched[name].flatten().tolist())
            or control == "fresh"
        )
        assert int(ticket.mask[name].sum()) == int(kept.sum())
        assert torch.equal(ticket.tensors[name] != 0, ticket.mask[name])
    assert (ticket.mask == found.mask) == (control != "random")
    assert ticket.provenance["from_ticket"]["mask_sha256"] == found.mask.sha256
    assert ticket.provenance["config"]["weights"]["sparsity"] == 0.6
    assert model.patch.sparsity == 0.25


def test_start_weights_of_another_beginning_are_refused(tmp_path):
    """A search that began with the weights of --model.init-from is told from one of the seed."""
    model = spikformer()
    with torch.no_grad():
        model.head.weight.add_(1)
    found = MultiSp(MultiSpConfig(epochs=1), 3).find(model, Fit())
    Ticket(found.mask, found.tensors, {**found.provenance, "seed": 3}).save(tmp_path / "ticket")
    config = MultiSpConfig(epochs=1, ticket=str(tmp_path / "ticket"))
    with pytest.raises(
        ConfigError, match=r"multisp\.ticket.* whose search began with these weights"
    ):
        MultiSp(config, 3).find(spikformer(), Fit())
    MultiSp(replace(config, control="fresh"), 3).find(spikformer(), Fit())


def test_start_weights_of_another_seed_are_refused(tmp_path):
    found = MultiSp(MultiSpConfig(epochs=1), 3).find(spikformer(), Fit())
    Ticket(found.mask, found.tensors, {**found.provenance, "seed": 3}).save(tmp_path / "ticket")
    config = MultiSpConfig(epochs=1, ticket=str(tmp_path / "ticket"))
    with pytest.raises(ConfigError, match=r"train.seed=4 is not allowed: 3, with which"):
        MultiSp(config, 4).find(spikformer(), Fit())
    with pytest.raises(ConfigError, match=r"control='fresh' .* multisp.ticket DIR"):
        MultiSpConfig(control="fresh")


@pytest.mark.fault(73)
def test_a_mask_of_another_rate_than_was_asked_for_is_no_ticket(make):
    search = create_search("magnitude", sparsity=0.9)
    weights = dict(search.config.prune.weights(make()))
    search._search = lambda model, fit: Mask.from_scores(weights, 0.5)
    with pytest.raises(TicketError, match=r"magnitude was to remove \d+ of \d+ weights and remov"):
        search.find(make(), Fit())


def test_a_control_is_retrained_as_its_ticket_is(make):
    found = tickets(make, "magnitude", sparsity=0.5)
    for ticket, _ in found.values():
        fit = Fit()
        retrain(make(), ticket, fit, 1)
        begun = fit.begun["retrain"]
        assert all(torch.equal(begun[name], ticket.tensors[name]) for name in ticket.mask)
