"""The compact form of a network: normalisation folded, q, k and v in one product, no dead channels.

Units are found by type and channels by the chains that a model declares. Binary weights that read
whole numbers run as byte products, summed in int32, which is exact; other linear maps run on
weights in oneDNN's own order. Currents that no other layer reads are overwritten by their spikes,
or never stored.
"""

from __future__ import annotations

import copy
import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Self, TypeGuard, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError, DataError, ExportError
from spikeformer_lt.export import lists
from spikeformer_lt.export.lists import LayerChoice, dense, fire, in_graph, observed, plain_lif
from spikeformer_lt.export.prediction import Prediction, predict
from spikeformer_lt.layers.attention import SpikingSelfAttention, spiking_attention
from spikeformer_lt.layers.inputs import check_values
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.dispatch import is_plain, mode
from spikeformer_lt.layers.neuron import LIF, NeuronConfig, carried
from spikeformer_lt.layers.units import (
    ConvLayer,
    ConvUnit,
    Firing,
    Folded,
    HiddenLayer,
    Integers,
    LinearUnit,
    Reads,
    Unit,
    chains_of,
    map_rows,
)
from spikeformer_lt.preprocess import Preprocess

OUR_UNITS = (ConvUnit, LinearUnit, ConvLayer, HiddenLayer)
FEW_ROWS = 256  # of a step; the fused pass gains 5 to 14 % on 44 rows, nothing on 1,408 (measured)


