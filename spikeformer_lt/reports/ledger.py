"""Operations, sparsities and firing of a network on real inputs, from one counting pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spikeformer_lt.adapted import PRUNABLE, Adapted
from spikeformer_lt.errors import DataError
from spikeformer_lt.export.file import binary_gains
from spikeformer_lt.images.loader import sample_loader
from spikeformer_lt.layers.attention import SpikingAttention
from spikeformer_lt.layers.halting import halts, tokens_before_blocks
from spikeformer_lt.layers.inputs import kept_modes
from spikeformer_lt.layers.neuron import carried
from spikeformer_lt.layers.patches import patches_of, removed_share, selections
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.layers.subnet import effective_weight
from spikeformer_lt.rng import isolated_rng
from spikeformer_lt.training.monitor import ROUNDING, FiringWatch

MAC_PJ, AC_PJ = 4.6, 0.9
"""Energy of a 32-bit multiply-accumulate and accumulate at 45 nm, pJ (Horowitz, ISSCC 2014)."""
LEDGER_IMAGES = 256
"""Test images that firing rates, operations and the purity audit are measured on."""
KINDS = ("{0,1}", "{-1,0,1}", "integers", "real")
TABLE = ("macs", "macs_t_fold", "macs_dense", "sops", "macs_nonspiking", "events")


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer as they enter the multiplication: masked, and binary if they are."""

    total: int
    kept: int  # weights that are not 0
    gains: int  # magnitudes of a binary layer, one for it or for each filter; 0 if it is real
    fan_in: int
    operation: str  # convolution or linear
    part: str  # stem, head, or empty for the rest of the network

    @classmethod
    def of(cls, layer: nn.Module, part: str = "") -> LayerWeights:
        """Count the weights of a convolution or linear map."""
        weight = effective_weight(layer)
        kept, operation = weight != 0, "linear" if isinstance(layer, nn.Linear) else "convolution"
        found = binary_gains(weight, kept) if bool(kept.any()) else None
        gains = 0 if found is None else len(found)
        return cls(weight.numel(), int(kept.sum()), gains, weight[0].numel(), operation, part)

    @property
    def binary(self) -> bool:
        """Whether the weights that are not 0 share magnitudes, as `binary_gains` says."""
        return self.gains > 0

    @property
    def bits(self) -> float:
        """Entropy of the mask, 1 bit a kept binary weight or 32 a real one, 32 bits a gain."""
        share = self.kept / self.total
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
        return self.total * entropy + self.kept * (1 if self.binary else 32) + 32 * self.gains


@dataclass
class LayerCount:
    """Operations of one layer, summed over all samples seen."""

    weights: LayerWeights | None = None  # None for an attention, which has none
    macs: float = 0.0  # multiply-accumulates: what is equal at every step is computed once
    macs_t_fold: float = 0.0  # the same, with every step computed again
    macs_dense: float = 0.0  # as the papers count: every step, and an attention as (q k^T) v
    events: float = 0.0  # sum of the absolute input values
    inputs: float = 0.0  # input elements
    passes: float = 0.0  # steps that were computed or stood for, each of a whole sample
    image: bool = False  # whether it reads the input of the network itself
    kind: str = "{0,1}"  # values that entered: {0,1}, {-1,0,1}, integers, or real
    met_by_value: float = 0.0  # each absolute input value times the nonzero weights that it meets
    met: float = 0.0  # each input element, whatever its value, times those weights

    def add_macs(self, macs: float, folds: float, dense: float) -> None:
        """Add the multiply-accumulates of one call, and of all steps that it stands for."""
        self.macs, self.macs_t_fold = self.macs + macs, self.macs_t_fold + macs * folds
        self.macs_dense += dense * folds

    @property
    def operation(self) -> str:
        """convolution, linear or attention."""
        return "attention" if self.weights is None else self.weights.operation

    @property
    def sops(self) -> float:
        """Synaptic operations: the accumulates that spikes cause; integers count by value."""
        return 0.0 if self.kind == "real" else self.met_by_value

    @property
    def macs_nonspiking(self) -> float:
        """Multiply-accumulates of inputs that are not integers, at weights that are not 0."""
        return self.met if self.kind == "real" else 0.0

    @property
    def multiplies(self) -> float:
        """Multiplications that remain: of `macs_nonspiking` those at real weights."""
        return 0.0 if self.weights is not None and self.weights.binary else self.macs_nonspiking

    @property
    def acs(self) -> float:
        """All accumulates: SOPs, and real inputs at binary weights."""
        return self.sops + self.macs_nonspiking - self.multiplies


