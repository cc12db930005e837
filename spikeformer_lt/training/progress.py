"""Progress of an epoch: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch import nn

from spikeformer_lt.layers.patch_select import PatchSelect, kept_count
from spikeformer_lt.layers.subnet import SubnetConv2d

log = logging.getLogger(__name__)


class EpochProgress:
    """Shows steps, images/s, ETA of the whole phase, loss, sparsity and mean firing rate.

    Args:
        title: phase and epoch.
        steps: optimizer steps of this epoch.
        rest: steps of the phase after this epoch (for the ETA).
        images_per_step: images over all ranks.
        show: only one rank shows anything.
        every_s: least seconds between two plain lines.
    """

    def __init__(
        self,
        title: str,
        steps: int,
        rest: int,
        images_per_step: int,
        *,
        show: bool = True,
        every_s: float = 30.0,
    ) -> None:
        self.title, self.steps, self.rest = title, steps, rest
        self.images_per_step, self.every_s, self.show = images_per_step, every_s, show
        self.done, self.start = 0, time.monotonic()
        self.last_line = self.start
        self.bar = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, desc=title, unit="step", leave=False)

    def __enter__(self) -> EpochProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    @property
    def images_per_s(self) -> float:
        """Mean throughput of this epoch."""
        return self.done * self.images_per_step / max(1e-9, time.monotonic() - self.start)

    def step(self, **shown: float) -> None:
        """Count one optimizer step; `shown` values are printed as they come."""
        self.done += 1
        if not self.show:
            return
        if self.bar is not None:
            self.bar.update(1)
            self.bar.set_postfix({k: f"{v:.4g}" for k, v in shown.items()}, refresh=False)
            return
        now = time.monotonic()
        if now - self.last_line < self.every_s:
            return
        self.last_line = now
        left = (self.steps - self.done + self.rest) * (now - self.start) / self.done
        values = "  ".join(f"{k} {v:.4g}" for k, v in shown.items())
        log.info(
            "%s  [%d/%d]  %s  %.0f images/s  ETA %s",
            self.title, self.done, self.steps, values, self.images_per_s, clock(left),
        )  # fmt: skip


def removed(model: nn.Module, masked: int = 0, of: int = 0) -> dict[str, float]:
    """What a model in training has removed now: sparsity of weights and of patches.

    Args:
        model: its convolutions and patch selection are counted.
        masked, of: weights that the search's own mask removes, and has; they count instead of the
            convolutions.
    """
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    total = sum(conv.weight.numel() for conv in convs)
    kept = sum(
        int((conv.mask if isinstance(conv, SubnetConv2d) else conv.weight).count_nonzero())
        for conv in convs
    )
    if of:
        total, kept = of, of - masked
    tokens = int(getattr(model, "num_tokens", 0))
    asked = [m.sparsity for m in model.modules() if isinstance(m, PatchSelect)]
    gone = 1 - kept_count(tokens, asked[0]) / tokens if asked and tokens else 0.0
    return {
        "weight_sparsity": 1 - kept / total if total else 0.0,
        "patch_sparsity": gone,
    }


def epoch_line(row: Mapping[str, Any], epochs: int, images_per_s: float, left_s: float) -> str:
    """One line for the end of an epoch, from its row of the summary."""
    val = "-" if row["val_accuracy"] is None else f"{row['val_accuracy']:.2f} %"
    return (
        f"{row['phase']} epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
        f"train {row['train_accuracy']:.2f} %  val {val}  rate {row['firing_rate']:.3f}  "
        f"removed: weights {100 * row['weight_sparsity']:.1f} % "
        f"patches {100 * row['patch_sparsity']:.1f} %  {images_per_s:.0f} images/s  "
        f"ETA {clock(left_s)}"
    )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
