"""models.foreign: networks of timm and torchvision by their names, for a size of images."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("timm", "resnet10t"),
        ("timm", "vit_tiny_patch16_224"),
        ("torchvision", "squeezenet1_1"),
        pytest.param("torchvision", "vit_b_16", marks=pytest.mark.slow),
    ],
)
def test_a_network_of_a_library_takes_the_images_of_a_data_set(model: str, name: str) -> None:
    with torch.device("meta"):
        net = create_model(model, name=name, num_classes=7, image_size=64).eval()
        assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_what_a_library_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^name='?no_such"):
        create_model("timm", name="no_such")
    with pytest.raises(ConfigError, match=r"^name='?no_such"):
        create_model("torchvision", name="no_such")
    with pytest.raises(ConfigError, match=r"in_channels=2.*timm takes any"):
        create_model("torchvision", in_channels=2)
