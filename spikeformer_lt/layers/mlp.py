"""The spiking MLP and the encoder block of Spikformer."""

from __future__ import annotations

from torch import Tensor, nn

from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.units import LinearUnit


class SpikingMLP(nn.Module):
    """Two linear-BN-LIF units, D -> ratio*D -> D.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D]`` spikes.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        bias: bool = True,
        neuron: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = LinearUnit(dim, hidden, bias=bias, neuron=neuron)
        self.fc2 = LinearUnit(hidden, dim, bias=bias, neuron=neuron)

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

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Run the block; a static input broadcasts into the first residual sum."""
        tokens = tokens + self.attn(tokens, T)
        return tokens + self.mlp(tokens, T)  # type: ignore[no-any-return]