@dataclass
class Operations:
    """What one pass over real inputs showed: layers in the order in which they first ran."""

    T: int
    samples: int = 0
    static: bool = True  # whether the inputs are images rather than frames of T steps
    layers: dict[str, LayerCount] = field(default_factory=dict)
    weights: dict[str, LayerWeights] = field(default_factory=dict)  # also of those that did not run
    tied: set[str] = field(default_factory=set)  # of them those that a layer before has, too
    products: float = 0.0  # multiply-accumulates of an adapted network's matrices of activations
    sums: dict[str, str] = field(default_factory=dict)  # what an attention multiplies, or empty
    firing_rate: dict[str, float] = field(default_factory=dict)  # spikes per neuron and step
    kept_tokens: list[Tensor] = field(default_factory=list)  # kept ``[B, K]``, for each batch
    selected: dict[nn.Module, float] = field(default_factory=dict)  # share that a selection keeps
    halts: int = 0  # (token, step) pairs of a sample in all blocks of a network that halts
    ran: int = 0  # those that were computed, of all samples
    logits: list[Tensor] = field(default_factory=list)  # outputs of the model, for each batch

    @property
    def dead(self) -> list[str]:
        """Spiking layers that never fired; else layers whose inputs were all 0."""
        silent = [name for name, rate in self.firing_rate.items() if rate == 0]
        return silent or [name for name, layer in self.layers.items() if layer.events == 0]

    @property
    def own_weights(self) -> list[LayerWeights]:
        """The weights of each layer, those of several layers once."""
        return [known for name, known in self.weights.items() if name not in self.tied]

    @property
    def halted(self) -> float:
        """Fraction of (token, step) that the blocks did not compute."""
        return 1 - self.ran / self.halts / self.samples if self.halts else 0.0

    @property
    def steps(self) -> float:
        """Mean number of time steps that were classified."""
        heads = [n for n, known in self.weights.items() if known.part == "head"] * bool(self.halts)
        rows = [self.layers[n].macs_dense / self.weights[n].total for n in heads]
        return rows[0] / self.samples if rows else float(self.T)

    def removed_share(self, model: nn.Module) -> float:
        """Share of the tokens that blocks did not compute, mean over them."""
        return removed_share(model, lambda module: self.selected.get(module, 1.0))

    @property
    def weight_bytes(self) -> float:
        """Bound of the code of all weights: mask, signs or values, gains."""
        return sum(layer.bits for layer in self.own_weights) / 8

    def per_sample(self, what: str) -> float:
        """A total over the layers, per sample and over all T steps."""
        return float(sum(getattr(layer, what) for layer in self.layers.values()) / self.samples)

    def purity(self) -> dict[str, Any]:
        """``impure`` layers, whose inputs are not {0,1}: name -> kind of values.

        ``pure_after_first``: whether they are at most the first, those that read the image, and
        the head, which reads a mean. ``not_spike_driven``: products between those two that are
        more than sums of weights where a spike is, and why.
        """
        impure = {n: layer.kind for n, layer in self.layers.items() if layer.kind != "{0,1}"}
        allowed = {n for n, weights in self.weights.items() if weights.part == "head"}
        allowed |= {n for n, layer in self.layers.items() if layer.image}
        allowed.add(next(iter(self.layers)))
        why = {n: f"reads {kind}" for n, kind in impure.items() if n not in allowed}
        why |= {name: sums for name, sums in self.sums.items() if sums}
        pure = set(impure) <= allowed
        return {"impure": impure, "pure_after_first": pure, "not_spike_driven": why}


