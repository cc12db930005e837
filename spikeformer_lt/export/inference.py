"""The compact form of a network: normalisation folded, q, k and v in one product, no dead channels.

Units are found by type and channels by the chains that a model declares. Layers of few kept weights
run from lists of these, on spikes as bits; other linear maps from lists of the inputs that fired,
where these are few. Currents that no other layer reads are overwritten by their spikes, or never
stored.

The environment variable SPIKEFORMER_SPARSE chooses when a network is made compact: "auto" (default)
by the costs of `dispatch.list_gain`, "always" for every layer that the kernels fit, "never". Costs
are counted, not timed, so that a file runs the same way each time on a kind of processor.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeGuard, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from spikeformer_lt.errors import ConfigError, DataError, ExportError
from spikeformer_lt.export.prediction import Prediction, described, predict
from spikeformer_lt.export.synapses import (
    MOST_EVENTS,
    FoldedConv2d,
    FoldedLinear,
    alike,
    declares_form,
    fire,
    fire_linear,
    has_byte_products,
    sees_tensors,
    select_channels,
    tensors_alone,
)
from spikeformer_lt.layers.attention import (
    EncoderBlock,
    SpikingMLP,
    SpikingSelfAttention,
    spiking_attention,
)
from spikeformer_lt.layers.halting import halts
from spikeformer_lt.layers.inputs import check_values
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import (
    LIF,
    Heaviside,
    carried,
    constants_from_rest,
    fire_bits,
    hooked,
    observed,
    plain_lif,
    takes_bits,
)
from spikeformer_lt.layers.units import (
    ConvUnit,
    Firing,
    Folded,
    Integers,
    Reads,
    Unit,
    chains_of,
    map_rows,
)
from spikeformer_lt.preprocess import Preprocess


@dataclass(frozen=True)
class LayerChoice:
    """How one layer of a compact network runs."""

    name: str
    lists: bool
    density: float  # weights kept
    ratio: float  # estimated cost of the dense product to that of the lists; 0 where none fit


class CompactModel(nn.Module):
    """A network for inference alone, made by `compact`; its `train` raises ExportError.

    ``removed`` counts the removed channels by the name of their layer; None if the model declares
    no chains, so that no channel could be examined. ``preprocess`` is that of its ticket, or None.
    ``layers`` says how each layer runs.

    Shape: images ``[B, C, H, W]`` or frames ``[B, T, C, H, W]`` -> logits ``[B, T, K]``.
    """

    _found: Any = ("auto", ())  # what `use_lists` was asked for, and the parts that may have hooks

    def __init__(
        self, net: nn.Module, removed: dict[str, int] | None, preprocess: Preprocess | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.removed, self.preprocess = net, removed, preprocess
        self.layers: tuple[LayerChoice, ...] = ()

    def use_lists(self, how: str | None = None) -> Self:
        """Choose again which layers run from lists of their weights: "auto", "always" or "never".

        None reads the environment variable SPIKEFORMER_SPARSE. Another word is a ConfigError.
        """
        how = dispatch.read_choice() if how is None else dispatch.check_choice("how", how)
        units = {n: m for n, m in self.net.named_modules() if isinstance(m, FoldedUnit)}
        layers = {name: unit.choose(name, how) for name, unit in units.items()}
        pairs = [p for chain in chains_of(self.net) for p in itertools.pairwise(chain.names)]
        attention = [(name, f"{name[:-3]}out") for name in units if name.endswith(".qkv")]
        for name, after in pairs + attention:
            before = name in units and after in units and not units[name].by_lists
            if before and how == "auto" and units[after].prefers_events(layers[after].ratio):
                units[after].by_lists, layers[after] = False, replace(layers[after], lists=False)
        for name, after in [pair for pair in pairs if pair[0] in units]:
            reads = getattr(self.net.get_submodule(after), "by_lists", False)
            units[name].emits_bits = reads and not units[name].by_lists
        self.layers = tuple(layers.values())
        self._found = how, [m for m in self.net.modules() if next(m.children(), None) is not None]
        return self

    def describe(self) -> str:
        """How the layers run on float32 of a CPU and at most 16 steps, in one line."""
        off = dispatch.mode() == "torch" or dispatch.is_broken()
        taken = [layer for layer in self.layers if layer.lists and not off]
        why = "that is not faster" if any(x.ratio for x in self.layers) else "no cost is known"
        why = "no kernels run" if off else "so chosen" if self._found[0] == "never" else why
        told = f"no layer skips removed weights: {why}"
        if taken:
            kept = [100 * layer.density for layer in taken]
            told = (
                f"{len(taken)} of {len(self.layers)} layers multiply only their kept weights "
                f"({min(kept):.0f} to {max(kept):.0f} % kept): {', '.join(x.name for x in taken)}"
            )
        units = [m for m in self.net.modules() if isinstance(m, FoldedLinearUnit)]
        events = any(m.takes_events() and not m.by_lists for m in units)
        return f"{told}; large linear maps skip inputs at rest where few fired" * events or told

    __repr__ = described

    @property
    def T(self) -> int:
        """Time steps, which may be changed at any time."""
        return cast(Any, self.net).T  # type: ignore[no-any-return]

    @T.setter
    def T(self, steps: int) -> None:
        cast(Any, self.net).T = steps

    def forward(self, x: Tensor) -> Tensor:
        """Classify, without a graph for gradients; dense where hooks see parts of the network."""
        with torch.no_grad(), tensors_alone(any(map(observed, self._found[1]))):
            return cast(Tensor, self.net(x))

    def predict(self, x: Any, preprocess: Preprocess | None = None) -> list[Prediction]:
        """Classify pictures or recordings as users have them; see `export.predict`."""
        return predict(self, x, preprocess)

    def graphed(self, example: Tensor) -> Callable[[Tensor], Tensor]:
        """Record a forward for inputs of the shape and dtype of `example`, and replay it.

        On CUDA it is a graph, on a CPU its kernels and operations without the Python between them.

        The function returned gives the logits of the call, bit by bit. It keeps the memory of one
        forward, and the weights and settings of now; hooks are not called. Threads may share it:
        while one replays, the others call the network.

        Raises:
            ExportError: network and example are not on one device, CUDA or CPU; a state is carried;
                values of the input choose what is computed.
            DataError: (the function) an input of another shape, dtype or device, or with values
                that :func:`check_values` refuses.
        """
        devices = {x.device for x in (example, *self.parameters(), *self.buffers())}
        if len(devices) > 1 or example.device.type not in ("cpu", "cuda") or carried() is not None:
            found = "a carried state" if carried() else f"tensors on {sorted(map(str, devices))}"
            raise ExportError(
                f"graphed() got {found}; network and example must be on one CPU or CUDA device, "
                "and no state carried: otherwise call the network itself"
            )
        if halts(self.net):
            halting = "tokens or images of this network halt, which chooses what is computed"
            raise ExportError(f"{halting}; call it")
        held, busy = example.detach().clone(), threading.Lock()
        run, out = (_cuda_graph if example.is_cuda else _tape)(self, held)

        def replay(x: Tensor) -> Tensor:
            if (x.shape, x.dtype, x.device) != (held.shape, held.dtype, held.device):
                raise DataError(
                    f"the graph of {held.dtype} {list(held.shape)} got {x.dtype} "
                    f"{list(x.shape)} on {x.device}; record another for it"
                )
            check_values(x)
            if carried() is not None or not busy.acquire(blocking=False):
                return cast(Tensor, self(x))
            try:
                with torch.no_grad():
                    held.copy_(x)
                    run()
                    return out.clone()
            except dispatch.ReplayError:  # values that the kernels of the recording do not take
                return cast(Tensor, self(x))
            finally:
                busy.release()

        for other in () if example.is_cuda else (example.flip(-1) / 2, example * 0.99):
            with contextlib.suppress(dispatch.ReplayError), torch.no_grad():  # goes another way
                held.copy_(other)
                run()
                if not torch.equal(out, self(other)):
                    raise ExportError("the network computes outside of kernels and torch; call it")
                break
        return replay

    def train(self, mode: bool = True) -> Self:
        """Refuse: BatchNorm and masks are folded away."""
        if mode:
            raise ExportError("a compact network cannot be trained; train the ticket it came from")
        return super().train(False)


def _cuda_graph(net: CompactModel, held: Tensor) -> tuple[Callable[[], None], Tensor]:
    """A function that maps what `held` holds to the logits given."""
    side = torch.cuda.Stream(held.device)
    side.wait_stream(torch.cuda.current_stream(held.device))
    with torch.cuda.stream(side):
        for _ in range(3):  # what is compiled, chosen or cached at first calls
            net(held)
    torch.cuda.current_stream(held.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = net(held)
    return graph.replay, out


def _tape(net: CompactModel, held: Tensor) -> tuple[Callable[[], None], Tensor]:
    """The same on a CPU."""
    net(held)
    try:
        with dispatch.Tape() as tape:
            out = net(held)
    except dispatch.ReplayError as fault:
        raise ExportError(f"{fault}, which chooses what is computed; call the network") from None

    def run() -> None:
        for step in tape.steps:
            step()

    return run, out


@torch.no_grad()
def compact(model: nn.Module) -> CompactModel:
    """Copy a trained network into the form it should run in.

    Every `Unit` and every `SpikingSelfAttention` of such units is folded; other modules stay.
    """
    net = copy.deepcopy(model).eval().requires_grad_(False)
    _fold_children(net)
    for block in [m for m in net.modules() if isinstance(m, EncoderBlock)]:
        FoldedBlock.of_sums(block)
    made = CompactModel(net, remove_dead(net), getattr(model, "preprocess", None)).eval()
    return made.use_lists()


def _fold_children(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        if (folded := _folded_form(child)) is None:
            _fold_children(child)
        else:
            setattr(parent, name, folded)


def _folded_form(module: nn.Module) -> nn.Module | None:
    """The folded form of a unit or an attention; None of others, odd subclasses and hooked ones."""
    if hooked(*module.modules()):
        return None
    try:
        if type(module) is SpikingSelfAttention:
            together = module.q, module.k, module.v
            fits = alike(together) and all(map(declares_form, (*together, module.proj)))
            return FoldedAttention(module) if fits else None
        if not isinstance(module, Unit) or not declares_form(module):
            return None
        conv = isinstance(module.synapse, nn.Conv2d)
        return FoldedConvUnit(module) if conv else FoldedLinearUnit(module)
    except ConfigError:  # a normalisation without running statistics stays as it is
        return None


@torch.no_grad()
def remove_dead(net: nn.Module) -> dict[str, int] | None:
    """Remove dead channels of a network of folded units, in place; its function is unchanged.

    A channel is dead if it never fires, because no weight reaches it and its constant current is
    silent, or if nothing reads it, to a fixed point. Removed channels are counted by unit; None if
    the network has no chains.
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

    The voltage of a LIF under a constant current approaches its end monotonically. Rounding may
    lift one just below the threshold: it is kept.
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

    def choose(self, name: str, how: str) -> LayerChoice:
        """Choose whether the unit, called `name`, runs from lists: "auto", "always" or "never"."""
        weight, ratio = self.synapse.weight, 0.0
        density = float(weight.count_nonzero()) / max(1, weight.numel())
        if fits := self._fits_lists():
            digits = self._most().bit_length()
            ratio = _gain(weight.shape, density, digits) or 0.0
            in_bytes = self.synapse.as_bytes and has_byte_products()
            ratio /= dispatch.BYTES_GAIN[weight.dim()] if in_bytes else 1.0
        self.by_lists = fits and (how == "always" or (how == "auto" and ratio > dispatch.WORTH))
        return LayerChoice(name, self.by_lists, density, ratio)

    def prefers_events(self, ratio: float) -> bool:
        """Whether events are faster behind a dense unit than lists, which are so by a ratio."""
        weight = self.synapse.weight
        large = weight.dim() == 2 and weight.numel() >= 2**15  # of 128 rows, enough products
        gains = self.reads == "spikes" and self.takes_events()
        return large and gains and ratio < dispatch.WORTH * dispatch.EVENTS_GAIN

    def takes_events(self) -> bool:
        """Whether its inputs may be listed by their events."""
        bytes_too = self.synapse.as_bytes and has_byte_products()
        off = dispatch.event_mode() == "never" or dispatch.mode() == "torch" or bytes_too
        whole = self.reads != "real" and self._most() <= MOST_EVENTS
        return whole and not off and not dispatch.is_broken() and not self.synapse.weight.is_cuda

    def _most(self) -> int:
        """The largest whole number that the unit reads."""
        return 1 if self.reads == "spikes" else cast(Integers, self.reads).max

    def _fits_lists(self) -> bool:
        """Whether the kernels know the unit's inputs, geometry and neuron."""
        plain = type(self.act) is Heaviside and not observed(self.act)
        known = self.act is None or plain or plain_lif(self.act) is not None
        return _is_whole(self.reads, torch.inf) and known and not self.synapse.weight.is_cuda

    @dispatch.or_none
    def product(self, x: Any, T: int) -> Any:
        """Spikes as bits, or currents where no neuron follows; None if the unit runs dense."""
        synapse, act = self.synapse, self.act
        fits = self.by_lists and not sees_tensors()
        if not fits or x.shape[0] not in (1, T) or T > 16 or not takes_bits(x):
            return None
        fits = x.dtype == synapse.weight.dtype and x.shape[-1] == synapse.weight.shape[1]
        neurons = None if act is None else constants_from_rest(act)
        if not fits or observed(synapse) or (neurons is None and act is not None):
            return None
        sources, kind = (synapse.weight, synapse.bias), dispatch.load("sparse").Product
        made = synapse.cache.derive("lists", sources, lambda: kind.of(*sources, neurons), neurons)
        if isinstance(x, Tensor):
            x = dispatch.load("bits").Bits.of(x, self._most())
        return None if x is None else made(x, T)

    def fire(self, current: Tensor, T: int, stream: Any = None) -> Any:
        """Spikes of the unit's current, as bits where the next layer reads bits, plus a stream."""
        emits = self.emits_bits and current.shape[-1] % 16 == 0 and T <= 16 and not sees_tensors()
        emits = emits and takes_bits(current) and not observed(self.synapse)
        found = fire_bits(self.act, current, T) if emits else None
        if found is None and (stream is None or isinstance(stream, Tensor)):
            return fire(self.act, current, T, self.synapse, stream)
        found = fire(self.act, current, T, self.synapse) if found is None else found
        return found if stream is None else stream + found


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
        found = None if need_current else self.product(rows, T)
        if found is not None:
            return self._pooled(found)
        rows = dense(rows)
        current = self.synapse.winograd(rows)
        current = map_rows(rows, self.synapse) if current is None else current
        if self.pool is not None and self.pool_before_act:
            current = map_rows(current, self.pool)
        if self.act is None:
            return current
        if need_current:
            return self._pooled(self.act(current, T), current)
        return self._pooled(self.fire(current, T))

    def _fits_lists(self) -> bool:
        conv, before = self.synapse, self.pool is not None and self.pool_before_act
        side = conv.kernel_size[0]
        sizes = (conv.kernel_size, conv.padding, conv.stride, conv.dilation)
        keeps = sizes == ((side, side), (side // 2, side // 2), (1, 1), (1, 1)) and side % 2 == 1
        plain = keeps and conv.groups == 1 and conv.padding_mode == "zeros"
        return plain and not before and super()._fits_lists()

    def _pooled(self, out: Any, current: Any = None) -> Any:
        if self.pool is not None and not self.pool_before_act:
            pooled = None if isinstance(out, Tensor) else _pool_bits(self.pool, out)
            out = map_rows(dense(out), self.pool) if pooled is None else pooled
        return (out, out if current is None else current) if self.two_outputs else out


class FoldedLinearUnit(FoldedUnit):
    """One or several linear units of equal input and neurons, as one product.

    Shape: ``[T|1, ..., in]`` -> spikes ``[T, ..., out]``, those of all units side by side, or their
    sums with a stream of such values.
    """

    def __init__(self, *units: Unit) -> None:
        super().__init__(units[0].neuron, units[0].reads)
        parts = [unit.folded() for unit in units]
        weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        dtype, whole = units[0].synapse.weight.dtype, _is_whole(self.reads)
        self.synapse = FoldedLinear(weight, bias, dtype, whole)

    def forward(self, tokens: Any, T: int, outputs: int | None = None, stream: Any = None) -> Any:
        """Spikes of all outputs, or of the first ones."""
        found = self.product(tokens, T) if outputs is None else None
        if found is not None:
            return found if stream is None else stream + found
        tokens, synapse, current = dense(tokens), self.synapse, None
        if outputs is None and self.reads != "real":
            current = synapse.events(tokens, self._most())
        if outputs is None and current is None and (stream is None or isinstance(stream, Tensor)):
            fused = fire_linear(self.act, synapse, tokens, T, stream)
            if fused is not None:
                return fused
        current = synapse(tokens, outputs) if current is None else current
        if self.act is not None:
            return self.fire(current, T, stream)
        return current if stream is None else stream + current


class FoldedAttention(SpikingSelfAttention):
    """Spiking self attention with one product for q, k and v."""

    def __init__(self, attn: SpikingSelfAttention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.scale, self.rescale_to = attn.num_heads, attn.scale, attn.rescale_to
        self.qkv = FoldedLinearUnit(attn.q, attn.k, attn.v)
        self.attn_act = attn.attn_act
        self.out = FoldedLinearUnit(attn.proj)

    def forward(self, tokens: Tensor, T: int, stream: Any = None) -> Tensor:
        """Attend between the tokens of each step; with a stream, its sum with the spikes."""
        scale, spikes = self.scale_for(tokens), self.qkv(tokens, T)
        if not isinstance(spikes, Tensor):
            attended = _attend_bits(spikes, self.num_heads, scale, self.attn_act)
            if attended is not None:
                return cast(Tensor, self.out(attended, T, stream=stream))
        spikes = dense(spikes)
        parts = spikes.unflatten(-1, (3, -1))
        current = dispatch.attention(parts, self.num_heads, scale, self.qkv.fires)
        if current is None:
            q, k, v = (self._heads(part) for part in spikes.chunk(3, -1))
            current = rearrange(spiking_attention(q, k, v) * scale, "t b h n d -> t b n (h d)")
        out: Tensor = self.out(fire(self.attn_act, current, T), T, stream=stream)
        return out

    def received(self, tokens: Tensor, T: int) -> Tensor:
        """Attention that each token receives, ``[B, N]``; v is not computed."""
        two = self.qkv(tokens, T, 2 * self.qkv.synapse.out_features // 3)
        q, k = (self._heads(part) for part in two.chunk(2, -1))
        return (k @ q.sum(-2).unsqueeze(-1)).squeeze(-1).mean((0, 2))


class FoldedBlock(EncoderBlock):
    """A block whose branches leave their sums with the stream, in one pass with their neurons."""

    @classmethod
    def of_sums(cls, block: EncoderBlock) -> None:
        """Turn a block of a compact network that adds spikes into one, in place."""
        parts = getattr(block.mlp, "fc2", None), block.attn
        kinds = FoldedLinearUnit, FoldedAttention
        plain = all(type(part) is kind for part, kind in zip(parts, kinds, strict=True))
        plain = plain and type(block) is EncoderBlock and type(block.mlp) is SpikingMLP
        if plain and block.residual == "add":
            block.__class__ = cls

    def forward(self, tokens: Any, T: int, policy: Tensor | None = None) -> Any:
        """Run the block."""
        mlp: Any = self.mlp
        seen = any(map(observed, (self.attn, self.attn.out, mlp, mlp.fc2)))
        if policy is not None or tokens.shape[0] != T or seen:
            return super().forward(tokens, T, policy)
        tokens = self.attn(tokens, T, tokens)
        return mlp.fc2(mlp.fc1(tokens, T), T, stream=tokens)


def _is_whole(reads: Reads, most: float = 255) -> bool:
    """Whether the inputs of a unit are whole numbers, at most `most`."""
    return reads == "spikes" or (isinstance(reads, Integers) and reads.max <= most)


def dense(x: Any) -> Tensor:
    """A tensor as it is, bits as the numbers they stand for."""
    return x if isinstance(x, Tensor) else x.dense()


@dispatch.or_none
def _gain(weight: Sequence[int], density: float, digits: int) -> float:
    """What lists gain; 0 where their kernels are switched off or cannot be loaded."""
    if dispatch.mode() == "torch" or dispatch.is_broken():
        return 0.0
    return dispatch.list_gain(weight, density, digits, "fused")


@dispatch.or_none
def _attend_bits(x: Any, heads: int, scale: float, act: Any) -> Any:
    """Spikes of the neurons behind the attention of bits of q, k and v, side by side, or None."""
    neurons = constants_from_rest(act) if x.shape[0] <= 16 else None
    return neurons and dispatch.load("matmul").attend_bits(x, heads, scale, neurons)


@dispatch.or_none
def _pool_bits(layer: nn.MaxPool2d, x: Any) -> Any:
    """Max-pooled bits; None if the kernel knows no such pool."""
    sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    known = sizes == (3, 2, 1, 1) and not layer.ceil_mode and not hooked(layer)
    return dispatch.load("bits").pool(x) if known else None
