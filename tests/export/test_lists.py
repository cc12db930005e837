"""A compact network that runs from lists of its weights is the same network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeformer_lt import create_model
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.export import inference
from spikeformer_lt.export.inference import (
    CompactModel,
    FoldedLinearUnit,
    compact,
)
from spikeformer_lt.export.streaming import Stream
from spikeformer_lt.layers.kernels import bits, dispatch, events, simd, sparse


def pruned(name: str, sparsity: float = 0.5, **options: Any) -> nn.Module:
    """A network whose weights behind the first convolution are pruned, and whose layers fire."""
    torch.manual_seed(0)
    model = create_model(name, **options).double()
    x = torch.randn(8, model.in_channels, *model.image_size).double()
    for module in list(model.modules())[1:]:
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() > 1 and weight.shape[1] != model.in_channels:
            weight.data *= torch.rand(weight.shape) >= sparsity
        if weight is not None and weight.dim() == 1:
            module.bias.data += 0.7
    with torch.no_grad():
        for _ in range(10):
            model(x)
    return model.eval()


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_mode", "numba")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spikformer_toy", {}),
        ("spikformer_toy", {"residual": "iand", "pool_before_act": True}),
        ("spikformer_toy", {"activation": "heaviside"}),
        *((f"{name}_toy", {"T": 2}) for name in ("bestformer", "sdt2", "sdt3")),
        *(pytest.param(f"{name}_toy", {}, marks=pytest.mark.slow)
          for name in ("spikingformer", "qkformer", "sdt", "maxformer")),
        pytest.param("spiking_vgg9", {}, marks=pytest.mark.slow),
        pytest.param("spikformer_toy", {"residual": "or", "v_reset": None}, marks=pytest.mark.slow),
        pytest.param("spiking_resnet19", {}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("forced")
def test_lists_change_no_logit(name: str, options: dict[str, Any]) -> None:
    model = pruned(name, **options)
    x = torch.randn(3, model.in_channels, *model.image_size).double()
    with torch.no_grad():
        wanted = model(x)
    net = compact(model).use_lists("always")
    assert sum(layer.lists for layer in net.layers) > len(net.layers) // 3
    torch.testing.assert_close(net(x), wanted, rtol=0, atol=1e-9)
    assert float(wanted.std()) > 0.005 and "multiply only their kept weights (" in net.describe()


@pytest.mark.usefixtures("forced")
def test_hooks_streams_and_changed_weights_see_the_same_network() -> None:
    model = pruned("spikformer_toy")
    net, x = compact(model).use_lists("always"), torch.randn(2, 3, 32, 32).double()
    wanted, seen = net(x), []
    handle = net.net.conv_pep.stages[1].act.register_forward_hook(
        lambda _, args, out: seen.append(out)
    )
    torch.testing.assert_close(net(x), wanted, rtol=0, atol=1e-9)
    assert seen[0].shape == (4, 2, 32, 32, 8) and set(seen[0].unique().tolist()) == {0.0, 1.0}
    handle.remove()
    stream = Stream(net)
    parts = torch.cat([stream.push(x) for _ in range(4)], 1)
    torch.testing.assert_close(parts, wanted, rtol=0, atol=1e-9)
    net.net.conv_pep.stages[1].synapse.weight.zero_()
    assert not torch.equal(net(x), wanted)


@pytest.mark.parametrize("residual", ["add", "iand"])
def test_hooks_see_tensors_and_may_change_them(residual: str) -> None:
    """A unit whose output is looked at gives tensors; spikes that a hook halves stay halves."""
    model = pruned("spikformer_toy", 0.95, residual=residual).float()
    net, x = compact(model), torch.randn(8, 3, 32, 32)
    assert sum(layer.lists for layer in net.layers) > 8, net.describe()
    dense, seen = compact(model).use_lists("never"), []
    torch.testing.assert_close(net(x), dense(x), rtol=0, atol=0.02)
    for one in (net, dense):
        fc1 = one.net.blocks[0].mlp.fc1
        fc1.register_forward_hook(lambda _, args, out: seen.append((out > 0).float().mean()))
        fc1.register_forward_hook(lambda _, args, out: 0.5 * out)
    torch.testing.assert_close(net(x), dense(x), rtol=0, atol=0.02)
    assert len(seen) == 2 and abs(float(seen[0] - seen[1])) < 1e-3


PARTS = ("conv_pep", "conv_pep.stages.2", "blocks.0", "blocks.1.attn", "blocks.0.mlp")


@pytest.mark.parametrize("place", [*PARTS, "blocks.0.mlp.fc1", "blocks.1.attn.qkv"])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("binary", [True, False])
def test_what_a_hook_changes_in_place_is_seen(place: str, before: bool, binary: bool) -> None:
    """Of any part, before it or behind it, by lists and by bytes as by dense products."""
    model = pruned("spikformer_toy", residual="iand").float()
    seen, found = [], []
    if binary:
        convs = [m for m in model.conv_pep.modules() if isinstance(m, nn.Conv2d)]
        for weight in [conv.weight.data for conv in convs[1:]]:
            weight.copy_(weight.sign() * weight.abs().amax((1, 2, 3), keepdim=True))
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        for name, bias in model.named_parameters():
            bias.add_(0.8 * name.endswith("norm.bias"))
        for _ in range(20):  # statistics of these weights
            model.train()(x)
    model.eval()

    def halve(module: nn.Module, *given: Any) -> None:
        values = given[0] if before else given[1]
        for value in values if isinstance(values, tuple) else (values,):
            if isinstance(value, Tensor) and value.dim() > 3:
                seen.append(float((value > 0).float().mean()))
                value.mul_(0.5)

    for how in ("never" if binary else "always", "plain"):
        net = compact(model).use_lists("never" if how == "plain" else how)
        for module in net.modules() if how == "plain" else ():
            if hasattr(module, "as_bytes"):
                module.as_bytes = False
        part = net.net.get_submodule(place)
        handle = getattr(part, f"register_forward_{'pre_' * before}hook")(halve)
        found.append(net(x.clone()))
        handle.remove()
        assert not torch.equal(found[-1], net(x)), "the hook changed nothing"
    torch.testing.assert_close(*found, rtol=0, atol=0.02)
    assert len(seen) >= 2 and 0.02 < seen[0] < 1


def test_float32_runs_from_lists_and_says_why_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned("spikformer_toy", 0.95).float()
    net, calls, product = compact(model), [], sparse.Product.__call__

    def count(own: sparse.Product, *given: Any) -> Any:
        calls.append(own)
        return product(own, *given)

    monkeypatch.setattr(sparse.Product, "__call__", count)
    net(torch.randn(8, 3, 32, 32))
    assert len(calls) == sum(layer.lists for layer in net.layers) > 8
    with pytest.raises(ConfigError, match="how='alwyas'"):
        net.use_lists("alwyas")
    assert "so chosen" in compact(model).use_lists("never").describe()
    monkeypatch.setattr(dispatch, "_broken", True)
    assert "no kernels run" in net.describe()


def test_bits_do_what_tensors_do() -> None:
    x = (torch.rand(4, 2, 20, 32) < 0.3).float()
    made = bits.Bits.of(x)
    for call in (
        lambda v: v / 2, lambda v: -v, lambda v: v > 0, lambda v: v == 1, lambda v: 2 * v,
        lambda v: v**2, lambda v: torch.where(v > 0, 1.0, -1.0), abs, len, lambda v: v != v,
        lambda v: torch.stack(list(v)), lambda v: v @ torch.ones(32, 3), lambda v: 1 - v,
        lambda v: v[0] + v[1], lambda v: v <= 0,
    ):  # fmt: skip
        found = call(made)
        found = found.dense() if isinstance(found, bits.Bits) else torch.as_tensor(found)
        assert torch.equal(found, torch.as_tensor(call(x)))
    assert made in {made} and float(made.sum()) == float(x.sum())


@pytest.mark.parametrize("processor", ["avx512", "zen4", "zen5", "avx2"])
def test_the_choice_follows_the_density(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simd, "PROCESSOR", processor)

    def layers(sparsity: float, how: str | None = None) -> CompactModel:
        made = compact(pruned("spikformer_toy", sparsity))
        return made if how is None else made.use_lists(how)

    few, many = layers(0.95).layers, layers(0.2).layers
    assert [x.lists for x in few] == [x.ratio > dispatch.WORTH for x in few]
    assert len(few) // 2 < sum(x.lists for x in few) < len(few)  # the first one reads pixels
    assert not any(x.lists for x in many)
    assert all(a.ratio > b.ratio for a, b in zip(few[1:], many[1:], strict=True))
    assert not any(x.lists for x in layers(0.95, "never").layers)
    monkeypatch.setenv("SPIKEFORMER_SPARSE", "some")
    with pytest.raises(ConfigError, match="SPIKEFORMER_SPARSE='some'"):
        layers(0.95)


@pytest.mark.parametrize("processor", ["avx512", "zen4", "zen5"])
def test_binary_convolutions_take_lists_where_these_beat_bytes(
    processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes gain less over Winograd's convolution than over a product of linear maps."""
    monkeypatch.setattr(simd, "PROCESSOR", processor)
    torch.manual_seed(0)
    model: Any = create_model("spikformer_cifar", embed_dim=192, depth=1, num_heads=4).eval()
    convs = [unit.conv for _, unit in model.conv_pep.units()][1:]

    def layers(density: float, bytes_too: bool) -> list[Any]:
        monkeypatch.setattr(inference, "has_byte_products", lambda: bytes_too)
        for conv in convs:
            kept = torch.rand(conv.weight.shape) < density
            conv.weight.data = torch.where(kept, torch.randn(kept.shape).sign(), 0.0)
        found = compact(model).layers
        return [layer for layer in found if layer.name.startswith("conv_pep")][1:]

    few, floats, many = layers(0.05, True), layers(0.05, False), layers(0.4, True)
    assert len(few) == len(convs) and all(layer.lists for layer in few)
    assert not any(layer.lists for layer in many)
    for own, other in zip(few, floats, strict=True):
        assert 1.4 < other.ratio / own.ratio < 1.8


