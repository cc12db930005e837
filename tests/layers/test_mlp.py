from __future__ import annotations

import torch

from spikeformer_lt.layers.attention import EncoderBlock, SpikingMLP, SpikingSelfAttention

T, B, N, D = 3, 2, 16, 32


def spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(*shape) < 0.4).double()


def make_block(awaken) -> EncoderBlock:
    block = EncoderBlock(SpikingSelfAttention(D, 4), SpikingMLP(D, 2 * D)).double()
    awaken(block, lambda module: module(spikes(T, B, N, D), T))
    return block.eval()


def test_the_mlp_treats_each_token_by_itself(awaken) -> None:
    mlp = make_block(awaken).mlp
    tokens = spikes(T, B, N, D)
    out = mlp(tokens, T)
    assert 0.05 < out.mean() < 0.6
    for n in (0, 7, N - 1):
        assert torch.equal(mlp(tokens[:, :, n : n + 1], T), out[:, :, n : n + 1])


def test_a_block_adds_attention_and_then_the_mlp(awaken, outputs) -> None:
    block = make_block(awaken)
    tokens = spikes(T, B, N, D)
    with outputs(block) as seen:
        out = block(tokens, T)
    assert len(seen) == 7
    for name, values in seen.items():
        assert 0.05 < values.mean() < 0.6, name
    assert torch.equal(out, tokens + seen["attn.proj.act"] + seen["mlp.fc2.act"])
    middle = tokens + block.attn(tokens, T)
    assert torch.equal(out, middle + block.mlp(middle, T))


def test_the_stream_holds_small_integers(awaken) -> None:
    block = make_block(awaken)
    assert set(block(spikes(T, B, N, D), T).unique().tolist()) == {0.0, 1.0, 2.0, 3.0}


def test_a_block_of_a_static_input_equals_that_of_its_copies(awaken) -> None:
    block = make_block(awaken)
    tokens = spikes(1, B, N, D)
    once = block(tokens, T)
    assert torch.equal(once, block(tokens.expand(T, -1, -1, -1), T))


def test_gradients_reach_every_parameter_and_the_input(awaken) -> None:
    block = make_block(awaken).train()
    tokens = spikes(T, B, N, D).requires_grad_()
    block(tokens, T).square().sum().backward()
    assert tokens.grad.abs().sum() > 0
    for name, parameter in block.named_parameters():
        if not name.endswith("linear.bias"):  # BatchNorm takes a bias before it away
            assert parameter.grad.abs().sum() > 0, name
