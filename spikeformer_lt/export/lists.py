"""Layers that run from lists of their kept weights, on spikes as bits.

The environment variable SPIKEFORMER_SPARSE chooses when a network is made compact: "auto" (default)
by the costs below, "always" for every layer that the kernels fit, "never". Costs are counted, not
timed, so that a file runs the same way each time on a kind of processor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, Heaviside, NeuronConfig, carried, hooked
from spikeformer_lt.layers.units import Integers

# Cycles for 256 columns, measured on a Sapphire Rapids, whose masks and additions share a port.
_ENTRY, _PLANE, _OUTPUT = 16.5, 4.0, 60.0  # a kept weight, each digit above the second, an output
_DENSE, _WINOGRAD = 10.5, 4.4  # a weight of a product or direct convolution, of a 3x3 convolution


@dataclass(frozen=True)
class LayerChoice:
    """How one layer of a compact network runs."""

    name: str
    lists: bool
    density: float  # weights kept
    ratio: float  # estimated cost of the dense product to that of the lists; 0 where none fit


@torch.no_grad()
def choose(units: Iterable[tuple[str, Any]], how: str) -> tuple[LayerChoice, ...]:
    """Say of each folded unit whether it runs from lists, and let it."""
    made = []
    for name, unit in units:
        weight = unit.synapse.weight
        density = float((weight != 0).sum()) / max(1, weight.numel())
        ratio = _ratio(unit, density) if _fits(unit) else 0.0
        quick = how == "always" or (how == "auto" and ratio > 1.0 and bool(_has_masks()))
        unit.by_lists = bool(ratio) and quick
        made.append(LayerChoice(name, unit.by_lists, density, ratio))
    return tuple(made)


def described(choices: Iterable[LayerChoice]) -> str:
    """The choices in one line."""
    found = list(choices)
    taken = [c for c in found if c.lists]
    if not taken:
        return "no layer runs from lists of its weights"
    kept = [100 * c.density for c in taken]
    return (
        f"{len(taken)} of {len(found)} layers run from lists of their weights "
        f"({min(kept):.0f} to {max(kept):.0f} % kept): {', '.join(c.name for c in taken)}"
    )


def _fits(unit: Any) -> bool:
    """Whether the kernels know the unit's inputs, geometry and neuron."""
    synapse, whole = unit.synapse, unit.reads == "spikes" or isinstance(unit.reads, Integers)
    plain = type(unit.act) is Heaviside and not observed(unit.act)
    known = unit.act is None or plain or plain_lif(unit.act) is not None
    if isinstance(synapse, nn.Conv2d):
        side = synapse.kernel_size[0]
        sizes = (synapse.kernel_size, synapse.padding, synapse.stride, synapse.dilation)
        keeps = sizes == ((side, side), (side // 2, side // 2), (1, 1), (1, 1)) and side % 2 == 1
        before = getattr(unit, "pool_before_act", False) and unit.pool is not None
        known = known and keeps and synapse.groups == 1 and synapse.padding_mode == "zeros"
        known = known and not before
    return bool(whole and known and not synapse.weight.is_cuda)


def _ratio(unit: Any, density: float) -> float:
    weight = unit.synapse.weight
    each = weight[0].numel()
    digits = 1 if unit.reads == "spikes" else unit.reads.max.bit_length()
    entry = _ENTRY * min(digits, 2) + _PLANE * max(0, digits - 2)
    fast = weight.dim() == 4 and weight.shape[2:] == (3, 3)
    dense = each * (_WINOGRAD if fast else _DENSE)
    if unit.synapse.as_bytes:
        dense /= 2.5
    return float(dense / (each * density * entry + _OUTPUT))


@dispatch.or_none
def _has_masks() -> bool:
    """Whether this processor adds under masks, and its kernels are there and not switched off."""
    if dispatch.mode() == "torch" or dispatch.is_broken():
        return False
    return bool(dispatch.load("simd").BYTES == 64)


def neurons_of(act: Any) -> Any:
    """Constants of a neuron that nothing observes, as the kernels take them; None of others."""
    if type(act) is Heaviside and not observed(act):
        return dispatch.load("sparse").Neurons.stateless(act.v_threshold)
    constants = plain_lif(act)
    return None if constants is None else dispatch.load("sparse").Neurons.of(constants)


def plain_lif(act: Any) -> NeuronConfig | None:
    """Constants of a LIF that nothing observes; None for every other activation."""
    return act.params() if type(act) is LIF and not act.store_v_seq and not observed(act) else None


def observed(module: nn.Module) -> bool:
    """Whether a hook may see what the module puts out."""
    return bool(module._forward_hooks) or hooked(module)


def in_graph() -> bool:
    """Whether torch traces or compiles: only its own operations are allowed in a graph."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def dense(x: Any) -> Tensor:
    """A tensor as it is, bits as the numbers they stand for."""
    return x if isinstance(x, Tensor) else x.dense()


def _apply(x: Any) -> bool:
    """Whether bits can be made of `x`, here and now."""
    if in_graph() or torch.is_grad_enabled() or carried() is not None:
        return False
    if isinstance(x, Tensor):
        return dispatch.takes_numba(x, x.numel())
    return dispatch.mode() != "torch" and not dispatch.is_broken()


@dispatch.or_none
def product(unit: Any, x: Any, T: int) -> Any:
    """Spikes of a unit as bits, or its currents where it has no neuron; None if it runs dense."""
    synapse = unit.synapse
    if not unit.by_lists or x.shape[0] not in (1, T) or T > 16 or not _apply(x):
        return None
    fits = x.dtype == synapse.weight.dtype and x.shape[-1] == synapse.weight.shape[1]
    neurons = None if unit.act is None else neurons_of(unit.act)
    if not fits or observed(synapse) or (neurons is None and unit.act is not None):
        return None
    kernels, sources = dispatch.load("sparse"), (synapse.weight, synapse.bias)
    made = synapse.cache.derive(
        "lists", sources, lambda: kernels.Product.of(*sources, neurons), neurons
    )
    return made(as_bits(x, unit.reads), T)


def as_bits(x: Any, reads: Any) -> Any:
    """Bits of what a unit reads."""
    if not isinstance(x, Tensor):
        return x
    return dispatch.load("bits").Bits.of(x, 1 if reads == "spikes" else reads.max)


@dispatch.or_none
def fires(unit: Any, current: Tensor, T: int) -> Any:
    """Spikes of a unit's neurons as bits where what follows reads bits; None where they are not."""
    apply = unit.emits_bits and current.shape[-1] % 16 == 0 and T <= 16 and _apply(current)
    neurons = neurons_of(unit.act) if apply and not observed(unit.synapse) else None
    return None if neurons is None else dispatch.load("sparse").fires(current, T, neurons)


@dispatch.or_none
def attend(x: Any, heads: int, scale: float, act: Any) -> Any:
    """Spikes of the neurons behind the attention of bits of q, k and v, side by side, or None."""
    neurons = None if isinstance(x, Tensor) else neurons_of(act)
    if neurons is None or x.shape[0] > 16:
        return None
    return dispatch.load("sparse").attend(x, heads, scale, neurons)


@dispatch.or_none
def pool(layer: nn.MaxPool2d, x: Any) -> Any:
    """Max-pooled bits; None if the kernel knows no such pool, or if `x` is no bits."""
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    if isinstance(x, Tensor) or sizes != (3, 2, 1, 1) or layer.ceil_mode or hooked(layer):
        return None
    return dispatch.load("bits").pool(x)


def fire(act: Any, current: Tensor, T: int, source: nn.Module | None = None) -> Tensor:
    """Return ``act(current, T)``; `current`, ``[T|1, ...]``, is invalid afterwards.

    The in-place kernel runs for a plain LIF without hooks, outside of graphs and gradients, unless
    a hook on `source`, the layer that made the current, may have stored it.
    """
    params = None if source is not None and observed(source) else plain_lif(act)
    own = current.shape[0] == T and current.is_contiguous() and not torch.is_grad_enabled()
    if params is None or not own or not dispatch.takes_numba(current, current.numel()):
        return act(current, T)  # type: ignore[no-any-return]

    v = act.start(current)
    found = _lif(current, None if v is None else v.contiguous(), T, params)
    if found is None:
        return act(current, T)  # type: ignore[no-any-return]
    act.keep(found[1])
    return found[0]


@dispatch.or_none
def _lif(current: Tensor, v: Any, T: int, params: NeuronConfig) -> tuple[Tensor, Tensor]:
    work: tuple[Tensor, Tensor] = dispatch.load("lif").Work(current, v, T, params).forward(current)
    return work
