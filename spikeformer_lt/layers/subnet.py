"""Layers that run on a part of their weights, found by learned scores or by magnitude.

The kept weights may be binary with a gain: ``alpha * sign(w) * mask``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, MaskError, shown
from spikeformer_lt.layers.inputs import transformed
from spikeformer_lt.layers.kernels.dispatch import Kept
from spikeformer_lt.layers.kernels.reference import straight_through
from spikeformer_lt.mask import Mask


def signs(weight: Tensor) -> Tensor:
    """-1 or +1 for each weight; sign(0) is +1, so that no kept weight vanishes."""
    return (weight >= 0).to(weight.dtype).mul_(2).sub_(1)


def gains(weight: Tensor, mask: Tensor, per_filter: bool = False) -> Tensor:
    """Least-squares gain of binary weights ``[out, in, kH, kW]``: mean |w| over the kept ones.

    It is ``[1, 1, 1, 1]``, or `per_filter` (XNOR-Net) ``[out, 1, 1, 1]``; 0 where nothing is kept.

    Source: Diffenderfer & Kailkhura, ICLR 2021 (arXiv 2103.09377), eq. 3: ||w*M||_1 / ||M||_0,
    with the true count of kept weights.
    """
    dims = tuple(range(1 if per_filter else 0, weight.ndim))
    kept = mask.sum(dims, keepdim=True)
    total = (weight.detach().abs() * mask).sum(dims, keepdim=True)
    return total / kept.clamp(min=1)


class EffectiveWeight(torch.autograd.Function):
    """``w * M`` or ``alpha * sign(w) * M``, straight through to weights and scores.

    Backward, for G = dL/dw_eff: dL/dw = G (all entries: removed ones may return) and
    dL/ds = G * w * sign(s) * window, where window = 1 is edge-popup and biprop; alpha is constant.

    Source: Ramanujan et al., CVPR 2020 (arXiv 1911.13299), eq. 5; arXiv 2103.09377, alg. 1.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        scores: Tensor | None,
        mask: Tensor,
        form: tuple[bool, bool, Any],
        window: Tensor | None,
    ) -> Tensor:
        """Return the weight the convolution runs on, exactly 0 where removed."""
        ctx.save_for_backward(weight, scores, window)
        return _kept(weight, mask, *form)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Straight-through gradients of the weight and of its scores."""
        weight, scores, window = ctx.saved_tensors
        (grad,) = grads
        grad_scores = None
        if scores is not None and ctx.needs_input_grad[1]:
            grad_scores = grad * weight * torch.sign(scores)
            if window is not None:
                grad_scores = grad_scores * window
        return grad if ctx.needs_input_grad[0] else None, grad_scores, None, None, None


def _kept(weight: Tensor, mask: Tensor, binary: bool, per_filter: bool, form: Any) -> Tensor:
    if form is not None:
        return form(torch.where(mask, weight, 0.0)).detach()  # type: ignore[no-any-return]
    kept = signs(weight) * gains(weight, mask, per_filter) if binary else weight
    return torch.where(mask, kept, 0.0)  # +0 even where the weight is negative


LEARN = ("scores", "weights", "both")
_HOOKS = [name for name in vars(nn.Module()) if "_hook" in name and "state_dict" not in name]


class _Subnet(nn.Module):
    """What subnet layers share: weight, scores, mask, and the weight that comes of them."""

    weight: Tensor
    mask: Tensor
    threshold: Tensor
    _kept: tuple[int | None, Kept] | None

    def __init__(
        self, layer: Any, learn: str, *, binary: bool = True, per_filter: bool = False
    ) -> None:
        super().__init__(**geometry(layer))
        self._taken = (layer,)  # no child: its weight is here
        if learn not in LEARN:
            raise ConfigError(f"learn={shown(learn)} is not one of {', '.join(LEARN)}")
        self.learn, self.binary, self.per_filter = learn, binary, per_filter
        self.form = getattr(layer, "form", None)
        self.anneal = 0.0
        self._kept = None
        weight = self.weight = layer.weight
        self.bias = layer.bias
        self._trains = layer.weight.requires_grad
        self.weight.requires_grad_(self._trains and learn != "scores")
        for name in _HOOKS:  # those of the layer see this one
            self.__dict__[name] = layer.__dict__[name]
        self.scores: nn.Parameter | None = None
        if learn != "weights":
            self.scores = nn.Parameter(torch.empty_like(weight))
            nn.init.kaiming_uniform_(self.scores, a=math.sqrt(5))
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.register_buffer("threshold", torch.zeros((), dtype=weight.dtype))

    def ranking(self) -> Tensor:
        """What the mask ranks: |scores| where they are learned, else |weight|."""
        return (self.weight if self.scores is None else self.scores).detach().abs()

    def effective_weight(self) -> Tensor:
        """The weight that the layer runs on, shaped as the weight."""
        window = None
        if self.anneal > 0 and self.scores is not None:
            distance = (self.ranking() - self.threshold) / self.ranking().std().clamp(min=1e-12)
            soft = torch.sigmoid(self.anneal * distance)
            window = 4 * soft * (1 - soft)
        weight, scores = self.weight, self.scores
        form = self.binary, self.per_filter, self.form
        if transformed(weight, scores, self.mask):  # torch.func asks for torch's own operations
            through = weight
            if scores is not None:
                slope = weight.detach() if window is None else weight.detach() * window
                through = weight + scores.abs() * slope
            return straight_through(_kept(weight, self.mask, *form), through)
        effective: Tensor = EffectiveWeight.apply(  # type: ignore[no-untyped-call]
            weight, scores, self.mask, form, window
        )
        return effective

    def kept(self) -> Kept:
        """The entries of the mask, for products by lists."""
        known, state = self._kept, None if self.mask.is_inference() else self.mask._version
        if known is None or state is None or known[0] != state or known[1].mask is not self.mask:
            self._kept = known = state, Kept(self.mask, whole=True)
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        """Without lists of the mask: a copy counts its changes anew."""
        return {**self.__dict__, "_kept": None}

    def collapse(self) -> Any:
        """The layer that was taken over, with the effective weight, exactly 0 where removed."""
        (plain,) = self._taken
        weight = self.effective_weight().detach().clone()
        plain.weight = nn.Parameter(weight, requires_grad=self._trains)
        plain.bias = self.bias
        plain._is_full_backward_hook = self._is_full_backward_hook
        return plain.train(self.training)


class EffectiveConv2d(nn.Conv2d):
    """A convolution that runs on its `effective_weight()`.

    Of a network's own layer that is ``form(weight)``, a static function that keeps 0 and its own
    values; a subnet of such a layer is of its form, whatever `binary` says.
    """

    effective_weight: Any

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``[N, C, H, W]`` with the effective weight."""
        # spikingjelly's multi-step layers take [T, N, C, H, W].
        rows = input if input.ndim < 5 else input.flatten(0, -4)
        out: Tensor = self._conv_forward(rows, self.effective_weight(), self.bias)
        return out if rows is input else out.unflatten(0, input.shape[:-3])


