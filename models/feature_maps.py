"""Maps of a network at each of its resolutions, as timm's ``features_only`` gives them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.layers.halting import halts
from spikeformer_lt.layers.inputs import SpikingClassifier
from spikeformer_lt.layers.patches import grid_of, selections
from spikeformer_lt.layers.units import Unit

_MAPS: ContextVar[dict[str, Tensor] | None] = ContextVar("feature_maps", default=None)


class FeatureMaps(nn.Module):
    """A network without its head that gives the last maps of each resolution, the largest first.

    A map is the output of the last block of its size, or where no block has it of the last
    convolution: means over the time steps, of spikes their rates. ``feature_info`` is timm's.

    Args:
        model: a network of ours, which takes part as it is.
        out_indices: numbers of the maps, negative ones from the end; of n the last n; None is all.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> list of ``[B, C', H', W']``.

    Raises:
        ConfigError: a network whose tokens leave or stop, or of another kind; an index of no map.
    """

    def __init__(self, model: nn.Module, out_indices: int | Sequence[int] | None = None) -> None:
        from timm.models import FeatureInfo
        from timm.models._features import feature_take_indices

        super().__init__()
        self.model: Any = model
        self._check()
        info = _described(self.model)
        try:
            some = list(out_indices) if isinstance(out_indices, Sequence) else out_indices
            chosen, _ = feature_take_indices(len(info), some)
        except AssertionError as fault:
            check(False, "out_indices", out_indices, f"of {len(info)} maps: {fault}")
        self.feature_info = FeatureInfo(info, tuple(chosen))
        for name in self.feature_info.module_name():
            layer = model.get_submodule(name)
            layer.register_forward_hook(partial(_keep, name, self.model.image_size))

    def _check(self) -> None:
        ours = isinstance(self.model, SpikingClassifier)
        stay = ours and not selections(self.model) and not halts(self.model)
        check(stay, "features_only", True, "for a network of ours whose tokens all stay")

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps."""
        self._check()
        found = _maps_of(self.model, x)
        return [found[name].mean(0) for name in self.feature_info.module_name()]


def _maps_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The maps that the hooks :func:`_keep` note in a forward, in the order of their layers."""
    found: dict[str, Tensor] = {}
    token = _MAPS.set(found)
    try:
        model(x)
    finally:
        _MAPS.reset(token)
    return found


def _keep(name: str, size: Any, module: nn.Module, inputs: Any, output: Any) -> None:
    """Note the maps ``[T|1, B, C, H, W]`` of maps or tokens that a layer puts out."""
    found, rows = _MAPS.get(), output[0] if isinstance(output, tuple) else output
    if found is not None and rows.dim() in (4, 5):
        rows = rows if rows.dim() == 5 else rows.unflatten(2, grid_of(rows.shape[2], size))
        found[name] = rows.permute(0, 1, 4, 2, 3)


def _described(model: Any) -> list[dict[str, Any]]:
    """Channels, reduction and module of each map, found by a forward without values."""
    probe = copy.deepcopy(model).to("meta").eval()
    blocks = {n: not isinstance(m, Unit) for n, m in probe.named_modules()
              if isinstance(m, Unit) or hasattr(m, "recompute")}  # fmt: skip
    for name in blocks:
        probe.get_submodule(name).register_forward_hook(partial(_keep, name, model.image_size))
    dtype = next(model.parameters()).dtype
    size = model.in_channels, *model.image_size
    found = _maps_of(probe, torch.empty(1, *size, dtype=dtype, device="meta"))
    last: dict[int, str] = {}  # in the order in which the layers end
    for name, rows in found.items():
        side = rows.shape[3]
        if blocks[name] or not blocks.get(last.get(side, ""), False):
            last[side] = name
    height = model.image_size[0]
    return [{"num_chs": found[name].shape[2], "module": name, "reduction":
             height // side if height % side == 0 else 2 ** round(math.log2(height / side))}
            for side, name in sorted(last.items(), reverse=True)]  # fmt: skip
