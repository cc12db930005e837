"""Losses against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.training.trainer import distill_loss, task_loss

LOGITS = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def test_mean_is_the_cross_entropy_of_the_mean_logits():
    assert torch.equal(task_loss(LOGITS, LABELS), F.cross_entropy(LOGITS.mean(1), LABELS))


def test_tet_is_the_mean_of_the_steps_losses_for_hard_and_soft_targets():
    soft = F.one_hot(LABELS, 5).float() * 0.9 + 0.02
    for target in (LABELS, soft):
        steps = [F.cross_entropy(LOGITS[:, t], target) for t in range(3)]
        torch.testing.assert_close(task_loss(LOGITS, target, "tet"), torch.stack(steps).mean())


def test_constant_logits_make_both_losses_equal():
    same = LOGITS[:, :1].expand(-1, 3, -1)
    torch.testing.assert_close(task_loss(same, LABELS), task_loss(same, LABELS, "tet"))


def test_distillation_vanishes_at_equality_and_is_the_scaled_divergence():
    assert float(distill_loss(LOGITS, LOGITS)) == pytest.approx(0, abs=1e-6)
    teacher = LOGITS.flip(0)
    p, q = ((x.mean(1) / 4).softmax(1) for x in (teacher, LOGITS))
    wanted = (p * (p / q).log()).sum(1).mean() * 16
    assert float(distill_loss(LOGITS, teacher, 4.0)) == pytest.approx(float(wanted), rel=1e-4)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match="tet"):
        task_loss(LOGITS, LABELS, "mse")