class EffectiveLinear(nn.Linear):
    """A linear map that runs on its `effective_weight()`, as an :class:`EffectiveConv2d`."""

    effective_weight: Any

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``."""
        return nn.functional.linear(input, self.effective_weight(), self.bias)


class SubnetConv2d(_Subnet, EffectiveConv2d):
    """A convolution whose effective weight is ``w * M`` or ``alpha * sign(w) * M``.

    Args:
        layer: the convolution to take over: weight and bias are shared, and the bias stays.
        learn: ``scores`` over frozen weights (edge-popup, biprop), latent ``weights`` through
            the straight-through estimator, or ``both``.
        binary: binarize the kept weights with a gain.
        per_filter: one gain for each output filter instead of one for the layer.

    Only :func:`set_masks` changes the mask, so that every rank, step and checkpoint sees the same
    subnetwork. ``anneal`` narrows the score gradient to entries near the threshold (the papers: 0).

    Source: arXiv 1911.13299 (edge-popup); arXiv 2103.09377 (biprop); arXiv 2311.12060, alg. 1.
    """


class SubnetLinear(_Subnet, EffectiveLinear):
    """A linear map whose effective weight is that of a :class:`SubnetConv2d`; its bias stays."""


Subnet = SubnetConv2d | SubnetLinear


def effective_weight(layer: Any) -> Tensor:
    """The weight as it enters the multiplication, detached: masked and, where it is so, binary."""
    own = isinstance(layer, EffectiveConv2d | EffectiveLinear)
    return (layer.effective_weight() if own else layer.weight).detach()  # type: ignore[no-any-return]


def install(
    model: nn.Module, name: str, learn: str, *, binary: bool, per_filter: bool = False
) -> None:
    """Replace the convolution or linear map called `name` by a subnet layer, in place, everywhere.

    Raises:
        ConfigError: a layer of another kind, or one whose weight another layer has, too.
    """
    layer: Any = model.get_submodule(name)
    plain = type(layer).__module__.startswith(("torch.nn.modules.", "spikingjelly."))
    plain = plain or hasattr(layer, "form")
    if not isinstance(layer, nn.Linear | nn.Conv2d) or "Quantizable" in type(layer).__name__:
        plain = False  # torch's attention reads the weight of its own kind of linear map
    if not plain:
        raise ConfigError(f"{name}: no subnet form of {type(layer).__name__}; exclude it")
    for other, module in model.named_modules():
        if module is not layer and any(p is layer.weight for p in module.parameters(recurse=False)):
            raise ConfigError(f"{name}: {other} has the same weight; exclude it")
    made = SubnetLinear if isinstance(layer, nn.Linear) else SubnetConv2d
    _exchange(model, layer, made(layer, learn, binary=binary, per_filter=per_filter))


def _exchange(model: nn.Module, before: nn.Module, after: nn.Module) -> None:
    """Put a module in the place of another, under each of its names."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is before:
                setattr(parent, name, after)