def kind_of(x: Tensor) -> str:
    """What values a tensor holds: {0,1}, {-1,0,1}, integers or real."""
    if not bool((x == x.round()).all()):
        return "real"
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        return "{0,1}"
    return "{-1,0,1}" if low >= -1 and high <= 1 else "integers"


def stem_layers(model: nn.Module) -> list[nn.Module]:
    """Convolutions and linear maps of a model's stem; empty without a stem."""
    stem = stem_of(model)
    return [] if stem is None else [part.unit.synapse for part in stem.units()]


@torch.no_grad()
def count_operations(model: nn.Module, batches: Iterable[Tensor], T: int) -> Operations:
    """Run the model once over batches, in eval mode, and count.

    Args:
        model: its convolutions, linear maps and spiking attentions are counted.
        batches: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]``, on the model's device.
        T: time steps of the model.

    Source: SOPs by value and by weights that are not 0 are this project's own rule; the papers'
    T x firing rate x FLOPs is its mean-field form for dense weights.
    """
    total = Operations(T)
    with _Hooks(model, total), FiringWatch(model, always=True) as watch, kept_modes(model):
        model.eval()
        for images in batches:
            total.static = images.ndim == 4
            output = model(images)
            if isinstance(output, Tensor):
                total.logits.append(output.cpu())
            total.samples += len(images)
        total.firing_rate = watch.rates()
    return total


