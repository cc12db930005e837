"""What a checkpoint of a phase holds comes back to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spikeformer_lt.errors import CheckpointError
from spikeformer_lt.training.checkpoint import CheckpointStore
from spikeformer_lt.training.monitor import FiringWatch, NonFiniteGuard
from spikeformer_lt.training.optim import Ema
from spikeformer_lt.training.phase import Hooks, Phase
from spikeformer_lt.training.trainer import Position, restore_position, save_position, state_of


def run_of(width: int = 3, seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, width)).sum().backward()
    optimizer.step()
    ema = Ema(model, 0.9)
    ema.update(model)
    return SimpleNamespace(
        steps=10, model=model, optimizer=optimizer, ema=ema, best=state_of(nn.Linear(width, 2)),
        at=Position(epoch=2, step=seed, best_accuracy=71.5),
        phase=Phase("joint", 4), facts={"joint.epochs": 4},
        trainer=SimpleNamespace(world=1, rank=0, data=SimpleNamespace(preprocess=None)),
        watch=FiringWatch(model), guard=NonFiniteGuard("skip", 5), hooks=Hooks(()),
    )  # fmt: skip


def test_everything_comes_back(tmp_path):
    store, old, new = CheckpointStore(tmp_path), run_of(seed=1), run_of(seed=2)
    old.guard.in_a_row = 3
    save_position(old, store)
    save_position(old, store)
    store.wait()
    assert store.next_number() == 2
    restore_position(new, store.load())
    assert new.at == old.at
    assert new.guard.in_a_row == 3
    assert torch.equal(new.model.weight, old.model.weight)
    assert all(torch.equal(new.ema.weights()[k], v) for k, v in old.ema.weights().items())
    assert all(torch.equal(new.best[k], v) for k, v in old.best.items())
    moments = [o.state_dict()["state"][0]["exp_avg"] for o in (old.optimizer, new.optimizer)]
    assert torch.equal(*moments)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    store = CheckpointStore(tmp_path)
    save_position(run_of(3), store)
    with pytest.raises(CheckpointError, match="weight"):
        restore_position(run_of(5), store.load())


@pytest.mark.parametrize(("step", "steps", "expected"), [(5, 20, 10), (5, 5, 2), (0, 5, 0)])
def test_a_part_of_an_epoch_stays_that_part_on_another_number_of_processes(
    tmp_path, step, steps, expected
):
    store, old, new = CheckpointStore(tmp_path), run_of(seed=1), run_of(seed=2)
    old.at.step, new.steps = step, steps
    save_position(old, store)
    restore_position(new, store.load())
    assert new.at.step == expected
