"""Rotations, shears and shifts of frames: one map of pixels for all times and polarities."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def affine(
    frames: Tensor, *, angle: float = 0.0, shear_x: float = 0.0, dx: int = 0, dy: int = 0
) -> Tensor:
    """Turn, shear and shift frames about their middle, each new pixel taking the nearest old one.

    Values are moved, never mixed: counts stay whole. What comes from outside is 0.

    Args:
        frames: any type, [..., H, W].
        angle: degrees; above 0 turns what is up to the left (counter-clockwise).
        shear_x: a row moves right by this times its distance above the middle row.
        dx: pixels to the right.
        dy: pixels down.

    Returns:
        A new tensor of the same shape and type.
    """
    height, width = frames.shape[-2:]
    rows = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2 - dy
    columns = torch.arange(width, dtype=torch.float64)[None, :] - (width - 1) / 2 - dx
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # From a new place back to the old one: shift, then turn, then shear undone.
    x = cos * columns - sin * rows
    y = sin * columns + cos * rows
    x = x + shear_x * y
    # Half a pixel rounds up on both axes, so that nothing depends on how a tie is broken.
    old_x = torch.floor(x + (width - 1) / 2 + 0.5).to(torch.int64)
    old_y = torch.floor(y + (height - 1) / 2 + 0.5).to(torch.int64)
    inside = (old_x >= 0) & (old_x < width) & (old_y >= 0) & (old_y < height)
    place = torch.where(inside, old_y * width + old_x, 0).flatten()
    flat = frames.reshape(-1, height * width)
    moved = flat[:, place]
    moved[:, ~inside.flatten()] = 0
    return moved.view(frames.shape)


def cut_out(frames: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Return frames with one rectangle of pixels set to 0 at all times; what is outside is ignored.

    Shape: [..., H, W] -> the same.
    """
    out = frames.clone()
    rows = slice(max(top, 0), max(top + height, 0))
    out[..., rows, max(left, 0) : max(left + width, 0)] = 0
    return out
