"""The spiking encoder of Spikformer: self attention (SSA) without softmax, MLP and block."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, NeuronConfig
from spikeformer_lt.layers.units import Chain, LinearUnit, Reads, add_spikes, spikes_together


def spiking_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``q k^T v`` of ``[T, B, h, N, d]`` spikes, associated the cheaper way.

    Both orders are exact: every partial sum is an integer far below 2^24.
    """
    tokens, width = q.shape[-2:]
    if tokens >= width:
        return q @ (k.transpose(-2, -1) @ v)
    return (q @ k.transpose(-2, -1)) @ v


class SpikingSelfAttention(nn.Module):
    """SSA of Spikformer: ``proj(LIF((q k^T) v * scale))`` with spiking q, k, v.

    Args:
        dim, num_heads: embedding width D, a multiple of the heads h.
        scale: factor of the integer attention sums (0.125 on images, 0.25 on DVS in the
            reference; it does not follow 1/sqrt(d)).
        attn_threshold: firing threshold of the neuron after the attention sum.
        bias, qkv_bias: bias of the projection, and whether q, k and v share in it.
        neuron: constants of the neurons; None means the defaults.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D]`` spikes.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 6-9; thresholds from the published code.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        scale: float = 0.125,
        attn_threshold: float = 0.5,
        bias: bool = True,
        qkv_bias: bool = True,
        neuron: NeuronConfig | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"num_heads={num_heads} must divide the embedding dim={dim}")
        self.num_heads, self.scale = num_heads, scale
        self.rescale_to: int | None = None  # tokens N: sums over K kept keys are multiplied by N/K
        own: Any = {"bias": bias and qkv_bias, "neuron": neuron}
        self.q, self.k, self.v = (LinearUnit(dim, dim, **own) for _ in range(3))
        self.attn_act = LIF(neuron, v_threshold=attn_threshold)
        self.proj = LinearUnit(dim, dim, bias=bias, neuron=neuron)
        self.proj.reads = "spikes"

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Attend between the tokens of each step."""
        units = (self.q, self.k, self.v)
        scale = self.scale_for(tokens)
        spikes = spikes_together(units, tokens, T)
        current = None if spikes is None else dispatch.attention(spikes, self.num_heads, scale)
        if current is None:
            if spikes is None:
                q, k, v = (self._heads(unit(tokens, T)) for unit in units)
            else:
                q, k, v = rearrange(spikes, "t b n u (h d) -> u t b h n d", h=self.num_heads)
            summed = spiking_attention(q, k, v) * scale
            current = rearrange(summed, "t b h n d -> t b n (h d)")
        return self.proj(self.attn_act(current, T), T)  # type: ignore[no-any-return]

    def scale_for(self, tokens: Tensor) -> float:
        """Factor of the attention sums over these tokens, ``[T|1, B, K, D]``."""
        return self.scale * (1.0 if self.rescale_to is None else self.rescale_to / tokens.shape[2])

    def received(self, tokens: Tensor, T: int) -> Tensor:
        """Attention that each token receives, ``[B, N]``: mean over T and heads of sum_i A_ij."""
        q, k = self._heads(self.q(tokens, T)), self._heads(self.k(tokens, T))
        return (k @ q.sum(-2).unsqueeze(-1)).squeeze(-1).mean((0, 2))

    def _heads(self, spikes: Tensor) -> Tensor:
        return rearrange(spikes, "t b n (h d) -> t b h n d", h=self.num_heads)


class SpikingMLP(nn.Module):
    """Two linear-BN-LIF units, D -> ratio*D -> D.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D]`` spikes.
    """

    def __init__(
        self, dim: int, hidden: int, *, bias: bool = True, neuron: NeuronConfig | None = None
    ) -> None:
        super().__init__()
        self.fc1 = LinearUnit(dim, hidden, bias=bias, neuron=neuron)
        self.fc2 = LinearUnit(hidden, dim, bias=bias, neuron=neuron)
        self.fc2.reads = "spikes"

    def chains(self) -> list[Chain]:
        """The hidden units."""
        return [Chain(("fc1", "fc2"))]

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Map each token by itself."""
        return self.fc2(self.fc1(tokens, T), T)  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """``x + SSA(x)``, then ``x + MLP(x)``: the residual stream is integer-valued (SEW-ADD).

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D]``.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 3-4.
    """

    def __init__(self, attn: SpikingSelfAttention, mlp: SpikingMLP) -> None:
        super().__init__()
        self.attn, self.mlp = attn, mlp
        self.recompute = False

    def set_reads(self, reads: Reads) -> Reads:
        """Tell the units what values the block reads; returns those of its output."""
        summed = add_spikes(reads)
        for unit in (self.attn.q, self.attn.k, self.attn.v):
            unit.reads = reads
        self.mlp.fc1.reads = summed
        return add_spikes(summed)

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Run the block; a static input broadcasts into the first residual sum."""
        tokens = tokens + self.attn(tokens, T)
        return tokens + self.mlp(tokens, T)  # type: ignore[no-any-return]
