"""Small networks and a real trainer for searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from spikeformer_lt import adapt, create_dataset, create_model
from spikeformer_lt.images.splits import Splits
from spikeformer_lt.training.experiment import augmentation
from spikeformer_lt.training.options import DataConfig, OptimConfig, TrainConfig
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.trainer import Trainer

FOREIGN = "module:Sequential"  # a network that no name makes
SIZES = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 3}


@dataclass(frozen=True)
class Make:
    """Makes one network, always with the same initial weights; `known` are its name and sizes."""

    known: tuple[str, dict[str, object]]

    def __call__(self) -> nn.Module:
        torch.manual_seed(0)
        name, sizes = self.known
        return jelly(**sizes) if name == FOREIGN else create_model(name, **sizes)


def jelly(T: int = 3, image_size: int = 16) -> nn.Module:
    """A network of spikingjelly's layers, as its users write them: time first, reset by hand."""
    net = nn.Sequential(
        layer.Conv2d(3, 8, 3, padding=1, bias=False),
        layer.BatchNorm2d(8),
        neuron.LIFNode(surrogate_function=surrogate.ATan(), v_threshold=0.5),
        layer.MaxPool2d(2, 2),
        layer.Conv2d(8, 16, 3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.IFNode(surrogate_function=surrogate.ATan(), v_threshold=0.5),
        layer.AdaptiveAvgPool2d((2, 2)),
        layer.Flatten(),
        layer.Linear(64, 10),
    )
    functional.set_step_mode(net, "m")
    return adapt(net, T, images=torch.zeros(1, 3, image_size, image_size))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "spikformer": Make(("spikformer_toy", SIZES)),
    "vgg": Make(("spiking_vgg_toy", {"image_size": 16, "T": 3})),
    "spikingformer": Make(("spikingformer_toy", SIZES)),
    "qkformer": Make(("qkformer_toy", {**{n: v for n, v in SIZES.items() if n != "depth"},
                                       "depths": (1, 1)})),
    "foreign": Make((FOREIGN, {"image_size": 16, "T": 3})),
}  # fmt: skip
SLOW = ("spikingformer", "qkformer", "foreign")  # they take turns in tests of their own


@dataclass(frozen=True)
class Config:
    """Stands for a recipe's configuration."""

    run: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)


OPTIMS = {
    "adamw": OptimConfig(lr=5e-3, weight_decay=0.05),
    "momentum": OptimConfig(opt="momentum", lr=0.05, weight_decay=0.01, momentum=0.9),
}


class Bench:
    """Makes trainers over the same data, digits unless given, each in a run directory."""

    def __init__(self, data: Splits | None = None) -> None:
        sizes = {"image_size": 16, "limit_train": 60, "limit_test": 20}
        self.data = data or create_dataset("digits", **sizes)
        own = DataConfig(augment="none" if data else "digits", mixup=0.0, smoothing=0.0)
        self.augment, self.mixing = augmentation(own, self.data)

    def trainer(self, folder: Path, stop: object = None, **train: object) -> Trainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        options = {"batch_size": 16, "cpu": True, "optim": "adamw", **train}
        options["optim"] = OPTIMS[options["optim"]]
        config = TrainConfig(**options)
        run = RunDir.open(str(folder), Config(train=config), resume="auto")
        return Trainer(
            self.data,
            config,
            run,
            Accelerator(cpu=True, mixed_precision=config.mixed_precision),
            augment=self.augment,
            mixing=self.mixing,
            stop=stop,
        )


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture(
    params=[pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODELS]
)
def make(request: pytest.FixtureRequest) -> Callable[[], nn.Module]:
    """One network after the other, always with the same initial weights."""
    return MODELS[request.param]
