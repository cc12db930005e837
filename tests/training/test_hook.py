"""Hooks: what they keep, and what comes back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import CheckpointError, ConfigError
from spikeformer_lt.training.options import Step
from spikeformer_lt.training.phase import Capture, Hook, Hooks


def run(hook: Hook, model: nn.Linear, steps: int, per_epoch: int = 4, epochs: int = 3) -> list:
    """Start a hook and step a model whose bias counts the updates; returns all states."""
    nn.init.zeros_(model.bias)
    hook.start(model, per_epoch, epochs)
    states = [model.bias.detach().clone()]
    for update in range(1, steps + 1):
        with torch.no_grad():
            model.bias += 1
        hook.after_step(model, update)
        states.append(model.bias.detach().clone())
    return states


@pytest.mark.parametrize(("step", "at"), [("0it", 0), ("3it", 3), ("1ep", 4), ("1ep2it", 6)])
def test_the_state_after_exactly_the_step_is_kept(step, at):
    model, hook = nn.Linear(2, 2), Capture(Step.parse(step))
    states = run(hook, model, 12)
    assert torch.equal(hook.captured["bias"], states[at])
    assert hook.captured.keys() == model.state_dict().keys()


def test_a_step_after_the_end_is_refused():
    with pytest.raises(ConfigError, match="'4ep' is iteration 16, but the phase ends at 12"):
        run(Capture(Step(4)), nn.Linear(2, 2), 0)


def test_a_skipped_update_is_captured_at_the_next_one():
    model, hook = nn.Linear(2, 2), Capture(Step(0, 2))
    hook.start(model, 4, 1)
    hook.after_step(model, 3)  # update 2 was skipped
    assert hook.captured


def test_a_loaded_capture_is_the_saved_one():
    first, second = Capture(Step()), Capture(Step())
    run(first, nn.Linear(2, 2), 1)
    run(second, nn.Linear(2, 2), 1)
    hooks = Hooks([Hook(), second])
    saved = Hooks([Hook(), first])
    hooks.load(saved.tensors(), saved.state())
    assert all(torch.equal(second.captured[k], v) for k, v in first.captured.items())


def test_another_number_of_hooks_is_refused():
    with pytest.raises(CheckpointError, match="2 hooks, this one has 1"):
        Hooks([Hook()]).load({}, [{}, {}])


def test_every_hook_is_asked_whether_to_end():
    class Once(Hook):
        asked = 0

        def before_epoch(self, model: nn.Module, epoch: int) -> bool:
            self.asked += 1
            return epoch > 0

    both = (Once(), Once())
    hooks = Hooks(both)
    assert not hooks.before_epoch(nn.Linear(1, 1), 0)
    assert hooks.before_epoch(nn.Linear(1, 1), 1)
    assert [hook.asked for hook in both] == [2, 2]