class _Hooks(ExitStack):
    """The forward hooks of one counting pass; they write into `total`."""

    def __init__(self, model: nn.Module, total: Operations) -> None:
        super().__init__()
        self.total, self.batch = total, 0
        self.whole = isinstance(model, Adapted)  # it computes every step that counts
        self.callback(model.register_forward_pre_hook(self._begin).remove)
        stem, head = set(stem_layers(model)), getattr(model, "head", None)
        given = (stem_of(model), getattr(patches_of(model), "stem", None))
        self.first = {part.units()[0].unit.synapse for part in given if part is not None}
        seen_weights = set[int]()
        for name, module in model.named_modules():
            if isinstance(module, PRUNABLE):
                part = "stem" if module in stem else "head" if module is head else ""
                total.weights[name] = LayerWeights.of(module, part)
                total.tied |= {name} if id(module.weight) in seen_weights else set()
                seen_weights.add(id(module.weight))
                self._hook(module, self._product, name)
            elif isinstance(module, SpikingAttention):
                total.sums[f"{name}.attention"] = module.sums
                if not all(hasattr(module, role) for role in module.roles):
                    raise DataError("a compact network has no q, k, v: load it with plain=True")
                seen: dict[str, Tensor] = {}
                for role in (*module.roles, *module.inner):
                    self._hook(getattr(module, role), self._keep, seen, role)
                self._hook(module, self._attention, name, seen)
        if self.whole and not total.sums:
            self.enter_context(_Matrices(total))
        if halts(model):
            blocks: list[nn.Module] = list(getattr(model, "blocks"))  # noqa: B009
            total.halts = len(blocks) * tokens_before_blocks(model) * total.T
            for block in blocks:
                self._hook(block, self._ran)
        for patches in selections(model):
            self._hook(patches, self._select, patches is patches_of(model))

    def _hook(self, module: nn.Module, call: Callable[..., None], *known: Any) -> None:
        self.callback(module.register_forward_hook(partial(call, *known)).remove)

    def _begin(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.batch = len(inputs[0])

    def _keep(self, seen: dict[str, Tensor], role: str, *called: Any) -> None:
        seen[role] = called[-1]

    def _ran(self, block: nn.Module, inputs: Any, output: Tensor) -> None:
        self.total.ran += inputs[0].shape[1] * inputs[0].shape[2] * inputs[1]

    def _select(
        self, alone: bool, module: nn.Module, inputs: tuple[Tensor, ...], output: Any
    ) -> None:
        tokens = getattr(module, "tokens", inputs[0].shape[2])  # of stages those of the network
        self.total.selected[module] = output[0].shape[1] / tokens
        if alone:
            self.total.kept_tokens.append(output[0].cpu())

    def _layer(self, name: str, x: Tensor) -> LayerCount:
        known = self.total.layers
        layer = known.setdefault(name, LayerCount(self.total.weights.get(name)))
        layer.kind = max(layer.kind, kind_of(x), key=KINDS.index)
        layer.events += float(x.abs().sum(dtype=torch.float64))
        layer.inputs += x.numel()
        return layer

    def _product(self, name: str, module: Any, inputs: Any, output: Tensor) -> None:
        x: Tensor = inputs[0]
        T, batch, present = self.total.T, self.batch, effective_weight(module) != 0
        if not isinstance(module, nn.Linear) and x.ndim > present.ndim:
            x = x.flatten(0, 1)  # spikingjelly's, in multi-step mode
        layer = self._layer(name, x)
        layer.image = module in self.first
        if not isinstance(module, nn.Linear):
            padding: Any = module.padding
            if module.padding_mode != "zeros":
                around = module._reversed_padding_repeated_twice
                x, padding = F.pad(x, around, mode=module.padding_mode), 0
            fan_out = present.unflatten(0, (module.groups, -1)).sum(1).double()
            convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[present.ndim - 3]
            meet = partial(
                convolve, weight=fan_out, stride=module.stride, padding=padding,
                dilation=module.dilation, groups=module.groups,
            )  # fmt: skip
            layer.met += float(meet(torch.ones_like(x[:1]).double()).sum()) * len(x)
            if layer.kind != "real":
                values = x.abs().sum(0, keepdim=True, dtype=torch.float64)  # whole numbers: exact
                layer.met_by_value += float(meet(values).sum())
            folds, passes = T * batch / len(x), len(x)
        else:
            fan_out = present.sum(0).double()
            values = x.abs().flatten(0, -2)
            layer.met += len(values) * float(fan_out.sum())
            layer.met_by_value += float((values.sum(0, dtype=torch.float64) * fan_out).sum())
            # Time is the first axis, except in a score that reads one mean over time, [B, N, D].
            timed = x.ndim > 2 and x.shape[0] in (1, T) and x.shape[1] == batch
            folds = T / x.shape[0] if timed else 1.0
            passes = len(x) * batch if timed else len(x) if x.ndim == 2 else batch
        folds = 1.0 if self.whole or carried() is not None else folds
        layer.passes += passes * folds
        macs = output.numel() * present[0].numel()
        layer.add_macs(macs, folds, macs)

    def _attention(
        self, name: str, seen: dict[str, Tensor], module: SpikingAttention, *called: Any
    ) -> None:
        spikes = [seen[role] for role in module.roles]
        count = module.operations(*spikes, *(seen[name] for name in module.inner))
        for part in spikes:
            layer = self._layer(f"{name}.attention", part)
        folds = 1.0 if carried() is not None else self.total.T / len(spikes[0])
        layer.add_macs(count.macs, folds, count.dense)
        layer.met_by_value += count.sops


class _Matrices(TorchDispatchMode):
    """Counts the products of activations, which are no layer of a network."""

    def __init__(self, total: Operations) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = func._schema.name
        if kind == "aten::bmm":
            self.total.products += args[0].numel() * args[1].shape[-1]
        elif kind.startswith("aten::_scaled_dot_product"):
            query, key, value = args[:3]
            rows = query.numel() // query.shape[-1] * key.shape[-2]
            self.total.products += rows * (query.shape[-1] + value.shape[-1])
        return func(*args, **(kwargs or {}))


def epoch_ledger(model: Any, dataset: Any, device: torch.device) -> dict[str, float]:
    """What the row of an epoch has of a ledger on `dataset`: ``sops`` and ``weight_bytes``.

    They are those of `build_ledger` on the same samples. Model and random streams stay as they are.
    """
    with isolated_rng(0):
        counted = count_operations(model, ledger_batches(dataset, device), model.T)
    return {"sops": counted.per_sample("sops"), "weight_bytes": counted.weight_bytes}


def ledger_batches(dataset: Any, device: torch.device) -> list[Tensor]:
    """Inputs of up to `LEDGER_IMAGES` samples of a split, classes in proportion."""
    return [x.to(device) for x, _, _ in sample_loader(dataset, LEDGER_IMAGES)]


def build_ledger(model: Any, batches: Sequence[Tensor]) -> dict[str, Any]:
    """Count what is left of a model, and measure its firing and operations on real images.

    Args:
        model: with ``T``; its stem and its patch selection are found by type.
        batches: images or frames, on the model's device.

    Returns:
        Values for JSON. ``sparsity`` and bits are of all ConvPEP weights (None without a stem) and
        of all weights of convolutions and linear maps; operations per sample over all T steps.
        ``energy_pj`` is an estimate, None if a layer is dead. ``uncounted_layers`` are layers that
        did not run by their own forward, matrices that are neither a convolution nor a linear map,
        and an adapted network's products of activations.

    Raises:
        DataError: no batch, or a network in a form that cannot be counted.
    """
    if not batches:
        raise DataError("no input to count operations on: give at least one batch")
    if getattr(model, "T", None) is None:
        raise DataError(f"{type(model).__name__} has no T: load an export with plain=True")
    counted = count_operations(model, batches, model.T)
    every, dead = counted.own_weights, counted.dead
    stem = [weights for weights in every if weights.part == "stem"]
    own = {p: (m, n) for m in model.modules() for n, p in m.named_parameters(recurse=False)}
    own = {p: pair for p, pair in own.items() if pair[1] != "scores"}  # of a subnet, no weights
    values = [effective_weight(m) if n == "weight" else p for p, (m, n) in own.items()]
    macs, acs = counted.per_sample("multiplies"), counted.per_sample("acs")
    return {
        "sparsity": {
            "patch": counted.removed_share(model),
            "conv_pep_weight": _removed(stem) if stem else None,
            "total_weight": _removed(every),
            **({"halting": counted.halted} if counted.halts else {}),
        },
        **({"steps": counted.steps} if counted.halts else {}),
        "conv_pep_bits_per_weight": _bits(stem) if stem else None,
        "bits_per_weight": _bits(every),
        "weight_bytes": counted.weight_bytes,
        "binary_layers": [name for name, weights in counted.weights.items() if weights.binary],
        "params": sum(p.numel() for p in own),
        "nonzero_params": sum(int(value.count_nonzero()) for value in values),
        "firing_rate": counted.firing_rate,
        "dead_layers": dead,
        "saturated_layers": [n for n, r in counted.firing_rate.items() if r >= 1 - ROUNDING],
        **{what: counted.per_sample(what) for what in TABLE[:4]},
        "acs": acs,
        "macs_nonspiking": counted.per_sample("macs_nonspiking"),
        "layers": {
            name: {**{k: getattr(layer, k) / counted.samples for k in TABLE}, "input": layer.kind}
            for name, layer in counted.layers.items()
        },
        "uncounted_layers": _uncounted(model, counted),
        "ledger_samples": counted.samples,
        "energy_pj": None if dead else MAC_PJ * macs + AC_PJ * acs,
        "energy_note": (
            f"refused: {len(dead)} spiking layers never fired ({', '.join(dead[:3])})"
            if dead
            else f"estimate at 45 nm: {MAC_PJ} pJ a MAC, {AC_PJ} pJ a SOP; memory not counted"
        ),
        "purity": counted.purity(),
    }


def _uncounted(model: nn.Module, counted: Operations) -> list[str]:
    found = [name for name in counted.weights if name not in counted.layers]
    for name, module in model.named_modules():
        if not isinstance(module, PRUNABLE):
            own = [n for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
            found += [name or ", ".join(own)] * bool(own)
    macs = counted.products / counted.samples
    return found + [f"products of activations ({macs:,.0f} MACs)"] * bool(macs)


def _bits(layers: Sequence[LayerWeights]) -> float:
    return sum(layer.bits for layer in layers) / sum(layer.total for layer in layers)


def _removed(layers: Sequence[LayerWeights]) -> float:
    return 1 - sum(layer.kept for layer in layers) / sum(layer.total for layer in layers)
