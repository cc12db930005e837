"""Units of ours as they should run: BatchNorm in the synapses, q, k and v in one product."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from spikeformer_lt.export.firing import fire, fire_linear
from spikeformer_lt.export.folding import FoldedConv, binary_linear, fold_linear
from spikeformer_lt.export.product import Product
from spikeformer_lt.layers import kernels
from spikeformer_lt.layers.attention import SpikingSelfAttention, spiking_attention
from spikeformer_lt.layers.cnn_units import ConvLayer, HiddenLayer
from spikeformer_lt.layers.units import ConvUnit, LinearUnit, map_rows

__all__ = [
    "CompactAttention",
    "CompactConvLayer",
    "CompactConvUnit",
    "CompactHiddenLayer",
    "CompactLinearUnit",
]


class CompactConvUnit(nn.Module):
    """A `ConvUnit` whose BatchNorm is in its convolution; same shapes, same calls."""

    def __init__(self, unit: ConvUnit, spikes_in: bool) -> None:
        super().__init__()
        self.conv = FoldedConv(unit.conv, unit.norm, spikes_in)
        self.act, self.pool, self.pool_before_act = unit.act, unit.pool, unit.pool_before_act

    def forward(self, rows: Tensor, T: int, need_current: bool = False) -> tuple[Tensor, Tensor]:
        """Return (activations, input current of the activation)."""
        current = map_rows(rows, self.conv)
        if self.pool is not None and self.pool_before_act:
            current = map_rows(current, self.pool)
            return self.act(current, T), current
        out = self.act(current, T)
        return (out if self.pool is None else map_rows(out, self.pool)), current


class CompactLinearUnit(nn.Module):
    """One or several `LinearUnit` on the same input, as one product and one LIF.

    Args:
        units: their neurons are alike.
        whole: the input is made of whole numbers from 0 to 255.
    """

    def __init__(self, *units: LinearUnit, whole: bool = False) -> None:
        super().__init__()
        folded = [fold_linear(unit.linear, unit.norm) for unit in units]
        weights, biases = zip(*folded, strict=True)
        found = [binary_linear(unit.linear, unit.norm) if whole else None for unit in units]
        parts = [part for part in found if part is not None]
        binary = None
        if len(parts) == len(units):
            signs, gains = zip(*parts, strict=True)
            binary = torch.cat(signs), torch.cat(gains)
        self.product = Product(torch.cat(weights), torch.cat(biases), binary)
        self.act = units[0].act

    def forward(self, tokens: Tensor, T: int, rows: int | None = None) -> Tensor:
        """Spikes ``[T, B, N, rows]`` of ``[T|1, B, N, D]``; all rows by default."""
        spikes = fire_linear(self.act, self.product, tokens, T) if rows is None else None
        if spikes is None:
            spikes = fire(self.act, self.product(tokens, rows), T, self.product)
        return spikes


class CompactAttention(SpikingSelfAttention):
    """Spiking self attention with one product for q, k and v."""

    def __init__(self, attn: SpikingSelfAttention, whole: bool = False) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.scale, self.key_gain = attn.num_heads, attn.scale, attn.key_gain
        self.qkv = CompactLinearUnit(attn.q, attn.k, attn.v, whole=whole)
        self.attn_act = attn.attn_act
        self.out = CompactLinearUnit(attn.proj, whole=True)  # it reads the spikes of attn_act

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Attend between the tokens of each step."""
        scale, spikes = self.scale * self.key_gain, self.qkv(tokens, T)
        current = kernels.attention(spikes.unflatten(-1, (3, -1)), self.num_heads, scale)
        if current is None:
            q, k, v = (self._heads(part) for part in spikes.chunk(3, -1))
            summed = spiking_attention(q, k, v) * scale
            current = rearrange(summed, "t b h n d -> t b n (h d)")
        return self.out(fire(self.attn_act, current, T), T)  # type: ignore[no-any-return]

    def received(self, tokens: Tensor, T: int) -> Tensor:
        """Attention that each token receives, ``[B, N]``; v is not computed."""
        two = self.qkv(tokens, T, 2 * len(self.qkv.product.bias) // 3)
        q, k = (self._heads(part) for part in two.chunk(2, -1))
        return (k @ q.sum(-2).unsqueeze(-1)).squeeze(-1).mean((0, 2))


class CompactConvLayer(nn.Module):
    """A `ConvLayer` whose BatchNorm is in its convolution; same shapes, same call."""

    def __init__(self, layer: ConvLayer, spikes_in: bool = False) -> None:
        super().__init__()
        self.conv, self.act = FoldedConv(layer.conv, layer.norm, spikes_in), layer.act

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Spikes, or the current where there is no neuron."""
        current = map_rows(rows, self.conv)
        return current if self.act is None else fire(self.act, current, T, self.conv)


class CompactHiddenLayer(nn.Module):
    """A `HiddenLayer` with its BatchNorm, if it has one, in its product; same shapes, same call."""

    def __init__(self, layer: HiddenLayer) -> None:
        super().__init__()
        weight, bias = layer.linear.weight.detach(), layer.linear.bias.detach()
        if layer.norm is not None:
            weight, bias = fold_linear(layer.linear, layer.norm)
        self.product, self.act = Product(weight, bias), layer.act

    def forward(self, values: Tensor, T: int) -> Tensor:
        """Spikes of the hidden neurons."""
        spikes = fire_linear(self.act, self.product, values, T)
        if spikes is None:
            spikes = fire(self.act, self.product(values), T, self.product)
        return spikes
