"""The compact form is the same network: in float64 spike for spike, in float32 nearly."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.errors import ExportError
from spikeformer_lt.export.api import spike_mismatch
from spikeformer_lt.export.inference import (
    FoldedAttention,
    FoldedBlock,
    FoldedConvUnit,
    FoldedLinearUnit,
    compact,
)
from spikeformer_lt.layers.attention import EncoderBlock, SpikingMLP
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, BatchNorm
from spikeformer_lt.layers.units import LinearUnit

CHOICES = [
    {"activation": "lif", "residual": "add"},
    {"activation": "lif", "residual": "iand", "in_channels": 2, "score": "random"},
    {"activation": "heaviside", "residual": "or", "score": "l2"},
    {"activation": "heaviside", "residual": "add", "patches": 0.0},
    {"activation": "sign", "residual": "or", "score": "tp"},
    {"activation": "relu", "residual": "add", "score": "gumbel"},
    {"activation": "lif", "pool_before_act": True, "score": "attention", "linear_bias": False},
    {"activation": "lif", "v_reset": None, "decay_input": False, "qkv_bias": False},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_float64_logits_and_spikes_are_those_of_the_network(choice, net, images) -> None:
    model, _, _ = net(**choice)
    model.double()
    x = images(model).double()
    fast = compact(model)
    with torch.no_grad():
        wanted = model(x)
    assert wanted.std() > 1e-4
    torch.testing.assert_close(fast(x), wanted, rtol=0, atol=1e-9)
    assert max(spike_mismatch(model, x).values()) == 0
    assert torch.equal(fast(x), fast(x)), "state was left behind"


@pytest.mark.parametrize("choice", CHOICES[:3], ids=str)
def test_float32_spikes_differ_in_less_than_one_of_a_thousand(choice, net, images) -> None:
    model, _, _ = net(**choice)
    rates = spike_mismatch(model, images(model, 8))
    assert rates and max(rates.values()) <= 1e-3


def test_nothing_of_the_training_form_is_left_and_the_network_is_untouched(net) -> None:
    model, _, _ = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    fast = compact(model)
    assert not any(isinstance(m, (BatchNorm, LinearUnit)) for m in fast.modules())
    assert sum(isinstance(m, FoldedConvUnit) for m in fast.modules()) == 5
    assert sum(isinstance(m, FoldedAttention) for m in fast.modules()) == 1
    assert not any(p.requires_grad for p in fast.parameters())
    assert kinds == [type(module) for module in model.modules()]
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())


def test_it_refuses_to_train(net) -> None:
    fast = compact(net()[0])
    with pytest.raises(ExportError, match="cannot be trained"):
        fast.train()
    assert fast.eval() is fast


def killed(model) -> None:
    """Silence filters, and let nothing read others, as structured pruning does."""
    stages, mlp = model.conv_pep.stages, model.blocks[0].mlp
    with torch.no_grad():
        stages[0].conv.weight[1] = 0
        stages[0].norm.bias[1], stages[0].norm.running_mean[1] = -0.5, 0.0
        stages[2].conv.weight[:, 3] = 0
        mlp.fc1.linear.weight[5:9] = 0
        mlp.fc1.norm.bias[5:9] = mlp.fc1.norm.running_mean[5:9] = 0
        mlp.fc1.linear.bias[5:9] = 0
        mlp.fc2.linear.weight[:, 20:22] = 0


@pytest.mark.parametrize("activation", ["lif", "heaviside"])
def test_dead_channels_are_gone_and_missed_by_nobody(activation: str, net, images) -> None:
    model, _, _ = net(activation=activation)
    killed(model)
    model.double()
    fast = compact(model)
    assert fast.removed["conv_pep.stages.0"] >= 1
    assert fast.removed["conv_pep.stages.1"] >= 1
    assert fast.removed["blocks.0.mlp.fc1"] == 6
    stem = fast.net.conv_pep.stages
    assert stem[1].synapse.weight.shape[1] == len(stem[0].synapse.bias) < model.conv_pep.dim // 8
    x = images(model).double()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-9)


def test_a_dead_filter_whose_constant_current_fires_stays(net, images) -> None:
    model, _, _ = net()
    with torch.no_grad():
        model.conv_pep.stages[0].conv.weight[1] = 0
        model.conv_pep.stages[0].norm.running_mean[1] = 0
        model.conv_pep.stages[0].norm.bias[1] = 5.0
    model.double()
    fast = compact(model)
    assert "conv_pep.stages.0" not in fast.removed
    x = images(model).double()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-9)


def test_removed_tokens_are_never_computed(net, images) -> None:
    model, _, _ = net(patches=0.5)
    fast = compact(model)
    seen: list[int] = []
    for module in fast.net.blocks.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda m, a, out: seen.append(out.shape[2]))
    fast(images(model))
    assert seen and set(seen) == {model.num_tokens // 2}


def test_a_stateless_stem_is_computed_once(net, images) -> None:
    model, _, _ = net(activation="heaviside")
    fast = compact(model)
    steps: list[int] = []
    for _, unit in fast.net.conv_pep.units():
        unit.register_forward_hook(lambda m, a, out: steps.append(out[0].shape[0]))
    fast(images(model))
    assert steps == [1] * 5


@pytest.mark.parametrize(
    ("activation", "readers"),
    [
        ("lif", {"attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2"}),
        ("sign", {"attn.out", "mlp.fc2"}),  # tokens of -1 are no bytes
        ("relu", {"attn.out", "mlp.fc2"}),
    ],
)
def test_a_binary_encoder_runs_on_bytes_where_its_inputs_are(
    activation: str, readers: set[str], net, images
) -> None:
    """As tickets of edge-popup and biprop are; wide enough for the byte path to be taken."""
    sizes = {"embed_dim": 128, "num_heads": 4, "mlp_ratio": 1.0, "depth": 2}
    model, _, _ = net(activation=activation, patches=0.0, **sizes)
    with torch.no_grad():
        for part in model.blocks.modules():
            if isinstance(part, LinearUnit):
                part.linear.weight.copy_(part.linear.weight.sign() * 0.05)
    fast, x = compact(model), images(model)
    units = {n: m for n, m in fast.net.named_modules() if isinstance(m, FoldedLinearUnit)}
    found = {name for name, unit in units.items() if unit.synapse.as_bytes}
    assert found == {f"blocks.{i}.{name}" for i in range(2) for name in readers}
    seen: list[torch.Tensor] = []
    for name in found:
        units[name].synapse.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    fast(x)
    assert len(seen) == len(found)
    assert all(bool(((s == s.round()) & (s >= 0) & (s <= 255)).all()) for s in seen)
    assert max(float(s.max()) for s in seen) > 1 or activation != "lif"
    assert max(spike_mismatch(model, x).values()) <= 2e-3
    model.double()
    with torch.no_grad():
        wanted = model(x.double())
    torch.testing.assert_close(compact(model)(x.double()), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("events", ["never", "always"])
@pytest.mark.parametrize("mode", ["numba", "torch"])
def test_sums_with_the_stream_are_made_by_the_pass_of_the_neurons(
    mode: str, events: str, net, images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_mode", mode)
    monkeypatch.setattr(dispatch, "event_mode", lambda: events)
    model = net(activation="heaviside", depth=2, patches=0.0)[0].double()
    x, fast = images(model).double(), compact(model)
    blocks = [m for m in fast.modules() if isinstance(m, EncoderBlock)]
    assert [type(block) for block in blocks] == [FoldedBlock] * 2
    sums: list[bool] = []
    rest = EncoderBlock._rest

    def alone(block: EncoderBlock, *args):
        sums.append(True)
        return rest(block, *args)

    monkeypatch.setattr(EncoderBlock, "_rest", alone)
    found = fast(x)
    assert len(sums) == 1  # the first stream is static, and broadcasts into its first sum
    for block in blocks:
        block.__class__ = EncoderBlock
    assert torch.equal(fast(x), found) and len(sums) == 3 and found.std() > 1e-4
    seen: list[torch.Tensor] = []

    def observe(_, args, out: torch.Tensor) -> None:
        seen.append(out)

    observe.observes_output = True
    handle = blocks[1].mlp.register_forward_hook(observe)
    for block in blocks:
        block.__class__ = FoldedBlock
    assert torch.equal(fast(x), found) and len(sums) == 5 and seen[0].max() == 1  # spikes alone
    handle.remove()


def test_a_block_whose_mlp_computes_otherwise_keeps_its_form(net, images) -> None:
    class Negated(SpikingMLP):
        def forward(self, tokens: torch.Tensor, T: int) -> torch.Tensor:
            return 1 - super().forward(tokens, T)

    model = net(patches=0.0)[0].double()
    model.blocks[0].mlp.__class__ = Negated
    x = images(model).double()
    with torch.no_grad():
        torch.testing.assert_close(compact(model)(x), model(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_neurons_that_differ_keep_their_own_constants(part: str, net, images) -> None:
    """q, k and v run with one neuron where theirs are alike."""
    model, _, _ = net()
    model.double()
    getattr(model.blocks[0].attn, part).act.v_threshold = 0.4
    x, fast = images(model).double(), compact(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=0, atol=1e-9)
    assert not any(isinstance(m, FoldedAttention) for m in fast.modules())


@pytest.mark.parametrize("part", ["blocks.0.mlp.fc1", "blocks.0.mlp.fc1.linear", "blocks.0.attn",
                                  "blocks.0.attn.v.act", "conv_pep.stages.1.norm"])  # fmt: skip
def test_hooks_that_a_network_brings_along_are_called(part: str, net, images) -> None:
    model, _, _ = net()
    model.double()
    plain, x = model(images(model).double()).detach(), images(model).double()
    model.get_submodule(part).register_forward_hook(
        lambda module, given, out: (out[0] * 3, *out[1:]) if isinstance(out, tuple) else out * 3
    )
    fast = compact(model)
    with torch.no_grad():
        wanted = model(x)
    assert not torch.equal(wanted, plain)
    torch.testing.assert_close(fast(x), wanted, rtol=0, atol=1e-9)


def test_steps_of_a_compact_network_can_be_changed(net, images) -> None:
    model, _, _ = net()
    fast, x = compact(model), images(model)
    fast.T = model.T = 5
    assert fast.T == 5 and fast(x).shape[1] == 5
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
