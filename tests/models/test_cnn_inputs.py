"""The published CNNs at full size: images, grey images and event frames, each trained one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from spikeformer_lt import create_dataset, create_model
from spikeformer_lt.events.frame import EventOptions
from spikeformer_lt.images.loader import ArrayImages
from spikeformer_lt.images.splits import Splits, make_splits
from spikeformer_lt.training.experiment import augmentation
from spikeformer_lt.training.options import DataConfig, OptimConfig, TrainConfig
from spikeformer_lt.training.phase import Phase
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.trainer import Trainer

T = 2


@dataclass(frozen=True)
class Stored:
    """Stands for a recipe's configuration."""

    train: TrainConfig
    run: str = ""


def noise(channels: int, side: int) -> Splits:
    generator = torch.Generator().manual_seed(0)
    shape = (140, channels, side, side)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.arange(140) % 10
    about = {"num_classes": 10, "mean": (0.5,) * channels, "std": (0.3,) * channels}
    pool, test = (
        ArrayImages(name, images[part], labels[part], **about)
        for name, part in (("train", slice(0, 120)), ("test", slice(120, 140)))
    )
    return make_splits("noise", pool, test, limit_train=10)


def frames() -> Splits:
    limits = {"image_size": 32, "limit_train": 10, "limit_test": 10}
    return create_dataset("moving_digits", **limits, events=EventOptions(T=T, cache="none"))


KINDS: dict[str, Callable[[], Splits]] = {
    "32x32 RGB": lambda: noise(3, 32),
    "28x28 grey": lambda: noise(1, 28),
    "event frames": frames,
}


NAMES = ("spiking_resnet19", "spiking_vgg9", "spiking_vgg16")
PAIRS = [
    pytest.param(name, kind, marks=() if i == j else pytest.mark.slow)
    for i, name in enumerate(NAMES)
    for j, kind in enumerate(KINDS)
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_step_moves_every_weight(name: str, kind: str, tmp_path: Path) -> None:
    data = KINDS[kind]()
    torch.manual_seed(0)
    model = create_model(name, T=T, in_channels=data.in_channels, image_size=data.image_size)
    x = torch.rand(2, *data.train[0][0].shape)
    assert x.ndim == (5 if kind == "event frames" else 4)
    assert model.eval()(x).shape == (2, T, 10)
    AcceleratorState._reset_state(reset_partial_state=True)
    train = TrainConfig(batch_size=8, cpu=True, optim=OptimConfig(opt="sgd", lr=0.01))
    augment, mixing = augmentation(DataConfig(augment="none"), data)
    run = RunDir.open(str(tmp_path / "run"), Stored(train))
    trainer = Trainer(data, train, run, Accelerator(cpu=True), augment=augment, mixing=mixing)
    before = {key: value.clone() for key, value in model.named_parameters()}
    result = trainer.fit(model, Phase("step", 1))
    assert result.epochs == 1 and 0 <= result.val_accuracy <= 100
    for key, parameter in model.named_parameters():
        idle = key.endswith("conv.bias")  # BatchNorm takes it out again
        assert idle or not torch.equal(parameter, before[key]), key
