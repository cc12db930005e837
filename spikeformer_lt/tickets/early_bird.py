"""Early-Bird tickets: training stops when the mask stops changing; of weights or of channels.

The channels of a network that can be removed are found by trying, masked as a whole, and cut out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import isolated_rng
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import Search, magnitudes, noted
from spikeformer_lt.tickets.configs import EarlyBirdConfig, preset_optim
from spikeformer_lt.training.phase import Fit, Hook, Phase, Progress


@dataclass(frozen=True)
class Group:
    """One set of channels: the layer that makes them, its norm, the layer that reads them.

    All are module names; channel c is row c of `producer`, entry c of `norm`, column c of
    `consumer`.
    """

    producer: str
    norm: str
    consumer: str

    @property
    def scale(self) -> str:
        """Name of the norm's scale, which ranks the channels."""
        return f"{self.norm}.weight"


def find_groups(model: nn.Module, images: Tensor) -> tuple[Group, ...]:
    """Find the channels of a network that nothing but one layer reads.

    Candidates are a layer, the BatchNorm after it and the next layer of as many inputs. Each is
    tried on a copy with random norms and weights, where three things must hold: with the
    consumer's columns at 0 the norm's entries change nothing (nobody else reads them); with the
    norm's entries at 0 the columns change nothing (a silent channel gives 0, and no residual
    shares it); and the network with a channel cut out computes the same.

    Args:
        model: is not changed.
        images: a few inputs ``[B, C, H, W]``, or frames ``[B, T, C, H, W]``.

    Raises:
        ConfigError: no channel can be removed.
    """
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
    found = []
    with isolated_rng(0), torch.no_grad():
        for place in range(1, len(layers) - 1):
            (producer, made), (norm, between), (consumer, _) = layers[place - 1 : place + 2]
            if not isinstance(between, _BatchNorm) or isinstance(made, _BatchNorm):
                continue
            group = Group(producer, norm, consumer)
            if _sizes_fit(model, group) and _holds(model, group, images):
                found.append(group)
    if not found:
        raise ConfigError(
            f"no channel of {type(model).__name__} can be removed: each is shared by a residual "
            "sum or read by several layers; use the weight form"
        )
    return tuple(found)


def norm_scales(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """|gamma| of every removable channel, by the norm's name."""
    return {group.norm: model.get_parameter(group.scale).detach().abs() for group in groups}


def channel_mask(model: nn.Module, groups: Sequence[Group], channels: Mask) -> Mask:
    """The weight mask that removes whole channels.

    Args:
        model: gives the shapes.
        groups: from `find_groups`.
        channels: kept channels by the norm's name, as `norm_scales` names them.

    Returns:
        Rows, columns, scales, shifts and biases: a removed channel is exactly silent.
    """
    kept: dict[str, Tensor] = {}
    for group in groups:
        stays = channels[group.norm]
        rows = model.get_parameter(f"{group.producer}.weight")
        columns = model.get_parameter(f"{group.consumer}.weight")
        _narrow(kept, f"{group.producer}.weight", _along(stays, 0, rows))
        _narrow(kept, f"{group.consumer}.weight", _along(stays, 1, columns))
        biased = getattr(model.get_submodule(group.producer), "bias", None) is not None
        biases = [f"{group.producer}.bias"] * biased
        for name in (group.scale, f"{group.norm}.bias", *biases):
            _narrow(kept, name, stays)
    return Mask(kept)


def shrink(model: nn.Module, groups: Sequence[Group], mask: Mapping[str, Tensor]) -> nn.Module:
    """Cut removed channels out of a network, in place: the same function with smaller layers.

    Args:
        model: holds a ticket's weights.
        groups: from `find_groups`, of the whole network.
        mask: from `channel_mask`, or of a ticket that the channel form found.

    Raises:
        MaskError: a layer of the groups is not in the mask.
    """
    for group in groups:
        if group.scale not in mask:
            raise MaskError(
                f"the mask has no channels {group.scale}; it is not of the channel form"
            )
        stays = mask[group.scale].nonzero().flatten()
        _cut(model.get_submodule(group.producer), stays, 0)
        _cut(model.get_submodule(group.norm), stays, 0)
        _cut(model.get_submodule(group.consumer), stays, 1)
    return model


def _sizes_fit(model: nn.Module, group: Group) -> bool:
    names = (group.producer, group.norm, group.consumer)
    producer, _, consumer = parts = [model.get_submodule(name) for name in names]
    made, scale, weight = (getattr(part, "weight", None) for part in parts)
    if made is None or scale is None or weight is None or weight.ndim < 2:
        return False
    alone = getattr(producer, "groups", 1) == getattr(consumer, "groups", 1) == 1
    return alone and len(made) == len(scale) == weight.shape[1]


def _holds(model: nn.Module, group: Group, images: Tensor) -> bool:
    probe = copy.deepcopy(model).eval()
    for module in probe.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None:
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0.5, 1.0)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):  # initial heads can be too faint to feel
            nn.init.kaiming_normal_(module.weight)
    names = (group.scale, f"{group.norm}.bias", f"{group.consumer}.weight")
    scale, shift, weight = (probe.get_parameter(name) for name in names)

    def outputs(*values: Tensor) -> Tensor:
        made: Tensor = functional_call(probe, dict(zip(names, values, strict=True)), images)
        return made

    place = torch.arange(len(scale), device=scale.device)
    some, first = place % 2 == 0, place == 0
    columns = _along(some, 1, weight)
    unread, read = weight.masked_fill(columns, 0), weight.masked_fill(columns, 7)
    loud = torch.where(some, -2 * scale, scale), torch.where(some, shift + 3, shift)
    mute = scale.masked_fill(some, 0), shift.masked_fill(some, 0)
    nobody_else = torch.equal(outputs(scale, shift, unread), outputs(*loud, unread))
    felt = not torch.equal(outputs(scale, shift, weight), outputs(*loud, weight))
    silent = torch.equal(outputs(*mute, weight), outputs(*mute, read))
    if not (nobody_else and felt and silent):
        return False
    masked = outputs(scale.masked_fill(first, 0), shift.masked_fill(first, 0), weight)
    try:
        smaller = shrink(probe, [group], {group.scale: ~first})(images)
    except (RuntimeError, ValueError):  # its shape is tied to something else, as heads are
        return False
    return torch.allclose(masked, smaller, rtol=1e-3, atol=1e-3)


