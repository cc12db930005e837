"""Folded synapses: weights that include a normalisation, multiplied by oneDNN, in bytes or floats.

Binary weights that read whole numbers run as byte products, summed in int32, which is exact; other
linear maps run on weights in oneDNN's own order.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.dispatch import in_graph, is_plain, mode
from spikeformer_lt.layers.neuron import NeuronConfig, observed, plain_lif
from spikeformer_lt.layers.units import (
    ConvLayer,
    ConvUnit,
    Folded,
    HiddenLayer,
    LinearUnit,
    keeps_size,
)

OUR_UNITS = (ConvUnit, LinearUnit, ConvLayer, HiddenLayer)
MOST_EVENTS = 16  # of a value: as many entries of a list are kept ready
FEW_ROWS = 256  # of a step; the fused pass gains 5 to 14 % on 44 rows, nothing on 1,408 (measured)


def declares_form(unit: nn.Module) -> bool:
    """Whether ``folded()`` describes the unit's forward: a subclass may change forward alone."""
    for kind in type(unit).__mro__:
        if "folded" in vars(kind) or kind in OUR_UNITS:
            return True
        if "forward" in vars(kind):
            return False
    return False


def alike(units: Sequence[Any]) -> bool:
    """Whether one neuron can follow all: the same constants, inputs and dtype."""
    facts = [
        (type(u.neuron), u.neuron.params() if plain_lif(u.neuron) else repr(u.neuron), u.reads,
         u.synapse.weight.dtype)
        for u in units
    ]  # fmt: skip
    return all(own == facts[0] for own in facts)


_SEEN = threading.local()


@contextlib.contextmanager
def tensors_alone(on: bool) -> Iterator[None]:
    """Within, with `on`, no bits pass between layers: hooks may see what these read and put out."""
    before, _SEEN.on = sees_tensors(), on
    try:
        yield
    finally:
        _SEEN.on = before


def sees_tensors() -> bool:
    """Whether layers of this thread pass tensors alone."""
    return getattr(_SEEN, "on", False)


class DerivedCache(dict[str, tuple[list[Any], Any, Any]]):
    """Tensors derived from others (for example oneDNN-packed weights), by name.

    An entry is valid as long as its sources are the same tensors, unchanged. Threads may share a
    cache. Copies and pickles are empty: oneDNN's own memory cannot be copied. torch does not count
    changes of inference tensors, nor those through ``.data``; `clear` the cache after one.
    """

    def derive(
        self, name: str, sources: Sequence[Tensor], make: Callable[[], Any], key: Hashable = None
    ) -> Any:
        """The value called `name`; `make` makes it of the `sources` and of what `key` says."""
        # Compared by identity: an address is given to another tensor once the first is gone.
        state = (key, *(None if x.is_inference() else x._version for x in sources))
        refs, before, value = self.get(name, ([], None, None))
        if before == state and all(ref() is x for ref, x in zip(refs, sources, strict=True)):
            return value
        value = make()
        self[name] = [weakref.ref(x) for x in sources], state, value
        return value

    def __reduce__(self) -> tuple[type[DerivedCache], tuple[()]]:
        return DerivedCache, ()


class _FoldedSynapse(nn.Module):
    """Weights that include a normalisation, also in bytes if they are binary."""

    signs: Tensor
    gain: Tensor
    as_bytes: bool
    cache: DerivedCache

    def _apply(self, *args: Any, **keywords: Any) -> Any:
        self.cache.clear()  # torch converts a parameter in place and does not count it as a change
        return super()._apply(*args, **keywords)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.cache.clear()

    def _multiplies_bytes(self, x: Tensor, channels: int, least: int) -> bool:
        usable = self.as_bytes and x.dtype == torch.float32 and channels >= least
        return usable and _stands_apart(x) and has_byte_products() and self.has_bytes()

    def has_bytes(self) -> bool:
        """Whether the weight is binary, and still what its bytes were made of."""
        if not self.as_bytes:
            return False
        sources = cast(Tensor, self.weight), self.signs, self.gain
        return bool(self.cache.derive("same", sources, lambda: _is_product(*sources)))


