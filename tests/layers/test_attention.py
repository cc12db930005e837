from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.attention import SpikingSelfAttention, spiking_attention
from spikeformer_lt.layers.neuron import NeuronConfig

T, B, N, D, HEADS = 3, 2, 16, 32, 4


def spikes(*shape: int, rate: float = 0.4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(*shape) < rate).to(dtype)


@pytest.mark.parametrize("rate", [0.05, 0.4, 1.0])
@pytest.mark.parametrize(("tokens", "width"), [(196, 64), (64, 32), (16, 64), (1, 1), (44, 45)])
def test_both_orders_of_the_product_are_equal_to_the_bit(
    tokens: int, width: int, rate: float
) -> None:
    q, k, v = (spikes(2, 1, 3, tokens, width, rate=rate) for _ in range(3))
    left = (q @ k.transpose(-2, -1)) @ v
    right = q @ (k.transpose(-2, -1) @ v)
    assert torch.equal(left, right)
    assert torch.equal(spiking_attention(q, k, v), left)
    assert rate < 1 or left.max() == tokens * width


@pytest.mark.parametrize(("tokens", "width"), [(196, 64), (64, 32), (16, 64), (32, 32)])
def test_the_cheaper_order_is_taken(tokens: int, width: int) -> None:
    q, k, v = (spikes(2, 1, 3, tokens, width) for _ in range(3))
    with FlopCounterMode(display=False) as counter:
        spiking_attention(q, k, v)
    matrices = 2 * 3
    assert counter.get_total_flops() == 2 * 2 * matrices * tokens * width * min(tokens, width)


def naive(layer: SpikingSelfAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Head by head, (q k^T) v * scale, then the layer's own neurons and projection."""
    unit = {name: getattr(layer, name)(tokens, T) for name in "qkv"}
    out = torch.empty_like(unit["q"])
    width = D // HEADS
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (unit[name][..., part] for name in "qkv")
        weights = torch.einsum("tbid,tbjd->tbij", q, k)
        out[..., part] = torch.einsum("tbij,tbjd->tbid", weights, v) * layer.scale
    return layer.proj(layer.attn_act(out, T), T)


def reset(layer: SpikingSelfAttention) -> None:
    for name in ("q", "k", "v", "proj"):
        getattr(layer, name).act.reset()
    layer.attn_act.reset()


@pytest.fixture
def layer(awaken) -> SpikingSelfAttention:
    made = SpikingSelfAttention(D, HEADS).double()

    def run(module: torch.nn.Module) -> None:
        module(spikes(T, B, N, D, dtype=torch.float64), T)
        reset(made)

    awaken(made, run)
    return made.eval()


def test_it_equals_head_by_head_attention(layer: SpikingSelfAttention, outputs) -> None:
    tokens = spikes(T, B, N, D, dtype=torch.float64)
    with outputs(layer) as seen:
        out = layer(tokens, T)
    reset(layer)
    assert torch.equal(out, naive(layer, tokens))
    assert len(seen) == 5
    for name, values in seen.items():
        assert 0.05 < values.mean() < 0.6, name


def test_attention_does_not_depend_on_the_order_of_tokens_or_samples(
    layer: SpikingSelfAttention,
) -> None:
    tokens = spikes(T, B, N, D, dtype=torch.float64)
    out = layer(tokens, T)
    places, samples = torch.randperm(N), torch.randperm(B)
    reset(layer)
    assert torch.equal(layer(tokens[:, :, places], T), out[:, :, places])
    reset(layer)
    assert torch.equal(layer(tokens[:, samples], T), out[:, samples])


def test_a_static_input_equals_its_copies(layer: SpikingSelfAttention) -> None:
    tokens = spikes(1, B, N, D, dtype=torch.float64)
    once = layer(tokens, T)
    reset(layer)
    assert torch.equal(once, layer(tokens.expand(T, -1, -1, -1), T))
    assert 0.05 < once.mean() < 0.6


def test_sums_over_the_kept_keys_are_scaled_to_all_tokens(layer: SpikingSelfAttention) -> None:
    tokens = spikes(T, B, N, D, dtype=torch.float64)
    layer.rescale_to = 2 * N
    gained = layer(tokens, T)
    layer.rescale_to, layer.scale = None, 2 * layer.scale
    assert torch.equal(gained, layer(tokens, T))
    layer.scale /= 2
    assert not torch.equal(gained, layer(tokens, T))


def test_received_attention_is_the_column_sum_of_the_attention_map(
    layer: SpikingSelfAttention,
) -> None:
    tokens = spikes(T, B, N, D, dtype=torch.float64)
    received = layer.received(tokens, T)
    reset(layer)
    q, k = (
        getattr(layer, name)(tokens, T).unflatten(3, (HEADS, -1)).transpose(2, 3) for name in "qk"
    )
    column_sums = (q @ k.transpose(-2, -1)).sum(-2)  # [T, B, h, N]
    assert torch.equal(received, column_sums.mean((0, 2)))
    assert received.shape == (B, N)
    assert received.std() > 0


@pytest.mark.parametrize("heads", [0, -1, 3, 64])
def test_heads_that_do_not_divide_the_width_are_refused(heads: int) -> None:
    with pytest.raises(ConfigError, match=rf"num_heads={heads} .*dim=32"):
        SpikingSelfAttention(32, heads)


@pytest.mark.parametrize(("bias", "qkv_bias"), [(True, True), (True, False), (False, True)])
def test_biases_are_where_they_were_asked_for(bias: bool, qkv_bias: bool) -> None:
    layer = SpikingSelfAttention(D, HEADS, bias=bias, qkv_bias=qkv_bias)
    has = {name: getattr(layer, name).linear.bias is not None for name in ("q", "k", "v", "proj")}
    assert has == {**dict.fromkeys("qkv", bias and qkv_bias), "proj": bias}


def test_only_the_attention_neuron_has_its_own_threshold() -> None:
    layer = SpikingSelfAttention(D, HEADS, neuron=NeuronConfig(v_threshold=0.9, tau=1.5))
    assert (layer.attn_act.v_threshold, layer.q.act.v_threshold) == (0.5, 0.9)
    assert layer.attn_act.tau == layer.proj.act.tau == 1.5
