"""Synaptic units: a convolution or linear map, its BatchNorm and its neuron.

The protocol `Unit` says what one computes, so that no other package guesses attribute names; a
model lists in `Chain`s which units are read by one other unit alone. Parts with an attribute
``recompute`` may be computed again in the backward pass instead of kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.layers import subnet
from spikeformer_lt.layers.inputs import (
    NeuronConfig,
    autocasts,
    backward_followed,
    safe_layout,
    slow_mkl,
)
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import (
    LIF,
    Activation,
    BatchNorm,
    affine,
    carried,
    fused_norm_act,
    hooked,
    make_activation,
    norm_act,
)


@dataclass(frozen=True)
class Integers:
    """Whole numbers from 0 to `max`, such as a sum of spikes."""

    max: int


Reads = Literal["real", "spikes"] | Integers  # values that a unit reads; spikes are 0 or 1


def add_spikes(values: Reads) -> Reads:
    """Values of the sum of `values` and spikes in {0, 1}."""
    if values == "real":
        return "real"
    return Integers(2 if values == "spikes" else values.max + 1)


def emitted(act: Any) -> Reads:
    """Values that an activation puts out."""
    levels = getattr(act, "levels", 0)
    return Integers(levels) if levels else "spikes" if getattr(act, "spiking", False) else "real"


@dataclass(frozen=True)
class Folded:
    """A unit in eval mode: ``neuron(synapse(x))``, in float64 and detached."""

    weight: Tensor  # [out, in, ...], with the normalisation, as the bias
    bias: Tensor  # [out]
    neuron: LIF | Activation | None


@runtime_checkable
class Unit(Protocol):
    """A synaptic layer and its neuron, if it has one."""

    reads: Reads

    @property
    def synapse(self) -> nn.Conv2d | nn.Linear:
        """The convolution or linear map."""

    @property
    def neuron(self) -> LIF | Activation | None:
        """The neuron or activation; None where the output is a current."""

    @property
    def fires(self) -> bool:
        """Whether the output is spikes in {0, 1}."""

    def folded(self) -> Folded:
        """Weight and bias that include the normalisation.

        Raises:
            ConfigError: the BatchNorm has no running statistics.
        """


@runtime_checkable
class Residual(Protocol):
    """A block in which the current of a branch and that of a shortcut add before the neuron."""

    shortcut: Any  # its unit; None where it is the input itself

    @property
    def neuron(self) -> LIF | Activation:
        """The neuron after the sum."""

    def branch(self) -> Sequence[Any]:
        """The units of the branch, each read by the next one; the last has no neuron."""


@dataclass(frozen=True)
class Chain:
    """Units of a model each of which is read by the next one alone."""

    names: tuple[str, ...]  # dotted, in the order of the data; the last may be the head
    repeats: int = 1  # columns of the last reader for each channel: places of a flattened map


def chain_of(model: nn.Module, parts: Iterable[nn.Module], repeats: int = 1) -> Chain:
    """Chain of the units and linear maps among `parts`, which are in the order of the data."""
    names = {id(module): name for name, module in model.named_modules()}
    units = [part for part in parts if isinstance(part, Unit | nn.Linear)]
    return Chain(tuple(names[id(unit)] for unit in units), repeats)


def chains_of(model: nn.Module) -> list[Chain]:
    """Chains that a model declares; of a model without ``chains()`` those of its parts."""
    declared: Any = getattr(model, "chains", None)
    return list(declared()) if callable(declared) else chains_of_parts(model)


def chains_of_parts(model: nn.Module) -> list[Chain]:
    """Chains that the children of a model declare, by their names in `model`."""
    return [
        Chain(tuple(f"{name}.{inner}" for inner in chain.names), chain.repeats)
        for name, child in model.named_children()
        for chain in chains_of(child)
    ]


def declared_part(model: nn.Module, name: str, kind: Any) -> Any:
    """The module that a model declares as `name`, else its only one of a kind; None otherwise."""
    declared = getattr(model, name, None)
    if isinstance(declared, kind):
        return declared
    found = [module for module in model.modules() if isinstance(module, kind)]
    return found[0] if len(found) == 1 else None


class Firing:
    """What a unit says of the neuron in its `act`: part of the protocol `Unit`."""

    reads: Reads = "real"
    act: Any

    @property
    def neuron(self) -> Any:
        """The neuron or activation; None where the output is a current."""
        return self.act

    @property
    def fires(self) -> bool:
        """Whether the output is spikes in {0, 1}."""
        return bool(getattr(self.act, "spiking", False))


class _Unit(Firing):
    """Shared part of the units of this module: the protocol, from `conv` or `linear` and `act`."""

    linear: Any
    norm: Any

    @property
    def synapse(self) -> Any:
        return getattr(self, "conv", None) or self.linear

    def folded(self) -> Folded:
        synapse = self.synapse
        weight, bias = subnet.effective_weight(synapse).double(), synapse.bias
        shift = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        if self.norm is not None:
            scale, offset = affine(self.norm)
            weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            shift = offset if bias is None else offset + scale * shift
        return Folded(weight, shift, self.act)


def linear_rows(rows: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(rows)``, of ``[..., D]``.

    torch multiplies by MKL, at half speed on processors of another maker; there the map and its
    gradients are products of oneDNN. Only the order of the sums differs.
    """
    own = type(linear).forward is subnet.EffectiveLinear.forward
    if not (own or type(linear) is nn.Linear) or torch.compiler.is_compiling() or hooked(linear):
        return linear(rows)  # type: ignore[no-any-return]
    weight: Tensor = linear.effective_weight() if own else linear.weight  # type: ignore[operator]
    kept: Any = getattr(linear.weight, "kept", None)
    if isinstance(linear, subnet.SubnetLinear) and dispatch.takes_numba(rows, rows.numel(), weight):
        kept = linear.kept()
    found = None if kept is None else sparse_rows(rows, weight, linear.bias, kept)
    if found is None and applies(rows, weight):
        found = product_rows(rows, weight, linear.bias)
    if found is None:
        found = F.linear(rows, weight, linear.bias) if own else linear(rows)
    return found