def _stands_apart(x: Tensor) -> bool:
    """Whether oneDNN may multiply `x`, which needs no gradient: its products have none."""
    apart = not in_graph() and mode() != "torch" and is_plain(x)
    return apart and not (x.requires_grad and torch.is_grad_enabled())


@dispatch.or_none
def _whole_bytes(x: Tensor) -> Tensor | None:
    """Bytes of rows [N, C], or maps [N, C, H, W], of whole numbers from 0 to 255.

    None if a value is no such number: a hook may have changed spikes.
    """
    if dispatch.is_broken():
        made, recorder = x.to(torch.uint8), dispatch.tape()
        if recorder is not None:
            recorder.steps.append(functools.partial(_check_bytes, made, x))
        return made if np.array_equal(made.numpy(), x.numpy()) else None
    rows = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
    found: Tensor | None = dispatch.load("events").as_bytes(rows.contiguous())
    return found if found is None or x.dim() == 2 else found.permute(0, 3, 1, 2)


def _check_bytes(made: Tensor, x: Tensor) -> None:
    if not np.array_equal(made.numpy(), x.numpy()):
        raise dispatch.ReplayError("these values are no whole numbers of bytes")


def _is_product(weight: Tensor, signs: Tensor, gain: Tensor) -> bool:
    """Whether bytes are those of a weight, which may have been changed since they were made."""
    return torch.equal(signs * gain.view(-1, *[1] * (weight.dim() - 1)), weight)