class CompactModel(nn.Module):
    """A network for inference alone, made by `compact`; its `train` raises ExportError.

    ``removed`` counts the removed channels by the name of their layer; None if the model declares
    no chains, so that no channel could be examined. ``preprocess`` is that of its ticket, or None.
    ``layers`` says how each layer runs.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.
    """

    def __init__(
        self,
        net: nn.Module,
        removed: dict[str, int] | None,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__()
        self.net, self.removed, self.preprocess = net, removed, preprocess
        self.layers: tuple[LayerChoice, ...] = ()

    def use_lists(self, how: str | None = None) -> Self:
        """Choose again which layers run from lists of their weights: "auto", "always" or "never".

        None reads the environment variable SPIKEFORMER_SPARSE.
        """
        names = [(name, m) for name, m in self.net.named_modules() if isinstance(m, FoldedUnit)]
        self.layers = lists.choose(names, dispatch.read_sparse_mode() if how is None else how)
        for chain in chains_of(self.net):
            for name, after in itertools.pairwise(chain.names):
                unit, reader = self.net.get_submodule(name), self.net.get_submodule(after)
                if isinstance(unit, FoldedUnit):
                    unit.emits_bits = getattr(reader, "by_lists", False) and not unit.by_lists
        return self

    def describe(self) -> str:
        """How the layers run, in one line."""
        return lists.described(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Classify, without a graph for gradients."""
        with torch.no_grad():
            return cast(Tensor, self.net(x))

    def predict(self, x: Any, preprocess: Preprocess | None = None) -> list[Prediction]:
        """Classify pictures or recordings as users have them; see `export.predict`."""
        return predict(self, x, preprocess)

    def graphed(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        """Record this network as a CUDA graph for inputs of the shape and dtype of `example`.

        Returns:
            A function that replays the graph on an input: one launch, and the logits of the call.
            The graph keeps the memory of one forward, and the weights of now; hooks are not called.

        Raises:
            ExportError: the network or the example is not on a CUDA device, or a state is carried.
            DataError: (the function) an input of another shape, dtype or device, or with values
                that :func:`check_values` refuses.
        """
        devices = {x.device.type for x in (example, *self.parameters(), *self.buffers())}
        if devices != {"cuda"} or carried() is not None:
            where = "a carried state" if devices == {"cuda"} else f"tensors on {sorted(devices)}"
            raise ExportError(
                f"a CUDA graph got {where}; network and example must be on one CUDA device, and no "
                "state carried: elsewhere call the network itself"
            )
        held, side = example.clone(), torch.cuda.Stream(example.device)
        side.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(side):
            for _ in range(3):  # what is compiled, chosen or cached at first calls
                self(held)
        torch.cuda.current_stream(example.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self(held)

        def replay(x: Tensor) -> Tensor:
            if (x.shape, x.dtype, x.device) != (held.shape, held.dtype, held.device):
                raise DataError(
                    f"the CUDA graph of {held.dtype} {list(held.shape)} got {x.dtype} "
                    f"{list(x.shape)} on {x.device}; record another for it"
                )
            check_values(x)
            held.copy_(x)
            graph.replay()
            return cast(Tensor, out.clone())

        return replay

    def train(self, mode: bool = True) -> Self:
        """Refuse: BatchNorm and masks are folded away."""
        if mode:
            raise ExportError("a compact network cannot be trained; train the ticket it came from")
        return super().train(False)


@torch.no_grad()
def compact(model: nn.Module) -> CompactModel:
    """Copy a trained network into the form it should run in.

    Every `Unit` and every `SpikingSelfAttention` of such units is replaced by its folded form,
    whatever its name; other modules stay as they are.
    """
    net = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_children(net)
    made = CompactModel(net, remove_dead(net), getattr(model, "preprocess", None)).eval()
    return made.use_lists()


def _fold_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if (folded := _folded_form(child)) is None:
            _fold_children(child)
        else:
            setattr(parent, name, folded)


def _folded_form(module: nn.Module) -> nn.Module | None:
    """The folded form of a unit or an attention; None of other modules and of odd subclasses."""
    try:
        if type(module) is SpikingSelfAttention:
            parts = (module.q, module.k, module.v, module.proj)
            return FoldedAttention(module) if all(map(_declares_form, parts)) else None
        if not isinstance(module, Unit) or not _declares_form(module):
            return None
        conv = isinstance(module.synapse, nn.Conv2d)
        return FoldedConvUnit(module) if conv else FoldedLinearUnit(module)
    except ConfigError:  # a normalisation without running statistics stays as it is
        return None


def _declares_form(unit: nn.Module) -> bool:
    """Whether ``folded()`` describes the unit's forward: a subclass may change forward alone."""
    for kind in type(unit).__mro__:
        if "folded" in vars(kind) or kind in OUR_UNITS:
            return True
        if "forward" in vars(kind):
            return False
    return False


@torch.no_grad()
def remove_dead(net: nn.Module) -> dict[str, int] | None:
    """Remove dead channels of a network of folded units, in place; its function is unchanged.

    A channel is dead if it never fires, because no weight reaches it and its constant current is
    silent, or if nothing reads it. One removal may leave another channel unread, so they repeat to
    a fixed point. Removed channels are counted by unit; None if the network has no chains.
    """
    if not chains_of(net):
        return None
    pairs, removed, changed = find_pairs(net), Counter[str](), True
    while changed:
        changed = False
        for name, unit, reader, repeats in pairs:
            columns = (reader.weight != 0).transpose(0, 1).flatten(1).any(1)
            read = columns.view(repeats, -1).any(0)
            keep = alive(unit.synapse.weight, unit.synapse.bias, unit.neuron) & read
            keep[0] |= not bool(keep.any())  # an empty map cannot be convolved
            if not bool(keep.all()):
                select_channels(unit.synapse, keep, 0)
                select_channels(reader, keep.repeat(repeats), 1)
                removed[name] += int((~keep).sum())
                changed = True
    return dict(removed)


def find_pairs(net: nn.Module) -> list[tuple[str, FoldedUnit, nn.Conv2d | nn.Linear, int]]:
    """Name of every folded unit with one reader, the unit, its reader, `repeats` of its chain."""
    found = []
    for chain in chains_of(net):
        for name, after in itertools.pairwise(chain.names):
            unit, reader = net.get_submodule(name), net.get_submodule(after)
            synapse = reader.synapse if isinstance(reader, FoldedUnit) else reader
            repeats = chain.repeats if after == chain.names[-1] else 1
            if not isinstance(unit, FoldedUnit) or unit.neuron is None:
                continue
            if _is_dense(unit.synapse) and _is_dense(synapse):
                found.append((name, unit, synapse, repeats))
    return found


def _is_dense(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether each output of a layer may read every input."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def alive(weight: Tensor, bias: Tensor, act: Any) -> Tensor:
    """Channels that some weight reaches, or whose constant current is not silent.

    From rest, the voltage of a LIF under a constant current approaches its end monotonically, so a
    channel fires if rest or end reach the threshold. Rounding may lift one just below: it is kept.
    """
    reached = (weight != 0).flatten(1).any(1)
    if not isinstance(act, LIF):
        constant: Tensor = act(bias[None], 1)
        return reached | (constant[0] != 0)
    rest: float = act.v_reset or 0.0
    end = rest + bias.double() * (1.0 if act.decay_input else act.tau)
    least: float = act.v_threshold - 1e-4 * max(1.0, abs(act.v_threshold))
    return reached | (end.clamp(min=rest) >= least)


class FoldedUnit(Firing, nn.Module):
    """Synapses with the normalisation in their weights, and the neurons after them."""

    synapse: Any

    def __init__(self, neuron: Any, reads: Reads) -> None:
        super().__init__()
        self.act, self.reads = neuron, reads
        self.by_lists = self.emits_bits = False

    def folded(self) -> Folded:
        """Weight and bias in float64, and the neuron."""
        weight, bias = self.synapse.weight.detach(), self.synapse.bias.detach()
        return Folded(weight.double(), bias.double(), self.act)


class FoldedConvUnit(FoldedUnit):
    """A folded unit of a convolution, called as the unit that it replaces, with its pool.

    Shape: rows ``[T|1, B, H, W, C]`` -> spikes ``[T|1, B, H', W', C']``, or the current where there
    is no neuron; in place of a `ConvUnit` both.
    """

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit.neuron, unit.reads)
        assert isinstance(unit.synapse, nn.Conv2d)
        self.synapse = FoldedConv2d(unit.synapse, unit.folded(), _is_whole(unit.reads))
        self.two_outputs = isinstance(unit, ConvUnit)
        self.pool = unit.pool if isinstance(unit, ConvUnit) else None
        self.pool_before_act = isinstance(unit, ConvUnit) and unit.pool_before_act

    def forward(self, rows: Any, T: int, need_current: bool = False) -> Any:
        """Spikes; in place of a `ConvUnit` also the current, which is valid if `need_current`."""
        found = None if need_current else lists.product(self, rows, T)
        if found is not None:
            return self._pooled(found)
        current = map_rows(dense(rows), self.synapse)
        if self.pool is not None and self.pool_before_act:
            current = map_rows(current, self.pool)
        if self.act is None:
            return current
        if need_current:
            return self._pooled(self.act(current, T), current)
        out = lists.fires(self, current, T)
        return self._pooled(fire(self.act, current, T, self.synapse) if out is None else out)

    def _pooled(self, out: Any, current: Any = None) -> Any:
        if self.pool is not None and not self.pool_before_act:
            pooled = lists.pool(self.pool, out)
            out = map_rows(dense(out), self.pool) if pooled is None else pooled
        return (out, out if current is None else current) if self.two_outputs else out


class FoldedLinearUnit(FoldedUnit):
    """One or several linear units of equal input and neurons, as one product.

    Shape: ``[T|1, ..., in]`` -> spikes ``[T, ..., out]``, those of all units side by side.
    """

    def __init__(self, *units: Unit) -> None:
        super().__init__(units[0].neuron, units[0].reads)
        parts = [unit.folded() for unit in units]
        weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        dtype, whole = units[0].synapse.weight.dtype, _is_whole(self.reads)
        self.synapse = FoldedLinear(weight, bias, dtype, whole)

    def forward(self, tokens: Any, T: int, outputs: int | None = None) -> Any:
        """Spikes of all outputs, or of the first ones."""
        found = lists.product(self, tokens, T) if outputs is None else None
        if found is not None:
            return found
        tokens = dense(tokens)
        fused = fire_linear(self.act, self.synapse, tokens, T) if outputs is None else None
        if fused is not None:
            return fused
        current = self.synapse(tokens, outputs)
        return current if self.act is None else fire(self.act, current, T, self.synapse)


class FoldedAttention(SpikingSelfAttention):
    """Spiking self attention with one product for q, k and v."""

    def __init__(self, attn: SpikingSelfAttention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.scale, self.rescale_to = attn.num_heads, attn.scale, attn.rescale_to
        self.qkv = FoldedLinearUnit(attn.q, attn.k, attn.v)
        self.attn_act = attn.attn_act
        self.out = FoldedLinearUnit(attn.proj)

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Attend between the tokens of each step."""
        scale, spikes = self.scale_for(tokens), self.qkv(tokens, T)
        attended = lists.attend(spikes, self.num_heads, scale, self.attn_act)
        if attended is not None:
            return cast(Tensor, self.out(attended, T))
        spikes = dense(spikes)
        current = dispatch.attention(spikes.unflatten(-1, (3, -1)), self.num_heads, scale)
        if current is None:
            q, k, v = (self._heads(part) for part in spikes.chunk(3, -1))
            summed = spiking_attention(q, k, v) * scale
            current = rearrange(summed, "t b h n d -> t b n (h d)")
        out: Tensor = self.out(fire(self.attn_act, current, T), T)
        return out

    def received(self, tokens: Tensor, T: int) -> Tensor:
        """Attention that each token receives, ``[B, N]``; v is not computed."""
        two = self.qkv(tokens, T, 2 * self.qkv.synapse.out_features // 3)
        q, k = (self._heads(part) for part in two.chunk(2, -1))
        return (k @ q.sum(-2).unsqueeze(-1)).squeeze(-1).mean((0, 2))


class DerivedCache(dict[str, tuple[list[Any], Any, Any]]):
    """Tensors derived from others (for example oneDNN-packed weights), by name.

    An entry is valid as long as its sources are the same tensors, unchanged. Threads may share a
    cache. Copies and pickles are empty: oneDNN's own memory cannot be copied. torch does not count
    changes of tensors made under ``inference_mode``; `clear` the cache after one.
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
        return usable and not in_graph() and is_plain(x) and has_byte_products()


class FoldedConv2d(_FoldedSynapse, nn.Conv2d):
    """A convolution ``[N, C, H, W]`` -> ``[N, C', H', W']`` with its normalisation in the weights.

    Binary weights times whole numbers are summed in int32 by oneDNN, where that is faster: 1.7 to 5
    times from 48 input channels on, conversion included (two AVX-512 VNNI cores). `whole` says that
    all inputs are whole numbers from 0 to 255.
    """

    def __init__(self, conv: nn.Conv2d, folded: Folded, whole: bool = False) -> None:
        fields = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        same: dict[str, Any] = {name: getattr(conv, name) for name in fields}
        super().__init__(conv.in_channels, conv.out_channels, **same, device="meta")
        usable = whole and isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"
        _fill(self, folded.weight, folded.bias, conv.weight.dtype, usable)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve; normalisation included."""
        if not self.takes_bytes(maps):
            return cast(Tensor, self._conv_forward(maps, self.weight, self.bias))
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        ops, zero = torch.ops.onednn, torch.zeros(len(self.gain), dtype=torch.int64)
        packed = self.cache.derive("bytes", (self.signs, self.gain), lambda: ops.qconv_prepack(
            self.signs.contiguous(), self.gain, 1.0, 0, *geometry, list(maps.shape)
        ))  # fmt: skip
        out: Tensor = ops.qconv2d_pointwise(
            maps.to(torch.uint8), 1.0, 0, packed, self.gain, zero, self.bias,
            *geometry, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out

    def takes_bytes(self, maps: Tensor) -> bool:
        """Whether these maps are convolved in bytes."""
        return self._multiplies_bytes(maps, maps.shape[1], 16)


class FoldedLinear(_FoldedSynapse, nn.Linear):
    """A linear map ``[..., in]`` -> ``[..., out]``, of float32 on a CPU by oneDNN, else by torch.

    torch multiplies by MKL, which reaches half of oneDNN's speed on AMD processors (384 to 1536
    columns, 176 to 5632 rows, two AVX-512 cores: 1.4 to 3.3x). The weight is cached in oneDNN's own
    order for the last number of rows; ordering takes 5 to 50 % of the time of 176 rows. Binary
    weights times whole numbers (0 to 255, which `whole` says) are summed in int32: 1.9 to 3.2 times
    faster from 128 columns on. `dtype` is that of the map; None is that of the weight.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype | None = None, whole: bool = False
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], device="meta")
        _fill(self, weight, bias, dtype or weight.dtype, whole)

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """All outputs, or the first ones."""
        if self.takes_bytes(x):
            return self._multiply_bytes(x, self.out_features if outputs is None else outputs)
        weight, bias = self.weight, self.bias
        if outputs is not None:
            weight, bias = weight[:outputs], bias[:outputs]  # type: ignore[assignment]
        rows = x.numel() // max(1, x.shape[-1])
        plain = x.dtype == weight.dtype == torch.float32 and not in_graph() and is_plain(x)
        has_onednn = mode() != "torch" and torch.backends.mkldnn.is_available()
        if not plain or not rows or not has_onednn:
            return F.linear(x, weight, bias)
        ops, name = torch.ops.mkldnn, "whole" if outputs is None else "part"
        order = functools.partial(ops._reorder_linear_weight, weight.contiguous(), rows)
        ordered = self.cache.derive(name, (self.weight,), order, (outputs, rows))
        out: Tensor = ops._linear_pointwise(x.contiguous(), ordered, bias, "none", [], "")
        return out

    def takes_bytes(self, x: Tensor) -> bool:
        """Whether this input is multiplied in bytes."""
        filled = x.numel() > 0 and mode() != "torch"
        return filled and self._multiplies_bytes(x, x.shape[-1], 128)

    def _multiply_bytes(self, x: Tensor, outputs: int) -> Tensor:
        def pack() -> tuple[Tensor, Tensor]:
            signs = self.signs[:outputs].contiguous()
            return self.gain[:outputs].contiguous(), torch.ops.onednn.qlinear_prepack(signs, None)

        name = "bytes" if outputs == len(self.gain) else "some bytes"
        gain, packed = self.cache.derive(name, (self.signs, self.gain), pack, outputs)
        zero = torch.zeros(outputs, dtype=torch.int64)
        flat = x.reshape(-1, x.shape[-1]).to(torch.uint8)
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


def _is_whole(reads: Reads) -> bool:
    """Whether the inputs of a unit fit into bytes."""
    return reads == "spikes" or (isinstance(reads, Integers) and reads.max <= 255)


def fire_linear(act: Any, linear: FoldedLinear, x: Tensor, T: int) -> Tensor | None:
    """Return ``act(linear(x), T)``, of ``[T|1, ..., in]``, in one pass over the rows.

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
    if not dispatch.takes_numba(x, x.numel() // x.shape[0] * T):
        return None

    v = act.start(linear.bias.expand(1, *x.shape[1:-1], -1))
    found = _linear_lif(linear, x.contiguous(), v, T, params)
    if found is None:
        return None
    act.keep(found[1])
    return found[0]


@dispatch.or_none
def _linear_lif(
    linear: FoldedLinear, x: Tensor, v: Tensor | None, T: int, params: NeuronConfig
) -> tuple[Tensor, Tensor] | None:
    kernels, weight = dispatch.load("matmul"), linear.weight
    panels = linear.cache.derive("panels", (weight,), lambda: kernels.as_panels(weight))
    if panels is None:
        return None
    out: tuple[Tensor, Tensor] = kernels.linear_lif(x, panels, linear.bias, v, T, params)
    return out
