"""Spiking VGGs against torch's own modules, step by step, and the published counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.models.spiking_vgg import SpikingVGG
from spikeformer_lt.registry import create_model
from spikeformer_lt.tickets import PruneConfig, magnitudes

T = 4


def counts(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters by what they are."""
    found = {"weights": 0, "conv bias": 0, "norm": 0, "linear bias": 0}
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            found["weights"] += module.weight.numel()
            if module.bias is not None:
                kind = "conv bias" if isinstance(module, nn.Conv2d) else "linear bias"
                found[kind] += module.bias.numel()
        elif hasattr(module, "running_mean"):
            found["norm"] += module.weight.numel() + module.bias.numel()
    return found


def test_vgg16_has_the_published_number_of_parameters() -> None:
    """Every trainable number counts: weights, all biases, BatchNorm's scale and shift."""
    with torch.device("meta"):
        model = create_model("spiking_vgg16")
    parts = {"weights": 14_715_584, "conv bias": 4_224, "norm": 8_448, "linear bias": 10}
    assert counts(model) == parts
    assert sum(p.numel() for p in model.parameters()) == sum(parts.values()) == 14_728_266
    # 1 - 0.75^14 of the prunable weights is the paper's 98.13 % of all its parameters.
    assert round(100 * (1 - 0.75**14) * 14_715_584 / 14_728_266, 2) == pytest.approx(
        98.13, abs=0.01
    )


def test_vgg9_has_the_2_26_million_weights_of_the_paper() -> None:
    with torch.device("meta"):
        model = create_model("spiking_vgg9")
    assert counts(model)["weights"] == 2_263_744
    assert len([m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]) == 9


def test_the_toy_is_small_and_has_no_idle_bias() -> None:
    model = create_model("spiking_vgg_toy")
    assert counts(model)["weights"] == 30_000 and counts(model)["conv bias"] == 0
    for side in (8, 12, 16, 28, 32):
        toy = create_model("spiking_vgg_toy", image_size=side)
        assert toy(torch.rand(2, 3, side, side)).shape == (2, 4, 10)


def test_published_sizes_take_grey_images_and_event_frames() -> None:
    model = create_model("spiking_vgg16", in_channels=1, image_size=28, T=1).eval()
    assert model(torch.rand(1, 1, 28, 28)).shape == (1, 1, 10)
    model = create_model("spiking_vgg9", in_channels=2, image_size=48, T=2, num_classes=11).eval()
    assert model(torch.rand(1, 2, 2, 48, 48)).shape == (1, 2, 11)


class PlainLIF(nn.Module):
    """One step at a time, tau 4/3: a quarter of the voltage and three quarters of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.v = 0.25 * self.v + 0.75 * x
        spikes = (self.v >= 1).to(x)
        self.v = self.v * (1 - spikes)
        return spikes


def reference(model: SpikingVGG, neuron: type[nn.Module]) -> nn.Sequential:
    """The same network of torch's modules on ``[B, C, H, W]``, for one step at a time."""
    parts: list[nn.Module] = []
    for layer in model.layers:
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
            parts.append(type(layer)(2, 2, ceil_mode=True))
            continue
        norm = nn.BatchNorm2d(layer.norm.num_features).double()
        norm.load_state_dict(layer.norm.state_dict())
        parts += [layer.conv, norm.eval(), neuron()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(model.pooled))


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("pooled", [1, 2])
@pytest.mark.parametrize("neuron", ["lif", "relu"])
def test_it_computes_what_torchs_own_modules_compute(awaken, pool, pooled, neuron) -> None:
    torch.manual_seed(0)
    model = SpikingVGG(
        10, T, layers=(6, "M", 8, 8, "M", 12), image_size=9, pool=pool, pooled=pooled, neuron=neuron
    ).double()
    x = torch.rand(3, T, 3, 9, 9, dtype=torch.float64)
    awaken(model, lambda m: m(x))
    plain = reference(model.eval(), PlainLIF if neuron == "lif" else nn.ReLU)
    with torch.no_grad():
        wanted = []
        for t in range(T):
            maps = plain(x[:, t]).permute(0, 2, 3, 1)  # the head reads rows, then channels
            wanted.append(model.head(maps.flatten(1)))
        found = model(x)
    assert found.std() > 0
    torch.testing.assert_close(found, torch.stack(wanted, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "mean"}, "pool='mean' is not one of max, avg"),
        ({"layers": ("M", "M")}, "one width at least"),
        ({"layers": (8, "P")}, "layers=P is not allowed"),
        ({"layers": (8, 0)}, "layers=0 is not allowed"),
        ({"layers": (8, "M"), "image_size": 4, "pooled": 3}, "pooled=3.*leaves a map of 2 x 2"),
        ({"pooled": 0}, "pooled=0"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpikingVGG(**options)


def test_it_starts_as_published() -> None:
    model = create_model("spiking_vgg9", hidden=None, conv_bias=True, head_std=0.01)
    conv = model.layers[-2].conv
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert float(model.head.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
    assert not conv.bias.any() and not model.head.bias.any()


def test_a_small_network_keeps_its_head_in_the_first_global_pruning() -> None:
    model = create_model("spiking_vgg_toy")
    mask = Mask.from_scores(magnitudes(PruneConfig().weights(model)), 0.9)
    assert max(mask.layer_sparsity().values()) < 1
