"""Phases and the ranges of an optimizer's options."""

from __future__ import annotations

import pytest

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.options import OptimConfig
from spikeformer_lt.training.phase import Phase, Progress


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")), ("score_lr", 0.0),
        ("weight_decay", -0.1), ("momentum", 1.0), ("clip_grad", float("nan")), ("sched", "cos"),
        ("warmup_epochs", -1.0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"optim.{field}"):
        OptimConfig(**{field: value})


def test_progress_counts_parts_of_epochs():
    progress = Progress(epoch=2, step=5, steps_per_epoch=10, epochs=5)
    assert progress.epochs_done == 2.5
    assert progress.fraction == 0.5


def test_a_phase_trains_everything_by_default():
    phase = Phase("joint", 3)
    assert (phase.frozen, phase.settled_from, phase.distill) == ((), 0, 0.0)


def test_a_factor_scales_the_peaks_of_whatever_optimizer_runs():
    usual, own = OptimConfig(lr=0.1, score_lr=0.2), OptimConfig(lr=1.0, opt="momentum")
    scaled = Phase("a", 1, lr_factor=2.0).optimizer(usual)
    assert (scaled.lr, scaled.score_lr) == (0.2, 0.4)
    assert Phase("a", 1, own).optimizer(usual) == own