def sparse_rows(
    rows: Tensor, weight: Tensor, bias: Tensor | None, kept: dispatch.Kept
) -> Tensor | None:
    """``rows @ weight.T + bias`` by lists of the kept weights; None if that is not faster."""
    if autocasts(rows):
        return None
    dense = _multiply if slow_mkl() and rows.dtype == torch.float32 else F.linear
    return dispatch.sparse(rows, weight, bias, kept, dense)


def applies(rows: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these, outside of graphs: float32 alone."""
    return (
        rows.dtype == weight.dtype == torch.float32
        and bool(rows.numel())
        and slow_mkl()
        and dispatch.mode() != "torch"
        and dispatch.is_plain(rows, weight)
        and not torch.is_autocast_enabled("cpu")
    )


def product_rows(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``rows @ weight.T + bias`` by oneDNN, of plain float32 ``[..., D]`` and ``[D', D]``."""
    flat = rows.reshape(-1, rows.shape[-1])
    if torch.is_grad_enabled():
        out: Tensor = _Product.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
    else:  # as `_multiply`, without its call
        out = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
    return out.view(*rows.shape[:-1], weight.shape[0])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        again = backward_followed()
        grad = grad if again else grad.contiguous()
        found = None if again else dispatch.linear_back(x, weight, grad, (for_x, for_weight))
        if found is None:
            multiply = F.linear if again else _multiply
            gx = multiply(grad, weight.t()) if for_x else None
            gw = multiply(grad.t(), x.t()) if for_weight else None
            found = gx, gw
        return *found, grad.sum(0) if for_bias else None


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ b.T + bias``."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return out


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether a convolution is 3x3, of all channels, and keeps the size of its maps."""
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    plain = conv.groups == 1 and conv.padding_mode == "zeros"
    return plain and sizes == ((3, 3), (1, 1), (1, 1), (1, 1))


def conv_rows(rows: Tensor, conv: nn.Conv2d) -> Tensor | None:
    """``conv`` of rows ``[T, B, H, W, C]`` by the Winograd kernel; None if it does not apply.

    It applies to a plain one, a balanced one or a subnet, without hooks, graphs and autocast.
    """
    own = type(conv).forward is subnet.EffectiveConv2d.forward
    part = own and isinstance(conv, subnet.SubnetConv2d)
    if not (own or type(conv) is nn.Conv2d) or rows.dim() != 5 or not keeps_size(conv):
        return None
    if autocasts(rows) or hooked(conv):
        return None
    takes = dispatch.compiles if torch.compiler.is_compiling() else dispatch.takes_conv
    if own and not takes(rows, conv.weight):
        return None
    weight: Tensor = conv.effective_weight() if own else conv.weight  # type: ignore[operator]
    kept: Any = getattr(conv.weight, "kept", None)
    out = None
    if (part or kept is not None) and dispatch.takes_conv(rows, weight):
        kept = conv.kept() if part else kept  # type: ignore[operator]
        out = dispatch.sparse(rows, weight, None, kept, F.linear)
    out = dispatch.conv(rows, weight) if out is None else out
    return out if out is None or conv.bias is None else out + conv.bias


def map_rows(rows: Tensor, layer: nn.Module) -> Tensor:
    """Apply a ``[N, C, H, W]`` layer to channels-last rows ``[T, B, H, W, C]``, without a copy."""
    fast = conv_rows(rows, layer) if isinstance(layer, nn.Conv2d) else None
    if fast is not None:
        return fast
    maps = rows.flatten(0, 1).permute(0, 3, 1, 2)
    if torch.is_grad_enabled():
        maps = safe_layout(maps, layer)
    return layer(maps).permute(0, 2, 3, 1).unflatten(0, rows.shape[:2])  # type: ignore[no-any-return]


class ConvLayer(_Unit, nn.Module):
    """Convolution, BatchNorm and, unless it ends before a sum, the neuron.

    Args:
        in_channels, out_channels: channels of the maps.
        kernel_size: odd; the map keeps its size but for the stride.
        stride: of the convolution; an odd map is rounded up.
        groups: of channels that are convolved apart.
        bias: bias of the convolution, which BatchNorm makes idle: published VGGs count it.
        norm: whether there is a BatchNorm.
        activation: ``lif``, ``heaviside``, ``sign``, ``relu`` or ``ilif``.
        neuron: constants of the activation; None for no activation.

    Shape: in ``[T|1, B, H, W, C]`` -> out ``[T|1, B, H', W', C']``; a LIF puts out T steps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        activation: str = "lif",
        neuron: NeuronConfig | None = None,
    ) -> None:
        super().__init__()
        own: dict[str, Any] = {"padding": kernel_size // 2, "groups": groups, "bias": bias}
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, **own)
        self.norm = BatchNorm(out_channels) if norm else None
        self.act = None if neuron is None else make_activation(activation, neuron)
        self.recompute = False

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Spikes, or the current where there is no neuron."""
        return norm_act(self.norm, self.act, map_rows(rows, self.conv), T)


class ConvUnit(ConvLayer):
    """3x3 convolution (no bias), BatchNorm, activation, with an optional 2x max-pool.

    Args:
        in_channels, out_channels, stride, activation: as of a :class:`ConvLayer`.
        pool: halve the map with a max-pool (kernel 3, stride 2, padding 1).
        pool_before_act: pool the BatchNorm output instead of the spikes (spikingjelly 2.0).
        neuron: constants of the activation; None means the defaults.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 12 (Spiking Patch Splitting).
    """

    act: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        pool: bool = False,
        pool_before_act: bool = False,
        stride: int = 1,
        activation: str = "lif",
        neuron: NeuronConfig | None = None,
    ) -> None:
        same: Any = {"activation": activation, "neuron": neuron or NeuronConfig()}
        super().__init__(in_channels, out_channels, stride=stride, **same)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool else None
        self.pool_before_act = pool_before_act

    def forward(self, rows: Tensor, T: int, need_current: bool = False) -> Any:
        """Return (activations, BatchNorm output); the second is only valid on request."""
        current = map_rows(rows, self.conv)
        pool: Any = self.pool
        plain = type(pool) is nn.MaxPool2d and not hooked(pool)
        before = pool is not None and self.pool_before_act
        if need_current or before:
            if before and plain and not need_current:
                spikes = fused_norm_act(self.norm, self.act, current, T, pooled=True)
                if spikes is not None:
                    return spikes, current
            current = self.norm(current, T // current.shape[0])
            current = map_rows(current, pool) if before else current
            out = self.act(current, T)
        else:
            out = norm_act(self.norm, self.act, current, T)
        if pool is None or before:
            return out, current
        pooled = dispatch.pool(out) if plain else None
        return (map_rows(out, pool) if pooled is None else pooled), current


class LinearUnit(_Unit, nn.Module):
    """Linear map, BatchNorm over the embedding, and LIF unless it ends before a sum.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D']`` spikes, or with `current` that of the
    BatchNorm, ``[T|1, B, N, D']``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "lif",
        neuron: NeuronConfig | None = None,
        current: bool = False,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.norm = BatchNorm(out_features)
        self.act = None if current else make_activation(activation, neuron)

    def forward(self, values: Tensor, T: int) -> Tensor:
        """Spikes; a static input is multiplied once and expanded by the neuron."""
        return norm_act(self.norm, self.act, linear_rows(values, self.linear), T)


class HiddenLayer(LinearUnit):
    """Linear map with a bias, BatchNorm on request, and the neuron.

    Without BatchNorm the biases start where the neurons just reach their threshold: from torch's
    own start no neuron would fire, and the head would get no gradient at all.

    Shape: in ``[T|1, B, F]`` -> out ``[T|1, B, F']``; a LIF puts out T steps.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        norm: bool,
        activation: str = "lif",
        neuron: NeuronConfig | None = None,
    ) -> None:
        neuron = neuron or NeuronConfig()
        super().__init__(in_features, out_features)
        if not norm:
            self.norm = None
        gain = neuron.tau if neuron.decay_input else 1.0
        self._start = (neuron.v_threshold - neuron.v_rest) * gain
        self.reset_parameters()
        self.act = make_activation(activation, neuron)

    def reset_parameters(self) -> None:
        """Start the biases of neurons without BatchNorm at their threshold."""
        if self.norm is None:
            nn.init.constant_(self.linear.bias, self._start)


def spikes_together(units: Sequence[LinearUnit], tokens: Tensor, T: int) -> Tensor | None:
    """The units' spikes ``[T, B, N, U, D']`` of tokens ``[T|1, B, N, D]``, by one kernel.

    None if no kernel applies: a unit is hooked or differs in kind, or a state is carried.
    """
    neuron = _shared_neuron(units)
    if neuron is None or carried() is not None:
        return None
    numba = dispatch.takes_numba(tokens, tokens.numel() // tokens.shape[0] * T)
    triton = not numba and dispatch.takes_triton("norm_lif", tokens)
    if not (numba or triton or dispatch.compiles(tokens)):
        return None
    first = units[0].norm
    found: list[Sequence[Any]] = []
    for unit in units:
        norm, own = unit.norm, unit.linear
        statistics = norm.running_mean, norm.running_var
        found.append((own.weight, own.bias, norm.weight, norm.bias, *statistics))
        if numba and not dispatch.is_plain(*found[-1]):
            return None
    together: list[Any] = [None if p[0] is None else torch.cat(p) for p in zip(*found, strict=True)]
    weight, bias, scale, shift, mean, var = together
    kept: list[Any] = [getattr(unit.linear.weight, "kept", None) for unit in units]
    current, eager = None, not torch.compiler.is_compiling()
    if eager and all(kept):
        current = sparse_rows(tokens, weight, bias, kept[0].beside(kept[1:]))
    if current is None:
        fast = eager and applies(tokens, weight)
        current = (product_rows if fast else F.linear)(tokens, weight, bias)
    count = first.check(current[..., : first.num_features])
    if first.training:
        mean = var = None
    result = dispatch.norm_lif(current, scale, shift, mean, var, first.eps, None, T, neuron)
    if result is None:
        return None
    spikes: Tensor = result[0].unflatten(-1, (len(units), -1))
    means, variances = result[2].view(len(units), -1), result[3].view(len(units), -1)
    for i, unit in enumerate(units):
        if unit.norm.training:
            unit.norm.track(means[i], variances[i], count * (T // current.shape[0]))
        for hook in unit.act._forward_hooks.values():  # observers alone, see `hooked`
            hook(unit.act, (), spikes[..., i, :])
    return spikes


def _shared_neuron(units: Sequence[Any]) -> NeuronConfig | None:
    """Constants of the units' neurons; None if one is hooked or differs from the others."""
    known: tuple[Any, ...] | None = None
    for unit in units:
        if type(unit) is not LinearUnit:
            return None
        linear, norm, act = unit.linear, unit.norm, unit.act
        if type(linear) is not nn.Linear or type(norm) is not BatchNorm or type(act) is not LIF:
            return None
        if norm.weight is None or norm.running_mean is None or act.store_v_seq:
            return None
        facts = (
            *(act.params(), linear.weight.shape, linear.weight.dtype, linear.bias is None),
            *(norm.training, norm.eps, norm.weight.dtype),
        )
        if (known or facts) != facts or hooked(unit, linear, norm, act):
            return None
        known = facts
    return None if known is None else known[0]
