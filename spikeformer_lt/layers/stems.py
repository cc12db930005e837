"""ConvPEP: the convolutional patch embedding (Spikformer's Spiking Patch Splitting)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.neuron import make_activation
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.units import ConvUnit

RESIDUALS = ("add", "iand", "or")
ACTIVATIONS = ("lif", "heaviside", "sign", "relu")


class ConvPEP(nn.Module):
    """Four conv-BN-activation stages, a conv position encoding (RPE), tokens out.

    Args:
        in_channels: image or event channels.
        dim: embedding width D; the stages have D/8, D/4, D/2, D channels.
        pools: for each stage, whether its map is halved.
        activation: ``lif`` (stateful), ``heaviside`` {0,1}, ``sign`` {-1,+1} or ``relu``.
        residual: how the position encoding p joins the map x: ``add`` x+p (values {0,1,2}),
            ``iand`` x*(1-p), ``or`` x+p-x*p (both keep {0,1}).
        pool_before_act: pool before the neuron instead of after it.
        neuron: keywords of the LIF neurons.

    Shape: in ``[T|1, B, C, H, W]`` -> tokens ``[T|1, B, N, D]``. A size-1 time axis (static
    image) is computed once: up to the first neuron with ``lif``, throughout when the
    activation is stateless.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 12-13; arXiv 2311.12060, section III (CPM).
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        pools: Sequence[bool] = (False, False, True, True),
        activation: str = "lif",
        residual: str = "add",
        pool_before_act: bool = False,
        neuron: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        if dim % 8:
            raise ConfigError(f"embed_dim={dim} must be a multiple of 8 (stage widths D/8 ... D)")
        if len(pools) != 4:
            raise ConfigError(f"pools={list(pools)} must have one entry for each of the 4 stages")
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("residual", residual, RESIDUALS)
        self.in_channels, self.dim = in_channels, dim
        self.activation, self.residual = activation, residual
        self.neuron = dict(neuron or {})
        self.stride = 2 ** sum(pools)
        widths = [in_channels, dim // 8, dim // 4, dim // 2, dim]
        self.stages = nn.ModuleList(
            ConvUnit(
                widths[i],
                widths[i + 1],
                pool=pools[i],
                pool_before_act=pool_before_act,
                activation=activation,
                neuron=self.neuron,
            )
            for i in range(4)
        )
        self.rpe = ConvUnit(dim, dim, activation=activation, neuron=self.neuron)

    def set_activation(self, activation: str, residual: str | None = None) -> None:
        """Swap every activation of the stem (level 3), and optionally the residual rule."""
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("residual", residual or self.residual, RESIDUALS)
        for unit in self.units():
            unit.act = make_activation(activation, **self.neuron)
        self.activation, self.residual = activation, residual or self.residual

    def units(self) -> list[ConvUnit]:
        """The conv units in the order of the data: four stages, then the RPE."""
        return [*self.stages, self.rpe]

    def check_size(self, height: int, width: int) -> None:
        """Refuse a size that the pools do not divide."""
        if height % self.stride or width % self.stride or min(height, width) < self.stride:
            raise ConfigError(
                f"image size {height}x{width} is not a multiple of the ConvPEP stride {self.stride}"
            )

    def forward(self, images: Tensor, T: int, need_current: bool = False) -> tuple[Tensor, Tensor]:
        """Return (tokens, current): current is the position encoding's BatchNorm output as tokens.

        The current is only valid when asked for; patch criteria on membranes ask for it.
        """
        rows = images.permute(0, 1, 3, 4, 2).contiguous()
        for stage in self.stages:
            rows, _ = call(stage, rows, T)
        position, current = call(self.rpe, rows, T, need_current)
        tokens = self._join(rows, position)
        return tokens.flatten(2, 3), current.flatten(2, 3)

    def _join(self, x: Tensor, p: Tensor) -> Tensor:
        if self.residual == "add":
            return x + p
        if self.activation == "sign":  # {-1,+1}: True is +1
            return torch.minimum(x, -p) if self.residual == "iand" else torch.maximum(x, p)
        return x * (1 - p) if self.residual == "iand" else x + p - x * p


def _check_choice(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{field}={value!r} is not one of {', '.join(allowed)}")
