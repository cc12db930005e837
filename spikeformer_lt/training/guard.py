"""The guard against NaN and infinity, which does not ask the loss.

A NaN never reaches the threshold, so a spiking network that is fed one stays silent and its loss
finite, while its gradients, the statistics of its BatchNorms and its membranes are lost already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.errors import DataError, NonFiniteError, shown
from spikeformer_lt.training.ranks import agreed, together

__all__ = ["NonFiniteGuard", "count_nonfinite"]

log = logging.getLogger(__name__)

POLICIES = ("stop", "skip")
LISTED = 5  # indices that a message shows


def count_nonfinite(tensor: Tensor) -> int:
    """Count the NaNs and infinities; 0 for integers and booleans."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return tensor.numel() - int(torch.isfinite(tensor.detach()).sum())


class NonFiniteGuard:
    """Stops, or skips a step, when something that must be finite is not.

    The order of calls in a step: `keep_buffers`, then for each batch `check_batch` and forward and
    backward, then `check_step`; where that returns True, `restore_buffers` and no optimizer step.

    Args:
        policy: "stop" raises at the first fault; "skip" leaves the step out and goes on.
        limit: that many skipped steps in a row are one too many.

    Raises:
        ConfigError: an unknown policy, or a limit below 1.
    """

    def __init__(self, policy: str = "stop", limit: int = 10) -> None:
        check(policy in POLICIES, "nonfinite", policy, f"one of {', '.join(POLICIES)}")
        check(limit >= 1, "skip_limit", limit, "an integer >= 1")
        self.policy, self.limit = policy, limit
        self.skipped = 0
        """Steps skipped so far."""
        self.in_a_row = 0
        """Steps skipped since the last good one."""
        self._batch_fault = ""
        self._together = together()

    def check_batch(self, images: Tensor, indices: Iterable[int] | Tensor | None = None) -> bool:
        """Look at a batch before the forward.

        Args:
            images: [B, ...]; integer images are finite by nature.
            indices: the samples' places in the data set, for the message; else in the batch.

        Returns:
            True if the batch is bad and the step will be skipped; `check_step` will say so, too.

        Raises:
            NonFiniteError: (policy "stop") with the samples and the count of bad values.
            DataError: `indices` has not one entry a sample.
        """
        count = count_nonfinite(images)
        if count == 0:
            return False
        rows = (~torch.isfinite(images.detach().flatten(1))).any(1).nonzero().flatten().tolist()
        what = "positions in the batch"
        if indices is not None:
            own = [int(index) for index in indices]
            if len(own) != len(images):
                raise DataError(f"{len(own)} indices were given for {len(images)} samples")
            rows, what = [own[row] for row in rows], "samples of the data set"
        listed = ", ".join(map(str, rows[:LISTED]))
        more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
        self._batch_fault = (
            f"{count} of {images.numel()} input values in {len(rows)} of {len(images)} images "
            f"({what}: {listed}{more})"
        )
        # With several ranks all must stop at the same place: check_step asks them.
        if self.policy == "stop" and not self._together:
            fault, self._batch_fault = self._batch_fault, ""
            raise _error(fault)
        return True

    def check_step(self, grad_norm: Tensor | float, logits: Tensor, model: nn.Module) -> bool:
        """Look at gradients, logits, buffers and membranes after the backward.

        Costs one read of the buffers and membranes and one synchronisation with the device.

        Args:
            grad_norm: total norm of all gradients. Take it by ``get_total_norm`` and clip after
                this: clipping by a norm that is not finite spreads it over all gradients, and then
                the first of them is named, not the one it came from.
            logits: [B, ...] of the last batch.
            model: the network.

        Returns:
            True if this step must be skipped: call `restore_buffers` and leave the optimizer alone.

        Raises:
            NonFiniteError: policy "stop", or `limit` skipped steps in a row; with the first bad
                tensor of each kind.
        """
        fault, self._batch_fault = self._batch_fault, ""
        fault = fault or _step_fault(grad_norm, logits, model)
        # Ranks that part ways would wait for each other forever.
        if self._together and agreed(bool(fault)) and not fault:
            fault = "a tensor of another rank, whose log names it"
        if not fault:
            self.in_a_row = 0
            return False
        if self.policy == "stop":
            raise _error(fault)
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise NonFiniteError(
                f"{self.in_a_row} steps in a row were skipped, the limit; the last one for "
                f"NaN or infinity in {fault}; the last good checkpoint is untouched; lower the "
                "learning rate or look at the data"
            )
        log.warning("skipped a step (%d in a row): NaN or infinity in %s", self.in_a_row, fault)
        return True

    def check_buffers(self, model: nn.Module) -> None:
        """Refuse a model whose parameters or buffers are not finite, e.g. before it is saved.

        Raises:
            NonFiniteError: under either policy, with the first bad one of each kind.
        """
        fault = _faults({"parameter": model.named_parameters(), "buffer": model.named_buffers()})
        if fault:
            raise _error(fault)

    def keep_buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """Copy the buffers, which a forward in train mode changes; nothing under policy "stop"."""
        if self.policy == "stop":
            return {}
        return {name: value.detach().clone() for name, value in model.named_buffers()}

    @torch.no_grad()
    def restore_buffers(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Put back what `keep_buffers` copied; the buffers stay the same objects."""
        own = dict(model.named_buffers())
        for name, value in kept.items():
            own[name].copy_(value)

    def state(self) -> dict[str, int]:
        """Counters for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Take over the counters of `state`."""
        self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])


def _step_fault(grad_norm: Tensor | float, logits: Tensor, model: nn.Module) -> str:
    norm = torch.as_tensor(grad_norm, device=logits.device).detach()
    watched = [value.detach() for _, value in (*_float_buffers(model), *_membranes(model))]
    rest = nn.utils.get_total_norm(watched)
    # One number, so that a device is waited for once.
    probe = torch.isfinite(logits.detach()).all() & torch.isfinite(norm)
    if bool(probe & torch.isfinite(rest.to(logits.device))):
        return ""
    fault = _faults(
        {
            "parameter": model.named_parameters(),
            "logits": [("[B, T, K]", logits)],
            "gradient of": (
                (name, p.grad) for name, p in model.named_parameters() if p.grad is not None
            ),
            "buffer": _float_buffers(model),
            "membrane of": _membranes(model),
        }
    )
    if not fault and not bool(torch.isfinite(norm)):
        fault = "the norm of the gradients, which overflowed though each of them is finite"
    return fault


def _faults(kinds: Mapping[str, Iterable[tuple[str, Tensor]]]) -> str:
    """The first tensor of each kind that is not finite, in words."""
    found = []
    for kind, named in kinds.items():
        counts = ((name, count_nonfinite(value), value.numel()) for name, value in named)
        bad = next(((name, count, of) for name, count, of in counts if count), None)
        if bad is not None:
            found.append(f"{kind} {shown(bad[0])} ({bad[1]} of {bad[2]} values)")
    return ", ".join(found)


def _error(fault: str) -> NonFiniteError:
    return NonFiniteError(
        f"NaN or infinity in {fault}; the last good checkpoint is untouched; look at the data, "
        "lower the learning rate, or set nonfinite to skip"
    )


def _float_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, b) for name, b in model.named_buffers() if b.is_floating_point())


def _membranes(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Voltages `v` that foreign neurons carry as attributes, which `named_buffers` does not see."""
    for name, module in model.named_modules():
        v = getattr(module, "v", None)
        if isinstance(v, Tensor) and v.is_floating_point() and "v" not in module._buffers:
            yield name, v
