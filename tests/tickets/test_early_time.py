"""Early-Time: which T it chooses, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from spikeformer_lt import create_search
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.tickets import (
    EarlyTime,
    EarlyTimeConfig,
    Imp,
    ImpConfig,
    RandomConfig,
    RandomTicket,
)
from spikeformer_lt.tickets.early_time import at_time, choose_time, divergences
from spikeformer_lt.training import OptimConfig, TrainConfig

values = st.lists(st.floats(1e-9, 10), max_size=8)


@given(values, st.floats(0, 1), st.sampled_from(["paper", "code"]))
def test_the_choice_is_the_first_below_the_threshold(found, threshold, order):
    T = len(found) + 2
    chosen = choose_time(found, T, threshold, order)
    assert 2 <= chosen <= T
    unit = found[0] if found and order == "paper" else max(found, default=1.0)
    assert all(value / unit >= threshold for value in found[: chosen - 2])
    assert chosen == T or found[chosen - 2] / unit < threshold


def test_a_phase_before_has_the_rate_that_it_names_and_the_other_options_of_the_run():
    own = OptimConfig(lr=0.0007, score_lr=0.3, min_lr=0.0)
    phases = TrainConfig(optim=own, phases=("1x5@6e-4", "12x30")).stretches
    assert phases == [(1, 5, replace(own, lr=6e-4)), (12, 30, None)]
    with pytest.raises(ConfigError, match=r"train\.phases='1x5@0': optim\.lr=0\.0 is not allowed"):
        TrainConfig(phases=("1x5@0",))


def test_the_limits():
    assert choose_time([3.0, 2.0, 1.0], 5, 0.0, "paper") == 5  # nothing is below 0
    assert choose_time([3.0, 2.0, 1.0], 5, 1.0, "paper") == 3  # t = 2 is 1 by definition
    assert choose_time([2.0, 3.0, 1.0], 5, 1.0, "code") == 2  # below the largest
    assert choose_time([], 2, 0.6, "paper") == 2
    assert choose_time([], 1, 0.6, "paper") == 1
    assert choose_time([0.0, 0.0], 4, 0.6, "paper") == 2  # the output does not change


class Fixed(nn.Module):
    """Gives the same logits at every step for all images."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.T = logits, len(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1, -1)


@pytest.mark.parametrize("order", ["paper", "code"])
def test_divergences_are_torch_s_kl(order):
    torch.manual_seed(0)
    logits = torch.randn(4, 5, dtype=torch.float64)
    found = divergences(Fixed(logits), torch.zeros(3, 1), order, batch=2)
    logs = [F.log_softmax(logits[:t].mean(0), 0) for t in range(1, 5)]
    for t, value in zip((2, 3), found, strict=True):
        pair = (logs[3], logs[t - 1]) if order == "paper" else (logs[t - 1], logs[3])
        wanted = F.kl_div(*pair, reduction="sum", log_target=True)
        assert value == pytest.approx(float(wanted), rel=1e-12)


def test_the_probe_changes_no_buffer_and_no_mode(make):
    model = make().train()
    model.head.eval() if hasattr(model, "head") else None
    before = {n: v.clone() for n, v in model.named_buffers()}
    modes = [m.training for m in model.modules()]
    divergences(model, torch.randn(6, 3, 16, 16), "paper", batch=4)
    assert all(torch.equal(v, before[n]) for n, v in model.named_buffers())
    assert [m.training for m in model.modules()] == modes


def test_a_model_runs_the_first_steps_and_gets_its_own_t_back(make):
    model = make().eval()
    images = torch.randn(2, 3, 16, 16)
    whole = model(images)
    with at_time(model, 2):
        torch.testing.assert_close(model(images), whole[:, :2])
    assert model.T == 3
    assert torch.equal(model(images), whole)
    with pytest.raises(ValueError, match="stop"), at_time(model, 2):
        raise ValueError("stop")
    assert model.T == 3 and not model._forward_pre_hooks and not model._forward_hooks


def test_frames_are_cut_to_the_first_steps():
    class Frames(nn.Module):
        T = 4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2)

    frames, model = torch.randn(2, 4, 1, 2, 2), Frames()
    with at_time(model, 3):
        assert torch.equal(model(frames), frames[:, :3].flatten(2))


def test_a_model_that_does_not_follow_t_is_refused():
    model = Fixed(torch.zeros(4, 3))
    with pytest.raises(ConfigError, match="gave 4 time steps where T=2"), at_time(model, 2):
        model(torch.zeros(1, 1))
    with pytest.raises(ConfigError, match="no number of time steps"), at_time(nn.Linear(1, 1), 2):
        pass


@pytest.mark.parametrize(("threshold", "T"), [(0.0, 3), (1.0, 2)])
def test_the_search_inside_runs_at_the_chosen_t(make, bench, tmp_path, threshold, T):
    trainer, seen = bench.trainer(tmp_path), []

    def fit(model, phase):
        seen.append((phase.name, model.T))
        return trainer.fit(model, phase)

    config = EarlyTimeConfig(epochs=1, images=20, threshold=threshold, order="code")
    inner = Imp(ImpConfig(levels=(0.5, 0.8), epochs=1, rewind="1it"))
    model = make()
    ticket = EarlyTime(config, batch=trainer.batch, inner=inner).find(model, fit)
    assert model.T == 3
    chosen = ticket.provenance["early_time"]["T_early"]
    assert chosen == T or (threshold == 1.0 and chosen == 3)  # one divergence: it is the largest
    assert seen == [("early_time", 3), ("imp-0", chosen), ("imp-1", chosen)]
    assert [p["phase"] for p in ticket.provenance["phases"]] == ["early_time", "imp-0", "imp-1"]


def test_weights_and_buffers_are_those_of_before_the_probe(make, bench, tmp_path):
    trainer, model = bench.trainer(tmp_path), make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    search = EarlyTime(
        EarlyTimeConfig(epochs=1), batch=trainer.batch, inner=RandomTicket(RandomConfig(0.5))
    )
    ticket = search.find(model, trainer.fit)
    for name, value in before.items():
        kept = ticket.mask[name] if name in ticket.mask else torch.ones_like(value).bool()
        assert torch.equal(ticket.tensors[name], torch.where(kept, value, 0)), name


def test_the_preset_is_the_published_probe():
    asked = EarlyTimeConfig(preset="eccv22", epochs=9, images=3, threshold=0.1, order="code")
    assert EarlyTime(asked).config == EarlyTimeConfig("eccv22", 2, 1000, 0.6, "code")
    assert EarlyTime(EarlyTimeConfig(epochs=9)).config.epochs == 9


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", 2.0), ("order", "x"), ("images", 0), ("epochs", -1)]
)
def test_bad_options_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        EarlyTimeConfig(**{field: value})


def test_a_network_that_ends_trained_at_fewer_steps_says_so(make, bench, tmp_path, caplog):
    for control, told in (("none", 1), ("start", 0)):
        trainer = bench.trainer(tmp_path / control)
        config = EarlyTimeConfig(epochs=1, images=20, threshold=1.0, order="code")
        inner = create_search("edge_popup", epochs=1, control=control)
        search = EarlyTime(config, batch=trainer.batch, inner=inner)
        caplog.clear()
        with mock.patch("spikeformer_lt.tickets.early_time.choose_time", return_value=2):
            ticket = search.find(make(), trainer.fit)
        said = [line for line in ticket.provenance["deviations"] if "2 of 3 time steps" in line]
        assert len(said) == told == caplog.text.count("was trained with 2 of 3 time steps")