def _along(stays: Tensor, dim: int, weight: Tensor) -> Tensor:
    shape = [1] * weight.ndim
    shape[dim] = -1
    return stays.view(shape).expand(weight.shape)


def _narrow(kept: dict[str, Tensor], name: str, more: Tensor) -> None:
    kept[name] = kept[name] & more if name in kept else more


@torch.no_grad()
def _cut(module: nn.Module, stays: Tensor, dim: int) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(module, name, None)
        if not isinstance(value, Tensor) or value.ndim <= dim or (dim and name != "weight"):
            continue
        less = value.index_select(dim, stays.to(value.device)).clone()
        setattr(module, name, nn.Parameter(less) if isinstance(value, nn.Parameter) else less)
    sizes = (("out_channels", "out_features", "num_features"), ("in_channels", "in_features"))
    for name in sizes[dim]:
        if hasattr(module, name):
            setattr(module, name, len(stays))


class MaskWatch(Hook):
    """Ends a phase when the newest of some masks differs little from the ones before.

    Args:
        draw: the mask of the present weights.
        window: masks compared.
        tolerance: largest Hamming distance, as a fraction of all entries.
        penalty: added to the gradient of each norm's scale, times its sign.

    No decision is made before the window is full, so that the first possible end is before epoch
    index ``window - 1``.
    """

    def __init__(
        self,
        draw: Callable[[nn.Module], Mask],
        window: int,
        tolerance: float,
        penalty: Mapping[str, float] | None = None,
    ) -> None:
        self.draw, self.window, self.tolerance = draw, window, tolerance
        self.penalty = dict(penalty or {})
        self.masks: list[Mask] = []
        self.distances: list[float] = []
        self.history: list[list[float]] = []
        self.epoch, self.still = -1, False

    def before_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Draw the mask once for each epoch, and compare."""
        if epoch > self.epoch:  # an epoch that was resumed amid has been looked at
            self.epoch = epoch
            self.masks = [*self.masks, self.draw(model)][-self.window :]
            newest = self.masks[-1]
            self.distances = [newest.hamming(mask) for mask in self.masks[:-1]]
            self.history.append(self.distances)
            full = len(self.masks) == self.window
            self.still = full and max(self.distances) < max(self.tolerance, 1e-12)
        return self.still

    @torch.no_grad()
    def after_backward(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
    ) -> None:
        """Add the L1 penalty of the scales."""
        for name, strength in self.penalty.items():
            scale = model.get_parameter(name)
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=strength)

    def tensors(self) -> dict[str, Tensor]:
        """The masks in the window."""
        return {f"{i}/{n}": kept for i, mask in enumerate(self.masks) for n, kept in mask.items()}

    def state(self) -> dict[str, Any]:
        """Where the watch stands."""
        known = {"epoch": self.epoch, "still": self.still, "count": len(self.masks)}
        return {**known, "distances": self.distances, "history": self.history}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take masks and decision over."""
        self.epoch, self.still = int(state["epoch"]), bool(state["still"])
        self.distances = [float(value) for value in state["distances"]]
        self.history = [[float(value) for value in row] for row in state.get("history", [])]
        parts: list[dict[str, Tensor]] = [{} for _ in range(int(state["count"]))]
        for key, kept in tensors.items():
            place, _, name = key.partition("/")
            parts[int(place)][name] = kept
        self.masks = [Mask(part) for part in parts]


@register_search("early_bird", EarlyBirdConfig)
class EarlyBird(Search):
    """Lottery tickets drawn early in training; the ticket starts from the initial weights.

    The channel form, for which `batch` gives a few images, removes whole channels: `shrink` makes
    the smaller network.

    Source: You et al., ICLR 2020 (arXiv 1909.11957), algorithm 1, the channel form; Kim et al.,
    ECCV 2022 (arXiv 2207.01382), section 3.2, the weight form.
    """

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, channels = self.config, self.config.kind == "channels"
        groups = find_groups(model, self._images(2)[0]) if channels else ()

        def draw(now: nn.Module) -> Mask:
            scores = norm_scales(now, groups) if channels else magnitudes(config.prune.weights(now))
            floor = config.floor
            if channels:  # never a whole layer: nothing would pass it
                floor = max(floor, min(1 / score.numel() for score in scores.values()))
            return Mask.from_scores(scores, config.sparsity, config.scope, floor=floor)

        scales = {group.scale: config.l1 for group in groups}
        self.watch = MaskWatch(draw, config.window, config.tolerance, scales)
        phase = Phase("early_bird", config.epochs, preset_optim(config.preset))
        phase = replace(phase, hooks=(self.watch,), lr_factor=config.lr_factor)
        stopped = self._fit(fit, model, replace(phase, settled_from=config.epochs - 1))
        still = stopped.epochs < config.epochs
        mask = self.watch.masks[-1] if still else draw(model)
        return channel_mask(model, groups, mask) if channels else mask

    def _ticket(self, model: nn.Module, mask: Mask) -> Ticket:
        """With each epoch's distances to the masks before it in the window, oldest first."""
        return noted(super()._ticket(model, mask), mask_distances=self.watch.history)