class FoldedConv2d(_FoldedSynapse, nn.Conv2d):
    """A convolution ``[N, C, H, W]`` -> ``[N, C', H', W']`` with its normalisation in the weights.

    Binary weights times whole numbers are summed in int32 by oneDNN, where that is faster. `whole`
    says that all inputs are whole numbers from 0 to 255.
    """

    def __init__(self, conv: nn.Conv2d, folded: Folded, whole: bool = False) -> None:
        fields = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        same: dict[str, Any] = {name: getattr(conv, name) for name in fields}
        super().__init__(conv.in_channels, conv.out_channels, **same, device="meta")
        usable = whole and isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"
        _fill(self, folded.weight, folded.bias, conv.weight.dtype, usable)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve; normalisation included."""
        whole = _whole_bytes(maps) if self.takes_bytes(maps) else None
        if whole is None:
            return cast(Tensor, self._conv_forward(maps, self.weight, self.bias))
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        ops, zero = torch.ops.onednn, torch.zeros_like(self.gain, dtype=torch.int64)
        packed = self.cache.derive("bytes", (self.signs, self.gain), lambda: ops.qconv_prepack(
            self.signs.contiguous(), self.gain, 1.0, 0, *geometry, list(maps.shape)
        ))  # fmt: skip
        out: Tensor = ops.qconv2d_pointwise(
            whole, 1.0, 0, packed, self.gain, zero, self.bias,
            *geometry, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out

    def takes_bytes(self, maps: Tensor) -> bool:
        """Whether these maps are convolved in bytes."""
        return self._multiplies_bytes(maps, maps.shape[1], 16)

    @dispatch.or_none
    def winograd(self, rows: Tensor) -> Tensor | None:
        """The convolution of rows ``[T|1, B, H, W, C]`` by Winograd; None if that is not faster.

        Transformed filters, four times the weights, are kept.
        """
        weight = self.weight
        if torch.is_grad_enabled() or observed(self) or rows.dim() != 5:
            return None
        if self.takes_bytes(rows.flatten(0, 3)) or not keeps_size(self):
            return None
        if not dispatch.takes_numba(rows, rows.numel(), weight):
            return None
        kernels = dispatch.load("winograd")
        fits, pays = kernels.suits(rows.shape, weight.shape, rows.element_size(), True)
        if not fits or not (pays or dispatch.is_forced()):
            return None
        known = self.cache.derive("filters", (weight,), lambda: kernels.transformed_filters(weight))
        out: Tensor = kernels.convolve(rows.contiguous(), weight, known=known)
        return out.add_(cast(Tensor, self.bias))


class FoldedLinear(_FoldedSynapse, nn.Linear):
    """A linear map ``[..., in]`` -> ``[..., out]``, of float32 on a CPU by oneDNN, else by torch.

    torch multiplies by MKL, at half of oneDNN's speed on AMD processors. The weight is cached in
    oneDNN's own order for the last number of rows. Binary weights times whole numbers (0 to 255,
    which `whole` says) are summed in int32. `dtype` is that of the map; None is the weight's.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None, whole: bool = False
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], device="meta")
        _fill(self, weight, bias, dtype or weight.dtype, whole)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """All outputs, or the first ones."""
        found = self._multiply_bytes(x, outputs) if self.takes_bytes(x) else None
        if found is not None:
            return found
        weight, bias = self.weight, self.bias
        if outputs is not None:
            weight, bias = weight[:outputs], bias[:outputs]  # type: ignore[assignment]
        rows = x.numel() // max(1, x.shape[-1])
        plain = x.dtype == weight.dtype == torch.float32 and _stands_apart(x)
        if not plain or not rows or not torch.backends.mkldnn.is_available():
            return F.linear(x, weight, bias)
        ops, name = torch.ops.mkldnn, "whole" if outputs is None else "part"
        order = functools.partial(ops._reorder_linear_weight, weight.contiguous(), rows)
        ordered = self.cache.derive(name, (self.weight,), order, (outputs, rows))
        out: Tensor = ops._linear_pointwise(x.contiguous(), ordered, bias, "none", [], "")
        return out

    @dispatch.or_none
    def events(self, x: Tensor, most: int) -> Tensor | None:
        """All outputs of whole numbers from 0 to `most`, by those above 0; None if not faster."""
        if in_graph() or torch.is_grad_enabled() or most > MOST_EVENTS:
            return None
        if observed(self) or self.takes_bytes(x):
            return None
        weight, bias, x = self.weight, self.bias, x.contiguous()
        if x.shape[-1] != self.in_features or not dispatch.lists_events(x, weight):
            return None
        kind = dispatch.load("events").Panels
        panels = self.cache.derive("events", (weight, bias), lambda: kind.of(weight, bias))
        return cast(Tensor | None, panels(x, most))

    def takes_bytes(self, x: Tensor) -> bool:
        """Whether this input is multiplied in bytes."""
        return x.numel() > 0 and self._multiplies_bytes(x, x.shape[-1], 128)

    def _multiply_bytes(self, x: Tensor, few: int | None) -> Tensor | None:
        outputs = self.out_features if few is None else few
        flat = _whole_bytes(x.reshape(-1, x.shape[-1]))
        if flat is None:
            return None

        def pack() -> tuple[Tensor, Tensor]:
            signs = self.signs[:outputs].contiguous()
            return self.gain[:outputs].contiguous(), torch.ops.onednn.qlinear_prepack(signs, None)

        name = "bytes" if outputs == len(self.gain) else "some bytes"
        gain, packed = self.cache.derive(name, (self.signs, self.gain), pack, outputs)
        zero = torch.zeros_like(gain, dtype=torch.int64)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            flat, 1.0, 0, packed, gain, zero, self.bias[:outputs],
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out.view(*x.shape[:-1], outputs)


def _fill(layer: Any, weight: Tensor, bias: Tensor, dtype: torch.dtype, whole: bool) -> None:
    """Set a layer's weights, cast to `dtype`; also as bytes if they are binary and `whole`."""
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    plain = weight.to(dtype).contiguous(memory_format=layout)
    layer.weight = nn.Parameter(plain, requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    size = weight.abs().flatten(1)
    gain = size.amax(1)
    binary = bool(((size == gain[:, None]) | (size == 0)).all())
    layer.as_bytes = whole and binary and dtype == torch.float32
    if layer.as_bytes:
        layer.register_buffer("signs", weight.sign().to(torch.int8))
        layer.register_buffer("gain", gain.float())
    layer.cache = DerivedCache()


def select_channels(layer: nn.Conv2d | nn.Linear, keep: Tensor, dim: int) -> None:
    """Keep some outputs (dim 0) or inputs (dim 1) of a layer without groups, in place."""
    conv = isinstance(layer, nn.Conv2d)
    layout = torch.channels_last if conv else torch.contiguous_format
    places = keep.nonzero().flatten().to(layer.weight.device)
    weight = layer.weight.detach().index_select(dim, places).contiguous(memory_format=layout)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[places], requires_grad=False)
    sides = ("out_channels", "in_channels") if conv else ("out_features", "in_features")
    setattr(layer, sides[dim], len(places))
    if isinstance(layer, FoldedConv2d | FoldedLinear):
        layer.cache.clear()
        if layer.as_bytes:
            layer.signs = layer.signs.index_select(dim, places)
            layer.gain = layer.gain[places] if dim == 0 else layer.gain


