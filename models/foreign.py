"""Networks of timm and torchvision by their names; training and searches adapt them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from spikeformer_lt.config import check
from spikeformer_lt.registry import register_model


@dataclass(frozen=True)
class TimmConfig:
    """Any network of timm, untrained."""

    name: str = "resnet18"
    """Name, one of timm.list_models()."""


@register_model("timm", TimmConfig)
def timm_network(
    config: TimmConfig,
    num_classes: int = 10,
    T: int = 1,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Module:
    """A network of timm for images of a size; frames of a recording are classified one by one."""
    import timm

    names = timm.list_models(config.name)
    check(bool(names), "timm.name", config.name, "one of timm.list_models()")
    sizes: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    try:
        return timm.create_model(config.name, **sizes, img_size=image_size)
    except TypeError:  # a network for images of any size
        return timm.create_model(config.name, **sizes)


@dataclass(frozen=True)
class TorchvisionConfig:
    """Any classifier of torchvision, untrained."""

    name: str = "resnet18"
    """Name, one of torchvision.models.list_models()."""


@register_model("torchvision", TorchvisionConfig)
def torchvision_network(
    config: TorchvisionConfig,
    num_classes: int = 10,
    T: int = 1,
    in_channels: int = 3,
    image_size: int = 32,
) -> nn.Module:
    """A classifier of torchvision, which takes images of three channels."""
    from torchvision import models

    names = models.list_models(models)
    check(config.name in names, "torchvision.name", config.name, "a name of list_models()")
    check(in_channels == 3, "in_channels", in_channels, "3 for torchvision; timm takes any number")
    size = {"image_size": image_size} if config.name.startswith("vit") else {}
    return models.get_model(config.name, weights=None, num_classes=num_classes, **size)
