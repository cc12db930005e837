"""Early-Bird tickets: training stops when the mask stops changing; of weights or of channels.

The channels of a network that can be removed are found by trying, masked as a whole, and cut out.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import isolated_rng
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import Search, magnitudes, noted
from spikeformer_lt.tickets.configs import EarlyBirdConfig
from spikeformer_lt.tickets.presets import preset_optim
from spikeformer_lt.training.phase import Fit, Hook, Phase, Progress, of_first

log = logging.getLogger(__name__)


class Group(NamedTuple):
    """A layer that makes channels, its norm, and the layer that reads them, by module name.

    Channel c is row c of `producer`, entry c of `norm`, column c of `consumer`.
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
    tried on a copy with random norms and weights, on a few `images`: with the consumer's columns
    at 0 the norm's entries must change nothing (nobody else reads them), with the norm's entries at
    0 the columns (a silent channel gives 0), and the network with a channel cut out must compute
    the same. A ConfigError says that no channel can be removed.
    """
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
    found = []
    with isolated_rng(0), torch.no_grad():
        for three in zip(layers, layers[1:], layers[2:], strict=False):
            group, parts = Group(*(name for name, _ in three)), [part for _, part in three]
            if _sizes_fit(*parts) and _holds(model, group, images):
                found.append(group)
    if not found:
        raise ConfigError(
            f"no channel of {model._get_name()} can be removed: each is shared by a residual sum, "
            "read by several layers, or in a mean of weights; use the weight form"
        )
    return tuple(found)


def norm_scales(model: nn.Module, groups: Sequence[Group]) -> dict[str, Tensor]:
    """|gamma| of every removable channel, by the norm's name."""
    return {group.norm: model.get_parameter(group.scale).detach().abs() for group in groups}


def channel_mask(model: nn.Module, groups: Sequence[Group], channels: Mask) -> Mask:
    """The weight mask that removes whole channels: a removed one is exactly silent.

    `channels` are the kept ones by the norm's name, as `norm_scales` names them.
    """
    kept: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for group in groups:
        rows = (f"{group.producer}.weight", f"{group.producer}.bias", group.scale)
        for name in (*rows, f"{group.norm}.bias", f"{group.consumer}.weight"):
            if name in parameters:
                dim = int(name.startswith(f"{group.consumer}."))
                stays = _along(channels[group.norm], dim, parameters[name])
                kept[name] = kept.get(name, stays) & stays
    return Mask(kept)


def shrink(model: nn.Module, groups: Sequence[Group], mask: Mapping[str, Tensor]) -> nn.Module:
    """Cut removed channels out of a network, in place: the same function with smaller layers.

    `model` holds a ticket's weights, `groups` are of the whole network, `mask` is of `channel_mask`
    or of a ticket that the channel form found; a MaskError if a layer of the groups is not in it.
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


def _sizes_fit(producer: nn.Module, norm: nn.Module, consumer: nn.Module) -> bool:
    makes = isinstance(norm, _BatchNorm) and not isinstance(producer, _BatchNorm)
    made, scale, weight = (getattr(part, "weight", None) for part in (producer, norm, consumer))
    if not makes or made is None or scale is None or weight is None or weight.ndim < 2:
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
    if not (nobody_else and felt and torch.equal(outputs(*mute, weight), outputs(*mute, read))):
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


@torch.no_grad()
def _cut(module: nn.Module, stays: Tensor, dim: int) -> None:
    for name in ("weight",) if dim else ("weight", "bias", "running_mean", "running_var"):
        value = getattr(module, name, None)
        if value is not None:
            less = value.index_select(dim, stays.to(value.device))
            setattr(module, name, nn.Parameter(less) if isinstance(value, nn.Parameter) else less)
    sizes = (("out_channels", "out_features", "num_features"), ("in_channels", "in_features"))
    for name in sizes[dim]:
        if hasattr(module, name):
            setattr(module, name, len(stays))


class MaskWatch(Hook):
    """Ends a phase when the newest of `window` masks differs little from all the ones before.

    `draw` makes the mask of the present weights, `tolerance` is the largest Hamming distance as a
    fraction of all entries, and `penalty` an L1 strength by the name of a norm's scale.
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
        self.history: list[list[float]] = []  # distances to the newest, of each epoch
        self.epoch, self.still = -1, False

    def before_epoch(self, model: nn.Module, epoch: int) -> bool:
        """Draw the mask once for each epoch, and compare."""
        if epoch > self.epoch:  # an epoch that was resumed amid has been looked at
            self.epoch = epoch
            self.masks = [*self.masks, self.draw(model)][-self.window :]
            self.history.append([self.masks[-1].hamming(mask) for mask in self.masks[:-1]])
            full = len(self.masks) == self.window
            self.still = full and max(self.history[-1]) < max(self.tolerance, 1e-12)
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
        return {**known, "history": self.history}

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take masks and decision over."""
        self.epoch, self.still = int(state["epoch"]), bool(state["still"])
        self.history = [[float(value) for value in row] for row in state["history"]]
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

    @staticmethod
    def resolved(config: EarlyBirdConfig) -> EarlyBirdConfig:
        """The configuration that runs, with its tolerance."""
        if config.tolerance < 0:
            config = replace(config, tolerance=0.02 if config.kind == "weights" else 0.1)
        made: EarlyBirdConfig = Search.resolved(config)
        return made

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        config, channels = self.config, self.config.kind == "channels"
        groups = find_groups(model, self._images(2)[0]) if channels else ()
        allowed = set(config.prune.weights(model))
        parts = [{f"{g.producer}.weight", f"{g.consumer}.weight"} for g in groups]
        groups = tuple(g for g, own in zip(groups, parts, strict=True) if own <= allowed)
        if channels and not groups:
            rule = "names of layers, of which one makes channels that can be removed"
            check(False, "early_bird.prune.inside", list(config.prune.inside), rule)

        def draw(now: nn.Module) -> Mask:
            if not channels:
                scores, least = magnitudes(config.prune.weights(now)), 0.0
            else:  # never a whole layer: nothing would pass it
                scores = norm_scales(now, groups)
                least = min(1 / score.numel() for score in scores.values())
            floor = max(config.floor, least)
            found = Mask.from_scores(scores, config.sparsity, config.scope, floor=floor)
            return of_first(found)

        if config.epochs <= config.window - 1:
            few = (
                "NOTICE: early_bird.epochs=%d is too few for %d masks to compare: the last is taken"
            )
            log.warning(few, config.epochs, config.window)
        if channels:
            draw(model)  # what it refuses is refused before a training
        scales = {group.scale: config.l1 for group in groups}
        self.watch = MaskWatch(draw, config.window, config.tolerance, scales)
        phase = Phase("early_bird", config.epochs, preset_optim(config.preset), hooks=(self.watch,))
        phase = replace(phase, lr_factor=config.lr_factor, settled_from=config.epochs - 1)
        still = self._fit(fit, model, phase).epochs < config.epochs
        mask = self.watch.masks[-1] if still else draw(model)
        return channel_mask(model, groups, mask) if channels else mask

    def _asked(self, mask: Mask) -> int | None:
        return None if self.config.kind == "channels" else super()._asked(mask)

    def _ticket(self, model: nn.Module, mask: Mask) -> Ticket:
        """With each epoch's distances to the masks before it in the window, oldest first."""
        return noted(super()._ticket(model, mask), mask_distances=self.watch.history)