@functools.cache
def has_byte_products() -> bool:
    """Whether this processor multiplies bytes, and torch supports it."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    vnni = known.get("avx512_vnni") or getattr(torch.cpu, "_is_vnni_supported", bool)()
    names = ("qconv2d_pointwise", "qlinear_pointwise")
    return bool(vnni) and all(hasattr(torch.ops.onednn, name) for name in names)


def fire_linear(
    act: Any, linear: FoldedLinear, x: Tensor, T: int, stream: Tensor | None = None
) -> Tensor | None:
    """Return ``act(linear(x), T)``, of ``[T|1, ..., in]``, and a `stream`, in one pass of the rows.

    None is returned if that gains nothing: on many rows, where the product dominates, and where
    bytes are multiplied.
    """
    if in_graph():  # the number of rows would become a constant of the graph
        return None
    params = None if observed(linear) else plain_lif(act)
    if params is None or torch.is_grad_enabled() or x.shape[0] not in (1, T):
        return None
    few = x.shape[1:-1].numel() <= FEW_ROWS or dispatch.is_forced()
    fits = x.shape[-1] == linear.in_features and x.dtype == linear.weight.dtype
    if not few or not fits or linear.takes_bytes(x):
        return None
    shape = (T, *x.shape[1:-1], linear.out_features)
    if not fits_stream(stream, shape) or not dispatch.takes_numba(x, math.prod(shape), stream):
        return None

    v = act.start(linear.bias.expand(1, *x.shape[1:-1], -1))
    found = _linear_lif(linear, x.contiguous(), v, T, params, stream)
    if found is None:
        return None
    act.keep(found[1])
    return found[0]


@dispatch.or_none
def _linear_lif(
    linear: FoldedLinear, x: Tensor, v: Tensor | None, T: int, params: NeuronConfig,
    stream: Tensor | None,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    kernels, weight = dispatch.load("matmul"), linear.weight
    panels = linear.cache.derive("panels", (weight,), lambda: kernels.as_panels(weight))
    if panels is None:
        return None
    out: tuple[Tensor, Tensor] = kernels.linear_lif(x, panels, linear.bias, v, T, params, stream)
    return out


def fits_stream(stream: Tensor | None, shape: Sequence[int]) -> bool:
    """Whether a kernel can add a stream, if there is one, to spikes of this shape."""
    return stream is None or (stream.shape == shape and stream.is_contiguous())


def fire(
    act: Any, current: Tensor, T: int, source: nn.Module | None = None,
    stream: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return ``act(current, T)`` plus a `stream`; the current, ``[T|1, ...]``, is invalid then.

    The in-place kernel runs for a plain LIF without hooks, outside of graphs and gradients, unless
    a hook on `source`, the layer that made the current, may have stored it.
    """
    params = None if source is not None and observed(source) else plain_lif(act)
    own = current.shape[0] == T and current.is_contiguous() and not torch.is_grad_enabled()
    found, own = None, own and fits_stream(stream, current.shape)
    if params and own and dispatch.takes_numba(current, current.numel(), stream):
        v = act.start(current)
        found = _lif(current, None if v is None else v.contiguous(), T, params, stream)
    if found is None:
        spikes: Tensor = act(current, T)
        return spikes if stream is None else stream + spikes
    act.keep(found[1])
    return found[0]


@dispatch.or_none
def _lif(
    current: Tensor, v: Any, T: int, params: NeuronConfig, stream: Tensor | None
) -> tuple[Tensor, Tensor]:
    work = dispatch.load("lif").Work(current, v, T, params)
    found: tuple[Tensor, Tensor] = work.forward(current, stream)
    return found
