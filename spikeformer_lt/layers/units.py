"""One synaptic layer and its neuron: convolution or linear map, BatchNorm, activation."""

from __future__ import annotations

from torch import Tensor, nn

from spikeformer_lt.layers import kernels
from spikeformer_lt.layers.convolutions import conv_rows
from spikeformer_lt.layers.neuron import make_activation
from spikeformer_lt.layers.norm import BatchNorm, fused_norm_act, hooked, norm_act
from spikeformer_lt.layers.products import linear_rows


def map_rows(rows: Tensor, layer: nn.Module) -> Tensor:
    """Apply a ``[N, C, H, W]`` layer to channels-last rows ``[T, B, H, W, C]``, without a copy."""
    if isinstance(layer, nn.Conv2d):
        fast = conv_rows(rows, layer)
        if fast is not None:
            return fast
    time, batch = rows.shape[:2]
    maps = layer(rows.flatten(0, 1).permute(0, 3, 1, 2))
    return maps.permute(0, 2, 3, 1).unflatten(0, (time, batch))  # type: ignore[no-any-return]


class ConvUnit(nn.Module):
    """3x3 convolution (no bias), BatchNorm, activation, with an optional 2x max-pool.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        pool: halve the map with a max-pool (kernel 3, stride 2, padding 1).
        pool_before_act: pool the BatchNorm output instead of the spikes (spikingjelly 2.0).
        activation: ``lif | heaviside | sign | relu``.
        neuron: keywords of the activation (tau, v_threshold, surrogate, ...).

    Shape: in ``[T|1, B, H, W, C]`` -> out ``[T|1, B, H', W', C']``; a size-1 time axis stays so
    only through a stateless activation.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 12 (Spiking Patch Splitting).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        pool: bool = False,
        pool_before_act: bool = False,
        activation: str = "lif",
        neuron: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = BatchNorm(out_channels)
        self.act = make_activation(activation, **(neuron or {}))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else None
        self.pool_before_act = pool_before_act
        self.recompute = False

    def forward(self, rows: Tensor, T: int, need_current: bool = False) -> tuple[Tensor, Tensor]:
        """Return (activations, BatchNorm output); the second is only valid on request."""
        rows = map_rows(rows, self.conv)
        repeats = T // rows.shape[0]
        plain = self.pool is not None and type(self.pool) is nn.MaxPool2d and not hooked(self.pool)
        if self.pool is not None and self.pool_before_act:
            if plain and not need_current:
                spikes = fused_norm_act(self.norm, self.act, rows, T, repeats, pooled=True)
                if spikes is not None:
                    return spikes, rows
            current = map_rows(self.norm(rows, repeats), self.pool)
            return self.act(current, T), current
        out, current = rows, rows
        if need_current:
            out, current = norm_act(self.norm, self.act, rows, T, repeats, need_current=True)
        else:
            out = norm_act(self.norm, self.act, rows, T, repeats)
        if self.pool is None:
            return out, current
        pooled = kernels.pool(out) if plain else None
        return (map_rows(out, self.pool) if pooled is None else pooled), current


class LinearUnit(nn.Module):
    """Linear map, BatchNorm over the embedding, LIF.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D']`` spikes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        neuron: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.norm = BatchNorm(out_features)
        self.act = make_activation("lif", **(neuron or {}))

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Map tokens to spikes; a static input is multiplied once and expanded by the neuron."""
        current = linear_rows(tokens, self.linear)
        return norm_act(self.norm, self.act, current, T, T // current.shape[0])
