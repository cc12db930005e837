"""One phase: rows, skipped steps, dead layers, and the same bits for the same seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from spikeformer_lt import create_dataset, create_model
from spikeformer_lt.errors import ConfigError, DataError
from spikeformer_lt.images.augment import Augment, Mixing
from spikeformer_lt.training.monitor import EpochProgress, NonFiniteGuard
from spikeformer_lt.training.options import OptimConfig, TrainConfig
from spikeformer_lt.training.phase import Phase
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.trainer import PhaseRun, Trainer


@dataclass(frozen=True)
class Config:
    """Stands for a recipe's configuration."""

    run: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)


def fitted(folder, epochs=2, depth=1, **kwargs):
    config = TrainConfig(**{"batch_size": 16, "cpu": True, "optim": OptimConfig(lr=5e-3), **kwargs})
    data = create_dataset("digits", image_size=16, limit_train=48, limit_test=40)
    torch.manual_seed(0)
    model = create_model(
        "spikformer_toy", image_size=16, embed_dim=16, depth=depth, num_heads=2, T=2
    )
    run = RunDir.open(str(folder), Config(train=config))
    trainer = Trainer(
        data,
        config,
        run,
        Accelerator(cpu=True),
        augment=Augment.standard("digits"),
        mixing=Mixing(),
    )
    trainer.fit(model, Phase("joint", epochs))
    run.close()
    return model


@pytest.mark.fault(46)
def test_the_same_seed_writes_the_same_summary_twice(tmp_path):
    for name in ("a", "b"):
        fitted(tmp_path / name)
    assert (tmp_path / "a/summary.csv").read_bytes() == (tmp_path / "b/summary.csv").read_bytes()
    fitted(tmp_path / "c", seed=43)
    assert (tmp_path / "a/summary.csv").read_bytes() != (tmp_path / "c/summary.csv").read_bytes()


def test_validation_can_be_rarer_but_never_misses_the_last_epoch(tmp_path):
    fitted(tmp_path / "a", epochs=3, validate_every=2)
    header, *rows = (tmp_path / "a/summary.csv").read_text().splitlines()
    at = header.split(",").index("val_accuracy")
    assert [bool(row.split(",")[at]) for row in rows] == [False, True, True]


@pytest.mark.fault(38)
def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    with pytest.raises((ConfigError, DataError), match="batch"):
        fitted(tmp_path / "a", batch_size=64)


def test_a_step_reads_one_number_however_deep_the_network(tmp_path, monkeypatch):
    """Each reading makes an accelerator wait; what is printed is read when it is printed."""
    reads, inside = [], []

    def counting(read):
        def counted(self, *given):
            reads.extend(inside)
            return read(self, *given)

        return counted

    for name in ("__float__", "__int__", "__bool__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, counting(getattr(torch.Tensor, name)))
    step, shown = PhaseRun._step, EpochProgress.step

    def watched(self, batches):
        batch = [next(batches)]  # what a loader does on the host is its own
        inside.append(1)
        step(self, iter(batch))

    def ended(self, values):
        shown(self, values)
        inside.clear()

    monkeypatch.setattr(PhaseRun, "_step", watched)
    monkeypatch.setattr(EpochProgress, "step", ended)
    counts = []
    for depth in (1, 3):
        reads.clear()
        fitted(tmp_path / str(depth), epochs=1, depth=depth)
        counts.append(len(reads))
    # 2 steps: of each the images are looked at and one flag is read, on the host here.
    assert counts[0] == counts[1] <= 2 * 3, counts


class Reads(TorchDispatchMode):
    """Counts what makes a host wait for a device: values that Python gets from tensors.

    What loads `batches` is not counted, as that is on the host.
    """

    def __init__(self, batches):
        super().__init__()
        self.found, self.batches, self.loads = [], batches, False

    def __iter__(self):
        return self

    def __next__(self):
        self.loads = True
        try:
            return next(self.batches)
        finally:
            self.loads = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if waits and not self.loads:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_reads_no_value_of_the_device_unless_it_is_due(optimizer, tmp_path, monkeypatch):
    """On a GPU 15 of 16 steps leave the guard's findings there; here as if this were one."""
    counts, step = [], PhaseRun._step

    def reads(self, at):
        return at + 1 == self.steps

    def counted(self, batches):
        with Reads(batches) as mode:
            step(self, mode)
        counts.append((reads(self, self.at.step), mode.found))

    def on_a_device(self, images, indices):
        self._batches.append((images, indices))

    monkeypatch.setattr(NonFiniteGuard, "check_batch", on_a_device)
    monkeypatch.setattr(PhaseRun, "_reads", reads)
    monkeypatch.setattr(PhaseRun, "_step", counted)
    fitted(tmp_path, optim=OptimConfig(opt=optimizer, lr=1e-2, clip_grad=1.0))
    assert [due for due, _ in counts] == [False, False, True] * 2
    assert all(len(found) == int(due) for due, found in counts), counts