@pytest.mark.parametrize("name", ["spikformer_toy", "spikingformer_toy", "qkformer_toy"])
@pytest.mark.usefixtures("forced")
def test_events_change_no_logit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pruned(name)
    net, x = compact(model).use_lists("never"), torch.randn(3, 3, *model.image_size).double()
    calls: list[int] = []
    multiply = events.Panels.__call__

    def count(panels: events.Panels, x: Tensor, levels: int) -> Tensor:
        calls.append(levels)
        return multiply(panels, x, levels)

    monkeypatch.setattr(events.Panels, "__call__", count)
    with monkeypatch.context() as off:
        off.setattr(dispatch, "event_mode", lambda: "never")
        wanted = net(x)
    assert not calls and float(wanted.std()) > 0.005
    torch.testing.assert_close(net(x), wanted, rtol=0, atol=1e-9)
    linear = [m for m in net.net.modules() if isinstance(m, FoldedLinearUnit)]
    assert len(calls) == len(linear) and (max(calls) > 1) == (name != "spikingformer_toy")


def test_a_map_behind_a_dense_unit_waits_for_events_unless_lists_gain_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simd, "PROCESSOR", "zen4")
    model = pruned("spikformer_toy", embed_dim=128, num_heads=4)

    def lists(density: float, events: str = "auto") -> set[str]:
        monkeypatch.setattr(dispatch, "event_mode", lambda: events)
        for name in ("blocks.0.mlp.fc2", "blocks.0.attn.proj"):
            weight = model.get_submodule(name).linear.weight.data
            weight.copy_(torch.randn(weight.shape) * (torch.rand(weight.shape) < density))
        return {layer.name for layer in compact(model).layers if layer.lists}

    for name in ("blocks.0.mlp.fc1", "blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v"):
        torch.nn.init.normal_(model.get_submodule(name).linear.weight)  # dense
    large, small = "blocks.0.mlp.fc2", "blocks.0.attn.out"
    assert large not in lists(0.5) and small in lists(0.5)
    assert large in lists(0.5, "never") and large in lists(0.1)
