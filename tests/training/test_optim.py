"""Groups, names and schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.patches import Gumbel, PatchSelect
from spikeformer_lt.layers.subnet import install
from spikeformer_lt.tickets.levels import WeightConfig
from spikeformer_lt.tickets.multisp import install_subnets
from spikeformer_lt.training.checkpoint import flatten_optimizer, restore_optimizer
from spikeformer_lt.training.optim import (
    Schedule,
    build_optimizer,
    check_optimizer,
    lengths,
    parameter_groups,
)
from spikeformer_lt.training.options import OptimConfig


def test_scores_have_their_own_rate_and_nothing_thin_decays():
    model = create_model("spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2)
    install_subnets(model.conv_pep, WeightConfig(method="both"))
    decayed, plain, scores = parameter_groups(model, OptimConfig(lr=1e-3, score_lr=0.05))
    assert {p.ndim for p in plain["params"]} == {1}
    assert min(p.ndim for p in decayed["params"]) >= 2
    assert len(scores["params"]) == 5
    assert (scores["lr"], scores["weight_decay"], plain["weight_decay"]) == (0.05, 0.0, 0.0)
    counted = sum(len(group["params"]) for group in (decayed, plain, scores))
    assert counted == len([p for p in model.parameters() if p.requires_grad])


def test_vectors_decay_where_a_source_decays_them():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for decays in (False, True):
        config = OptimConfig(weight_decay=0.3, decay_vectors=decays)
        matrices, vectors = parameter_groups(net, config)
        assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.3 * decays)


def test_rates_of_layers_fall_from_the_head_to_the_stem_as_timms_do():
    model = create_model("spikformer_toy", image_size=16, embed_dim=16, depth=3, num_heads=2)
    config = OptimConfig(lr=0.1, min_lr=0.01, layer_decay=0.5)
    optimizer = build_optimizer(model, config)
    schedule = Schedule(optimizer, config, 10, 5)
    rates = {}
    for update, rate in ((0, 0.1), (10, None)):
        assert schedule.set(update) == optimizer.param_groups[0]["lr"]
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        own = {name: rates[id(p)] for name, p in model.named_parameters()}
        top = {rate for name, rate in own.items() if name.startswith("head.")}
        assert len(top) == 1 and (rate is None or top == {rate})
        for start, steps in (
            ("blocks.2.", 1),
            ("blocks.1.", 2),
            ("blocks.0.", 3),
            ("conv_pep.", 4),
        ):
            found = {rate for name, rate in own.items() if name.startswith(start)}
            assert [*found] == pytest.approx([max(top) * 0.5**steps])
    assert len(rates) == len([*model.parameters()])
    plain = build_optimizer(model, replace(config, layer_decay=1.0)).param_groups
    assert [len(group["params"]) for group in plain] == [
        len([p for p in model.parameters() if (p.ndim < 2) == thin]) for thin in (False, True)
    ]
    with pytest.raises(ConfigError, match="layer_decay=0"):
        OptimConfig(layer_decay=0.0)


def test_frozen_parameters_are_left_out_and_an_empty_training_is_refused():
    net = nn.Linear(3, 3)
    net.bias.requires_grad_(False)
    assert len(parameter_groups(net, OptimConfig())) == 1
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(net.requires_grad_(False), OptimConfig())


def test_optimizers_are_timms_and_an_unknown_one_is_refused():
    assert type(build_optimizer(nn.Linear(2, 2), OptimConfig(opt="lamb"))).__name__ == "Lamb"
    with pytest.raises(ConfigError, match="optim.opt"):
        build_optimizer(nn.Linear(2, 2), OptimConfig(opt="adamww"))


@pytest.mark.parametrize("sched", ["cosine", "linear", "step", "constant"])
def test_a_rate_is_a_function_of_the_update_alone(sched):
    config = OptimConfig(lr=0.1, sched=sched, warmup_epochs=1, warmup_lr=0.01, min_lr=0.001)

    def fresh():
        return Schedule(build_optimizer(nn.Linear(2, 2), config), config, 100, 10)

    walked = fresh()
    rates = [walked.set(update) for update in range(100)]
    for update in (0, 5, 10, 55, 99):
        assert fresh().set(update) == rates[update]
    assert rates[0] < rates[5] < max(rates)
    if sched in ("cosine", "linear"):
        assert rates[99] < 0.1 * max(rates)
        assert rates[99] >= 0.001
    if sched == "constant":
        assert rates[50] == rates[99] == 0.1


def test_groups_keep_their_ratio_through_the_schedule():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    install(net, "1", "scores", binary=False)
    config = OptimConfig(lr=0.1, score_lr=0.4, min_lr=0.0)
    optimizer = build_optimizer(net, config)
    schedule = Schedule(optimizer, config, 100, 10)
    schedule.set(50)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[-1] == pytest.approx(4 * rates[0])


def test_a_parameter_that_is_called_scores_is_no_score():
    net = nn.Linear(2, 2)
    net.scores = nn.Parameter(torch.ones(2, 2))
    decayed, plain = parameter_groups(net, OptimConfig(lr=0.1, score_lr=0.4))
    assert [len(group["params"]) for group in (decayed, plain)] == [2, 1]
    assert decayed["lr"] == 0.1


@pytest.mark.parametrize("sched", ["cosine", "linear", "step", "constant"])
def test_every_warm_up_starts_at_its_rate_and_ends_at_the_peak(sched):
    config = OptimConfig(lr=0.1, sched=sched, warmup_epochs=2, warmup_lr=0.02, min_lr=0.001)
    schedule = Schedule(build_optimizer(nn.Linear(2, 2), config), config, 1000, 10)
    rates = [schedule.set(update) for update in range(21)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[10] == pytest.approx(0.06)
    assert rates[20] == pytest.approx(0.1, rel=0.05)


def test_the_cooldown_stays_at_the_last_learning_rate():
    model = nn.Linear(2, 2)
    for sched, end in (("cosine", 0.1), ("linear", 0.1), ("step", 0.1), ("constant", 0.1)):
        config = OptimConfig(lr=1.0, min_lr=0.1, sched=sched, cooldown_epochs=2)
        schedule = Schedule(build_optimizer(model, config), config, updates=50, per_epoch=10)
        rates = [schedule.set(update) for update in range(50)]
        assert rates[30:] == pytest.approx([end] * 20)
        assert rates[29] > end or sched == "step"
    config = OptimConfig(lr=0.1, min_lr=0.01, sched="step")
    schedule = Schedule(build_optimizer(model, config), config, updates=30, per_epoch=1)
    rates = [schedule.set(update) for update in range(30)]
    assert rates == pytest.approx([0.1] * 10 + [0.01] * 20), "it falls no lower than min_lr"


@pytest.mark.fault(62)
def test_lengths_follow_the_phase_unless_they_are_absolute():
    scaled = OptimConfig(warmup_epochs=20, cooldown_epochs=10, of_epochs=300)
    assert lengths(scaled, 300) == (20, 10, "")
    assert lengths(scaled, 30) == (2, 1, "")
    assert lengths(replace(scaled, of_epochs=0), 300) == (20, 10, "")
    warmup, cooldown, notice = lengths(replace(scaled, of_epochs=0), 15)
    assert (warmup, cooldown) == (5, 2.5)
    assert "warm-up of 20 epochs and cool-down of 10 leave nothing of 15 epochs" in notice


@pytest.mark.fault(62)
@settings(max_examples=200, deadline=None)
@given(
    st.floats(0, 400), st.floats(0, 400), st.integers(0, 400), st.integers(1, 300),
    st.sampled_from(["cosine", "linear", "step", "constant"]),
)  # fmt: skip
def test_every_phase_reaches_its_peak_or_half_of_it(warmup, cooldown, of_epochs, epochs, sched):
    config = OptimConfig(
        lr=0.1, sched=sched, warmup_epochs=warmup, cooldown_epochs=cooldown, of_epochs=of_epochs
    )
    schedule = Schedule(build_optimizer(nn.Linear(2, 2), config), config, 10 * epochs, 10)
    assert max(schedule.set(update) for update in range(10 * epochs)) > 0.05


def test_a_selection_of_tokens_learns_at_the_rate_of_the_stem():
    """It is a child behind the head, and would move each layer by one."""
    model, config = create_model("spikformer_toy", depth=2), OptimConfig(layer_decay=0.5)

    def rates():
        groups = parameter_groups(model, config)
        by = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
        return {name: by[id(p)] for name, p in model.named_parameters()}

    before = rates()
    model.set_patch(PatchSelect(Gumbel(model.embed_dim), 0.5))
    after = rates()
    assert {name: after[name] for name in before} == before and before["head.weight"] == 1.0
    added = {after[name] for name in after.keys() - before.keys()}
    assert added == {before["conv_pep.stages.0.conv.weight"]}


@pytest.mark.parametrize("name", ["adahessian", "fusedadam", "adafactorbv"])
def test_an_optimizer_that_cannot_step_here_or_be_saved_is_refused_first(name):
    with pytest.raises(ConfigError, match=f"optim.opt={name} cannot be used here: "):
        check_optimizer(OptimConfig(opt=name))


def test_trying_an_optimizer_draws_no_number():
    before = torch.get_rng_state()
    check_optimizer(OptimConfig(opt="kron"))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["novograd", "lamb", "adafactor", "kron"])
def test_the_state_of_an_optimizer_goes_through_a_checkpoint(name):
    """NovoGrad has one second moment for a layer."""
    torch.manual_seed(0)
    nets = nn.Linear(4, 3), nn.Linear(4, 3)
    nets[1].load_state_dict(nets[0].state_dict())
    first, second = (build_optimizer(net, OptimConfig(opt=name)) for net in nets)

    def step(place):
        (first, second)[place].zero_grad()
        nets[place](torch.ones(2, 4)).square().sum().backward()
        torch.manual_seed(1)
        (first, second)[place].step()

    step(0)
    nets[1].load_state_dict(nets[0].state_dict())
    restore_optimizer(second, *flatten_optimizer(first.state_dict()))
    step(0)
    step(1)
    assert torch.equal(nets[0].weight, nets[1].weight)
