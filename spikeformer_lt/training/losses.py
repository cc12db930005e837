"""Losses over logits ``[B, T, K]``."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError

LOSSES = ("mean", "tet")


def task_loss(logits: Tensor, target: Tensor, kind: str = "mean") -> Tensor:
    """Cross entropy of spiking logits.

    Args:
        logits: ``[B, T, K]``.
        target: ``[B]`` class indices or ``[B, K]`` probabilities.
        kind: ``mean`` of the logits over T (Spikformer), or ``tet``: mean over T of the cross
            entropy at each step (Deng et al., ICLR 2022, eq. 9 without the MSE term).
    """
    logits = logits.float()
    if kind == "mean":
        return F.cross_entropy(logits.mean(1), target)
    if kind == "tet":
        steps = logits.shape[1]
        return F.cross_entropy(logits.flatten(0, 1), target.repeat_interleave(steps, 0))
    raise ConfigError(f"loss={kind!r} is not one of {', '.join(LOSSES)}")


def distill_loss(logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """KL(teacher || student) of the softened mean logits, times temperature squared.

    Source: Hinton et al., 2015, section 2.
    """
    student = F.log_softmax(logits.float().mean(1) / temperature, dim=1)
    target = F.log_softmax(teacher.float().mean(1) / temperature, dim=1)
    loss = F.kl_div(student, target, reduction="batchmean", log_target=True)
    return loss * temperature**2
