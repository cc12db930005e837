"""Spiking ResNet-19 against torch's own modules, step by step, and the published count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.models.spiking_resnet import ResidualBlock, SpikingResNet
from spikeformer_lt.registry import create_model
from spikeformer_lt.tickets import PruneConfig, magnitudes

T = 4


def test_resnet19_has_the_published_number_of_parameters() -> None:
    """Every trainable number counts: weights, biases of the linear maps, BatchNorm's two."""
    with torch.device("meta"):
        model = create_model("spiking_resnet19")
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    weights = sum(layer.weight.numel() for layer in layers)
    biases = sum(layer.bias.numel() for layer in layers if layer.bias is not None)
    norms = [m for m in model.modules() if hasattr(m, "running_mean")]
    affine = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    assert (weights, biases, affine) == (12_619_968, 266, 10_624)
    assert sum(p.numel() for p in model.parameters()) == 12_630_858
    shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(layers) - len(shortcuts) == 19


@pytest.mark.parametrize("neuron", ["lif", "relu"])
def test_at_its_start_every_weight_of_the_published_size_is_felt(neuron: str) -> None:
    """Without BatchNorm, hidden neurons that never fire would leave the head without gradient."""
    torch.manual_seed(0)
    model = create_model("spiking_resnet19", T=2, image_size=16, neuron=neuron).train()
    rates: list[float] = []
    model.hidden.act.register_forward_hook(lambda m, i, o: rates.append(float((o > 0).mean(
        dtype=torch.float32))))  # fmt: skip
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert rates[0] > 0.05 and (neuron == "relu" or rates[0] < 0.9)
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), key


def test_the_toy_is_small_and_every_weight_of_it_is_felt() -> None:
    torch.manual_seed(0)
    model = create_model("spiking_resnet_toy", T=2).train()
    weights = [m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(weights) == 19_952 and len(model.blocks) == 2
    for side in (8, 16, 32):
        toy = create_model("spiking_resnet_toy", image_size=side)
        assert toy(torch.rand(2, 3, side, side)).shape == (2, 4, 10)
    model(torch.randn(8, 3, 16, 16)).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), key


def test_its_maps_shrink_at_each_stage() -> None:
    with torch.device("meta"):
        model = create_model("spiking_resnet19")
    strides = [block.conv1.conv.stride[0] for block in model.blocks]
    assert strides == [2, 1, 1, 2, 1, 1, 2, 1]
    assert [block.shortcut is not None for block in model.blocks] == [s == 2 for s in strides]


class PlainLIF:
    """One step at a time, tau 4/3."""

    def __init__(self) -> None:
        self.v: Tensor | float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        self.v = 0.25 * self.v + 0.75 * x
        spikes = (self.v >= 1).to(x)
        self.v = self.v * (1 - spikes)
        return spikes


def current(layer: nn.Module, x: Tensor) -> Tensor:
    norm = layer.norm
    return F.batch_norm(
        layer.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def by_steps(model: SpikingResNet, x: Tensor, neuron: type) -> Tensor:
    """Logits ``[B, T, K]`` of frames ``[B, T, C, H, W]``, each step after the other."""
    acts: dict[nn.Module, object] = {module: neuron() for module in model.modules()}
    out = []
    for t in range(x.shape[1]):
        maps = acts[model.stem](current(model.stem, x[:, t]))
        for block in model.blocks:
            assert isinstance(block, ResidualBlock)
            inner = acts[block.conv1](current(block.conv1, maps))
            straight = maps if block.shortcut is None else current(block.shortcut, maps)
            maps = acts[block](current(block.conv2, inner) + straight)
        hidden = acts[model.hidden](model.hidden.linear(maps.mean((2, 3))))
        out.append(model.head(hidden))
    return torch.stack(out, 1)


@pytest.mark.parametrize("neuron", ["lif", "relu"])
@pytest.mark.parametrize("side", [8, 9])
def test_it_computes_what_torchs_own_modules_compute(awaken, neuron: str, side: int) -> None:
    torch.manual_seed(0)
    model = SpikingResNet(
        5, T, stem=4, widths=(6, 8), depths=(2, 1), strides=(2, 2), image_size=side, neuron=neuron
    ).double()
    nn.init.normal_(model.hidden.linear.weight, std=0.8)  # so that hidden neurons fire
    x = torch.rand(3, T, 3, side, side, dtype=torch.float64)
    awaken(model, lambda m: m(x))
    rates: list[float] = []
    model.hidden.act.register_forward_hook(lambda m, i, o: rates.append(o.mean().item()))
    with torch.no_grad():
        found = model.eval()(x)
        wanted = by_steps(model, x, PlainLIF if neuron == "lif" else lambda: F.relu)
    assert rates[0] > 0.02
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (8, 8)}, r"widths=\[8, 8\].*one entry for each stage"),
        ({"widths": (), "depths": (), "strides": ()}, "one entry for each stage"),
        ({"strides": (2, 3, 1)}, r"strides=\[2, 3, 1\] is not allowed: each 1 or 2"),
        ({"depths": (1, 0, 1)}, "depths=0"),
        ({"stem": 0}, "stem=0"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpikingResNet(**options)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.5])
@pytest.mark.parametrize("steps", [1, 4])
def test_hidden_neurons_start_at_their_threshold(decay_input, v_reset, steps) -> None:
    torch.manual_seed(0)
    sizes = {"stem": 8, "widths": (8, 16), "depths": (1, 1), "strides": (2, 2), "image_size": 8}
    model = SpikingResNet(10, steps, decay_input=decay_input, v_reset=v_reset, **sizes)
    rates: list[float] = []
    model.hidden.act.register_forward_hook(lambda m, i, o: rates.append(o.mean().item()))
    logits = model.train()(torch.rand(8, 3, 8, 8))
    assert 0.1 < rates[0] < 0.9
    assert bool((logits.std(0) > 0).any())


def test_a_global_pruning_takes_its_share_of_the_hidden_layer() -> None:
    """Weights made large so that the layer fires would all stay."""
    model = create_model("spiking_resnet19", stem=16, widths=(32, 64, 128))
    mask = Mask.from_scores(magnitudes(PruneConfig().weights(model)), 0.5)
    assert mask.layer_sparsity()["hidden.linear.weight"] > 0.1
