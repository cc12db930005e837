from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from spikeformer_lt.disk import read_tensors, write_tensors
from spikeformer_lt.errors import CheckpointError, ConfigError, MaskError
from spikeformer_lt.training.optim import Ema


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def move(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    model.train()
    model(torch.randn(5, 4, generator=generator))  # moves the BatchNorm's statistics, too


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def settled(model: nn.Module, decay: float) -> Ema:
    """An average after its warm-up."""
    ema = Ema(model, decay)
    ema.updates = 10**6
    return ema


def test_the_average_of_a_scalar_by_hand():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = settled(model, 0.75)
    for weight, expected in ((2.0, 1.25), (5.0, 2.1875), (2.1875, 2.1875)):
        with torch.no_grad():
            model.weight.fill_(weight)
        ema.update(model)
        assert ema.weights()["weight"].item() == expected


def test_warmup_starts_with_a_short_memory_and_ends_at_the_decay():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    ema = Ema(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    expected = 0.0
    for n in range(1, 12):
        ema.update(model)
        keep = min(0.5, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep)
        assert ema.weights()["weight"].item() == pytest.approx(expected, abs=1e-6)
    assert keep == 0.5
    assert (1 + 1) / (10 + 1) < 0.5


def test_names_are_those_of_the_state_dict_and_buffers_are_averaged_too():
    model = net()
    ema = settled(model, 0.9)
    first = snapshot(model)
    move(model, 0)
    ema.update(model)
    assert list(ema.weights()) == list(model.state_dict())
    now = model.state_dict()
    for name in ("0.weight", "1.running_mean", "1.running_var"):
        torch.testing.assert_close(ema.weights()[name], 0.9 * first[name] + 0.1 * now[name])
    counter = ema.weights()["1.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter.item() == 1


def test_the_average_is_float32_under_half_precision_weights_and_never_aliases_them():
    model = net().to(torch.bfloat16)
    ema = settled(model, 0.999)
    start = ema.weights()["0.weight"].clone()
    assert start.dtype == torch.float32
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert torch.equal(ema.weights()["0.weight"], start)
    for _ in range(100):
        ema.update(model)
    # A bfloat16 average would not move at all: 0.001 is below half of its last place at 1.
    torch.testing.assert_close(
        ema.weights()["0.weight"] - start, torch.full_like(start, 1 - 0.999**100), atol=5e-3, rtol=0
    )
    assert Ema(net().double(), 0.9).weights()["0.weight"].dtype == torch.float64


def test_a_live_spiking_network_can_be_averaged_though_it_cannot_be_copied():
    model = nn.Sequential(nn.Linear(4, 4), neuron.LIFNode(step_mode="m"))
    model(torch.randn(3, 2, 4))
    assert model[1].v.requires_grad
    ema = Ema(model, 0.9)
    ema.update(model)
    with ema.swapped(model):
        pass


def test_swapped_lends_the_average_and_gives_the_weights_back_to_the_bit():
    model = net()
    ema = Ema(model, 0.5)
    move(model, 0)
    ema.update(model)
    own = snapshot(model)
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    with ema.swapped(model):
        for name, value in model.state_dict().items():
            assert torch.equal(value, ema.weights()[name].to(value.dtype))
        assert not torch.equal(model[0].weight, own["0.weight"])
        assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == objects

    with pytest.raises(RuntimeError, match="amid"), ema.swapped(model):
        raise RuntimeError("amid the evaluation")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())


@pytest.mark.fault(6)
def test_a_resumed_average_goes_on_to_the_same_bits(tmp_path):
    def run(steps: range, model: nn.Module, ema: Ema) -> None:
        for step in steps:
            move(model, step)
            ema.update(model)

    straight = net()
    expected = Ema(straight, 0.99)
    run(range(8), straight, expected)

    model = net()
    ema = Ema(model, 0.99)
    run(range(3), model, ema)
    write_tensors(tmp_path / "ema.safetensors", ema.tensors())
    resumed = net()
    resumed.load_state_dict(model.state_dict())
    ema = Ema(resumed, 0.99)
    ema.load(read_tensors(tmp_path / "ema.safetensors")[0])
    assert ema.updates == 3
    run(range(3, 8), resumed, ema)
    for name, value in expected.weights().items():
        assert torch.equal(ema.weights()[name], value), name


@pytest.mark.fault(47)
def test_removed_weights_are_exactly_zero_also_where_they_were_nan():
    model = net()
    ema = Ema(model, 0.9)
    ema.weights()["0.weight"][0, 0] = float("nan")
    kept = torch.rand(6, 4) < 0.5
    kept[0, 0] = False
    ema.apply_mask({"0.weight": kept})
    average = ema.weights()["0.weight"]
    assert torch.equal(average[~kept], torch.zeros(int((~kept).sum())))
    assert torch.equal(average[kept], model[0].weight[kept])
    with torch.no_grad():
        model[0].weight.masked_fill_(~kept, 0)
    ema.update(model)
    assert not average[~kept].any(), "zero stays zero while the weights are masked"


def test_a_mask_of_another_model_is_refused():
    ema = Ema(net(), 0.9)
    with pytest.raises(MaskError, match=r"no '0\.wieght'; did you mean '0\.weight'"):
        ema.apply_mask({"0.wieght": torch.ones(6, 4, dtype=torch.bool)})
    with pytest.raises(MaskError, match=r"shape \[4, 6\], the weight average \[6, 4\]"):
        ema.apply_mask({"0.weight": torch.ones(4, 6, dtype=torch.bool)})


def test_a_model_that_was_changed_is_refused_by_name():
    model = net()
    ema = Ema(model, 0.9)
    model.add_module("3", nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"gained '3\.weight'"):
        ema.update(model)
    smaller = net()
    smaller[2] = nn.Linear(6, 3)
    changed = r"'2\.weight' has changed from \[2, 6\] to \[3, 6\]"
    with pytest.raises(ConfigError, match=changed), ema.swapped(smaller):
        pass
    assert ema.updates == 0


def test_a_foreign_checkpoint_is_refused_and_changes_nothing():
    ema = Ema(net(), 0.9)
    before = {name: value.clone() for name, value in ema.tensors().items()}
    good = ema.tensors()
    for change, message in (
        ({"0.weight": torch.zeros(3, 3)}, r"float32 \[3, 3\] in the\s+checkpoint"),
        ({"0.weight": torch.zeros(6, 4, dtype=torch.float64)}, "float64"),
        ({"more": torch.zeros(1)}, "'more': float32 .* nothing in the model"),
        ({"0.weight": None}, "'0.weight': nothing in the checkpoint"),
        ({"ema.updates": None}, "'ema.updates': nothing in the checkpoint"),
    ):
        tensors = {k: v for k, v in {**good, **change}.items() if v is not None}
        with pytest.raises(CheckpointError, match=message):
            ema.load({k: v + 1 if k == "0.bias" else v for k, v in tensors.items()})
    assert all(torch.equal(ema.tensors()[name], value) for name, value in before.items())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ConfigError, match="ema_decay"):
        Ema(net(), decay)
