"""Attention in place is the attention, for both orders of its products."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.kernels import dispatch, matmul


@pytest.mark.parametrize(("tokens", "dim", "heads"), [(5, 32, 2), (50, 64, 2), (1, 48, 1)])
def test_spikes_give_equal_sums_and_gradients(tokens: int, dim: int, heads: int) -> None:
    x = (torch.rand(2, 3, tokens, 3, dim) < 0.4).double().requires_grad_()
    g = torch.randn(2, 3, tokens, dim).double()
    out = matmul.AttentionFunction.apply(x, heads, 0.125)
    wanted = matmul.attend(x, heads, 0.125)
    q, k, v = x.unflatten(-1, (heads, -1)).permute(3, 0, 1, 4, 2, 5)
    first = ((q @ k.transpose(-2, -1)) @ v * 0.125).transpose(2, 3).flatten(3)
    assert torch.equal(out, wanted) and torch.equal(out, first)
    (found,) = torch.autograd.grad(out, x, g)
    (exact,) = torch.autograd.grad(wanted, x, g)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-13 * float(exact.abs().max()))


def test_gradients_can_be_differentiated_again() -> None:
    x = torch.rand(1, 1, 4, 3, 16).double().requires_grad_()

    def twice(out: torch.Tensor) -> torch.Tensor:
        (g,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    fast = twice(matmul.AttentionFunction.apply(x, 1, 1.0))
    torch.testing.assert_close(fast, twice(matmul.attend(x, 1, 1.0)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dim", "heads"), [(64, 2), (48, 4)])  # the second has odd heads
def test_a_layer_gives_the_same_by_torch(
    dim: int, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer = SpikingSelfAttention(dim, heads, scale=1.0).double()
    x = torch.rand(4, 2, 9, dim).double()
    found = []
    for mode in ("torch", "numba"):
        monkeypatch.setattr("spikeformer_lt.layers.kernels.dispatch._mode", mode)
        for unit in (layer.q, layer.k, layer.v, layer.proj):
            torch.nn.init.constant_(unit.norm.bias, 1.0)
        for neuron in (layer.q.act, layer.k.act, layer.v.act, layer.attn_act, layer.proj.act):
            neuron.reset()
        spikes = layer(x, 4)
        found.append((spikes.detach(), *torch.autograd.grad(spikes.sum(), layer.parameters())))
    assert 0 < found[0][0].mean() < 1
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_it_steps_aside_where_heads_are_no_vectors() -> None:
    x = torch.rand(4, 4, 64, 3, 96)
    assert dispatch.attention(x, 2, 1.0) is not None
    assert dispatch.attention(x, 16, 1.0) is None
