"""Mixup, CutMix and label smoothing of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.rng import isolated_rng


@dataclass(frozen=True)
class Mixing:
    """How the images of a batch are blended and their labels softened; off by default.

    Attributes:
        mixup: alpha of the Beta distribution of mixup's weight; 0 is off.
        cutmix: alpha of CutMix's; 0 is off.
        prob: probability that a batch is mixed at all.
        switch_prob: probability of CutMix instead of mixup where both are on.
        smoothing: part of each label that is spread over all classes, in [0, 1).
        until: fraction of a training after which nothing is mixed any more; labels stay smooth.

    Source: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899; run by timm.data.Mixup, which pairs
    sample i of a batch with sample B-1-i.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.0
    until: float = 1.0

    @classmethod
    def standard(cls, augment: str) -> Mixing:
        """Return what goes with a preset of `Augment` or `EventAugment`; off for most.

        Source: "spikformer_cifar": Spikformer's cifar10.yml, off after 200 of 300 epochs;
        "spikformer_dvs": its cifar10dvs/train.py, half of the batches (arXiv:2209.15425).
        """
        return {
            "spikformer_cifar": cls(mixup=0.5, smoothing=0.1, until=2 / 3),
            "spikformer_dvs": cls(mixup=0.5, smoothing=0.1, prob=0.5),
        }.get(augment, cls())

    def check(self, batch_size: int | None = None) -> None:
        """Refuse values out of range, and a batch that cannot be paired; call it before training.

        Args:
            batch_size: samples in a batch of one process.

        Raises:
            ConfigError: with the field, the value and what is allowed.
        """
        for field in ("mixup", "cutmix"):
            value = getattr(self, field)
            check(0 <= value < float("inf"), field, value, "0 (off) or more")
        for field in ("prob", "switch_prob", "until"):
            value = getattr(self, field)
            check(0 <= value <= 1, field, value, "a fraction, 0 to 1")
        check(0 <= self.smoothing < 1, "smoothing", self.smoothing, "it lies in [0, 1)")
        if batch_size is not None and batch_size % 2 and self._mixes():
            raise ConfigError(
                f"batch_size={batch_size} is not allowed with mixup or cutmix, which pair the "
                f"samples of a batch; use an even number, such as {batch_size + 1}"
            )

    def apply(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, *, mix: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and soft targets; the arguments are not changed.

        Args:
            images: float [B, C, H, W], or frames [B, T, C, H, W], mixed alike at all T.
            labels: int64 [B].
            num_classes: number of classes, K.
            seed: decides weight and box, and nothing else does.
            mix: False only smooths, as in the last epochs of a run.

        Returns:
            Images as given in shape and dtype, and float32 targets [B, K] that sum to 1.

        Raises:
            ConfigError: as `check`.
        """
        self.check(len(images) if mix else None)
        if not (mix and self._mixes()):
            off = self.smoothing / num_classes
            targets = torch.full((len(labels), num_classes), off, device=labels.device)
            return images, targets.scatter_(1, labels[:, None], 1 - self.smoothing + off)
        from timm.data.mixup import Mixup

        mixer = Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=self.prob,
            switch_prob=self.switch_prob,
            label_smoothing=self.smoothing,
            num_classes=num_classes,
        )
        with isolated_rng(seed):
            # CutMix cuts dimensions 2 and 3: they must be height and width.
            mixed, targets = mixer(images.clone().flatten(1, -3), labels)
        return mixed.view_as(images), targets

    def _mixes(self) -> bool:
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)