def geometry(layer: nn.Module) -> dict[str, Any]:
    """Constructor arguments of a layer of the same shape, without a bias or values."""
    names = ["in_features", "out_features"]
    if isinstance(layer, nn.Conv2d):
        names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation"]
        names += ["groups", "padding_mode"]
    return {**{n: getattr(layer, n) for n in names}, "bias": False, "device": "meta"}


def subnets(model: nn.Module) -> Iterator[tuple[str, Subnet]]:
    """The subnet layers of a model with the state_dict name of their weight."""
    for name, module in model.named_modules():
        if isinstance(module, Subnet):
            yield f"{name}.weight", module


def rankings(model: nn.Module) -> dict[str, Tensor]:
    """The score of every weight of every subnet layer, larger is kept."""
    return {name: layer.ranking() for name, layer in subnets(model)}


def get_masks(model: nn.Module) -> Mask:
    """The masks in force."""
    return Mask({name: layer.mask.cpu().clone() for name, layer in subnets(model)})


def set_masks(model: nn.Module, mask: Mapping[str, Tensor]) -> None:
    """Put a mask in force; its keys must be exactly the subnet layers of the model."""
    layers = dict(subnets(model))
    if set(layers) != set(mask):
        raise MaskError(
            f"mask names {sorted(set(mask) ^ set(layers))[:5]} do not match the subnet layers"
        )
    put_masks(layers, mask)


def put_masks(layers: Mapping[str, Subnet], mask: Mapping[str, Tensor]) -> None:
    """Put the masks of some subnet layers in force."""
    for name, layer in layers.items():
        if mask[name].shape != layer.mask.shape:
            raise MaskError(
                f"layer {name!r}: the mask has shape {list(mask[name].shape)}, the weight has "
                f"{list(layer.mask.shape)}; make the mask for this model"
            )
    for name, layer in layers.items():
        layer.mask.copy_(mask[name])
        layer._kept = None
        if layer.anneal > 0:
            least = torch.where(layer.mask, layer.ranking(), math.inf).min()
            layer.threshold.copy_(torch.where(least.isinf(), layer.threshold, least))


def collapse(model: nn.Module) -> nn.Module:
    """Replace every subnet layer, in place, by the plain convolution it amounts to."""
    for _, layer in list(subnets(model)):
        _exchange(model, layer, layer.collapse())
    return model
