"""The door of every model: what an input must be, and time in front."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeformer_lt.errors import ConfigError


def time_first(
    x: Tensor,
    *,
    T: int,
    in_channels: int,
    image_size: tuple[int, int],
    dtype: torch.dtype,
    compute_once: bool = True,
) -> Tensor:
    """Check an input and put time first.

    Args:
        x: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``.
        T: time steps of the model.
        in_channels: its C.
        image_size: its (H, W).
        dtype: of its weights; under autocast another one than float64 will do, too.
        compute_once: leave the time axis of static images at size 1, which stands for T equal
            steps; else repeat them.

    Returns:
        ``[T, B, C, H, W]``, or ``[1, B, C, H, W]`` of static images.

    Raises:
        ConfigError: another dtype, T, channel count or size than the model's.
    """
    expected = f"[B, {in_channels}, {image_size[0]}, {image_size[1]}]"
    if not x.is_floating_point():
        raise ConfigError(f"input dtype {x.dtype} is not floating point; normalise images first")
    mixed = torch.is_autocast_enabled(x.device.type)
    if x.dtype != dtype and not (mixed and x.dtype != torch.float64):
        raise ConfigError(f"input dtype {x.dtype} is not the model's {dtype}; convert one")
    if x.ndim not in (4, 5) or x.shape[-3:] != (in_channels, *image_size):
        raise ConfigError(
            f"input shape {list(x.shape)} is neither images {expected} nor frames "
            f"{expected.replace('[B,', f'[B, T={T},')}"
        )
    if x.ndim == 5:
        if x.shape[1] != T:
            raise ConfigError(
                f"expected T={T} at dimension 1 of frames [B, T, C, H, W], "
                f"got {x.shape[1]} in {list(x.shape)}"
            )
        return x.transpose(0, 1)
    images = x.unsqueeze(0)
    return images if compute_once else images.expand(T, -1, -1, -1, -1)
