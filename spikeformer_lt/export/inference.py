"""What is made of a layer's tensors for one library, kept until they change.

Linear maps of the compact network, by oneDNN in floats or in bytes, else as torch does them.

BatchNorm folded into the synapses before it, in float64, and binary weights kept as bytes.

LIF neurons whose input nobody else reads: their currents are overwritten, or never stored.

Units of ours as they should run: BatchNorm in the synapses, q, k and v in one product.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.export.codec import binary_gains
from spikeformer_lt.layers.attention import SpikingSelfAttention, spiking_attention
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.kernels.dispatch import KernelError, is_plain, mode
from spikeformer_lt.layers.neuron import LIF, NeuronConfig
from spikeformer_lt.layers.norm import affine, can_fold, hooked
from spikeformer_lt.layers.units import ConvLayer, ConvUnit, HiddenLayer, LinearUnit, map_rows

__all__ = [
    "CompactAttention",
    "CompactConvLayer",
    "CompactConvUnit",
    "CompactHiddenLayer",
    "CompactLinearUnit",
    "FoldedConv",
    "Kept",
    "Product",
    "affine",
    "binary_linear",
    "can_fold",
    "fire",
    "fire_linear",
    "fold_linear",
    "has_byte_products",
    "in_graph",
]


class Kept:
    """Values by name, each made anew once a tensor that it was made of is another or was changed.

    Copies and pickles are empty: oneDNN's own memory cannot be copied. Of tensors made under
    ``inference_mode`` torch counts no changes; whoever changes one calls :meth:`clear`.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[Any], Any, Any]] = {}

    def get(
        self, name: str, sources: Sequence[Tensor], make: Callable[[], Any], key: Hashable = None
    ) -> Any:
        """The value called `name`.

        Args:
            name: one value is kept for each.
            sources: the tensors that it is made of. Not an address: torch hands those out again.
            make: makes it.
            key: whatever else it depends on.
        """
        state = (key, *(None if x.is_inference() else x._version for x in sources))
        refs, before, value = self._known.get(name, ([], None, None))
        if before == state and all(ref() is x for ref, x in zip(refs, sources, strict=True)):
            return value
        value = make()
        self._known[name] = [weakref.ref(x) for x in sources], state, value
        return value

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


class Product(nn.Module):
    """``x @ weight.T + bias``, of float32 on a CPU by oneDNN, of anything else as torch does it.

    torch asks MKL, which on processors of another maker than its own was measured at half of
    oneDNN's speed (384 to 1536 columns, 176 to 5632 rows, two AVX-512 cores: 1.4 to 3.3x). The
    weight is kept in oneDNN's own order as well, that for the last number of rows, because putting
    it there anew takes 5 to 50 % of the time of 176 rows (measured); the result is the same.

    Binary weights times whole numbers are summed in int32, which is exact, where that is faster
    (measured on AVX-512 VNNI, conversion included: 1.9 to 3.2 times from 128 columns on).

    Args:
        weight, bias: ``[out, in]`` and ``[out]``.
        binary: signs ``[out, in]`` int8 and gain ``[out]`` with ``weight = gain * signs``, where
            all inputs are whole numbers from 0 to 255.

    Shape: ``[..., in]`` -> ``[..., out]``.
    """

    weight: Tensor
    bias: Tensor
    signs: Tensor
    gain: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, binary: tuple[Tensor, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.as_bytes = binary is not None
        if binary is not None:
            self.register_buffer("signs", binary[0])
            self.register_buffer("gain", binary[1])
        self._kept = Kept()

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """All outputs, or the first ones."""
        weight, bias = self.weight, self.bias
        if self.takes_bytes(x):
            return self._integer(x, len(bias) if outputs is None else outputs)
        if outputs is not None:
            weight, bias = weight[:outputs], bias[:outputs]
        if _has_onednn() and x.dtype == weight.dtype == torch.float32 and is_plain(x):
            rows = x.numel() // x.shape[-1]
            if rows:
                ordered = self._in_order(weight, outputs, rows)
                out: Tensor = torch.ops.mkldnn._linear_pointwise(
                    x.contiguous(), ordered, bias, "none", [], ""
                )
                return out
        return F.linear(x, weight, bias)

    def select(self, keep: Tensor, dim: int) -> None:
        """Keep these outputs (dim 0) or inputs (dim 1) only."""
        places = keep.nonzero().flatten()
        self.weight = self.weight.index_select(dim, places.to(self.weight.device))
        if self.as_bytes:
            self.signs = self.signs.index_select(dim, places.to(self.signs.device))
        if dim == 0:
            self.bias = self.bias[keep]
            if self.as_bytes:
                self.gain = self.gain[keep]
        self._kept.clear()

    def takes_bytes(self, x: Tensor) -> bool:
        """Whether this input is multiplied in bytes."""
        usable = self.as_bytes and x.dtype == torch.float32 and has_byte_products()
        large = x.shape[-1] >= 128 and x.numel() > 0
        return usable and large and mode() != "torch" and not in_graph() and is_plain(x)

    def panels(self) -> Tensor | None:
        """The weight in the order of the kernel that fires as well; None if it has none."""
        from spikeformer_lt.layers.kernels.matmul import as_panels

        weight = self.weight
        made: Tensor | None = self._kept.get("panels", (weight,), lambda: as_panels(weight))
        return made

    def _integer(self, x: Tensor, outputs: int) -> Tensor:
        def pack() -> tuple[Tensor, Tensor]:
            signs = self.signs[:outputs].contiguous()
            return self.gain[:outputs].contiguous(), torch.ops.onednn.qlinear_prepack(signs, None)

        name = "bytes" if outputs == len(self.gain) else "some bytes"
        gain, packed = self._kept.get(name, (self.signs, self.gain), pack, outputs)
        zero = torch.zeros(outputs, dtype=torch.int64)
        flat = x.reshape(-1, x.shape[-1]).to(torch.uint8)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            flat, 1.0, 0, packed, gain, zero, self.bias[:outputs],
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out.view(*x.shape[:-1], outputs)

    def _in_order(self, weight: Tensor, outputs: int | None, rows: int) -> Tensor:
        def order() -> Tensor:
            made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
            return made

        name = "whole" if outputs is None else "part"
        found: Tensor = self._kept.get(name, (self.weight,), order, (outputs, rows))
        return found

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._kept.clear()


def _has_onednn() -> bool:
    return not in_graph() and mode() != "torch" and torch.backends.mkldnn.is_available()


def in_graph() -> bool:
    """Whether operations are traced or compiled: oneDNN's own have no place in a graph."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def has_byte_products() -> bool:
    """Whether this processor multiplies bytes, and torch offers it."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    vnni = known.get("avx512_vnni") or getattr(torch.cpu, "_is_vnni_supported", bool)()
    return bool(vnni) and all(
        hasattr(torch.ops.onednn, name) for name in ("qconv2d_pointwise", "qlinear_pointwise")
    )


def fold_linear(linear: nn.Linear, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of a linear map with its BatchNorm in them."""
    scale, shift = affine(norm)
    weight = linear.weight.detach().double() * scale[:, None]
    if linear.bias is not None:
        shift = shift + scale * linear.bias.detach().double()
    return weight.to(linear.weight.dtype), shift.to(linear.weight.dtype)


def binary_linear(linear: nn.Linear, norm: Any) -> tuple[Tensor, Tensor] | None:
    """Signs and gain, its BatchNorm's scale included, of a binary float32 map; None of others."""
    plain = linear.weight.detach()
    gains = binary_gains(plain, plain != 0) if plain.dtype == torch.float32 else None
    if gains is None:
        return None
    return plain.sign().to(torch.int8), (gains.double() * affine(norm)[0]).float()


class FoldedConv(nn.Module):
    """A convolution with its BatchNorm, and where it pays with its weights as bytes.

    Binary weights times spikes are summed in int32, which is exact, and scaled once by gain times
    BatchNorm scale. That path is for float32 on CPUs with byte dot products (oneDNN); everywhere
    else the folded weights run as they are.

    Args:
        conv: 3x3 or any other plain convolution.
        norm: the BatchNorm after it.
        spikes_in: the input is made of whole numbers from 0 to 255.

    Shape: ``[N, C, H, W]`` -> ``[N, C', H', W']``.
    """

    weight: Tensor
    bias: Tensor
    signs: Tensor
    gain: Tensor

    def __init__(self, conv: nn.Conv2d, norm: Any, spikes_in: bool = False) -> None:
        super().__init__()
        scale, shift = affine(norm)
        plain = conv.weight.detach()
        dtype = plain.dtype
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups = conv.dilation, conv.groups
        if conv.bias is not None:
            shift = shift + scale * conv.bias.detach().double()
        folded = (plain.double() * scale.view(-1, 1, 1, 1)).to(dtype)
        self.register_buffer("weight", folded.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", shift.to(dtype))
        gains = binary_gains(plain, plain != 0) if dtype == torch.float32 else None
        usable = spikes_in and isinstance(conv.padding, tuple) and conv.padding_mode == "zeros"
        self.as_bytes = usable and gains is not None
        if self.as_bytes:
            assert gains is not None
            self.register_buffer("signs", plain.sign().to(torch.int8))
            self.register_buffer("gain", (gains.double() * scale).float())
        self._kept = Kept()

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, scale and shift."""
        if self.as_bytes and maps.dtype == torch.float32 and bytes_are_faster(maps):
            return self._integer(maps)
        bias = self.bias
        return F.conv2d(
            maps, self.weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def select(self, outputs: Tensor, inputs: Tensor) -> None:
        """Keep these output filters and input channels only."""
        assert self.groups == 1
        kept = self.weight[outputs][:, inputs]
        self.weight = kept.contiguous(memory_format=torch.channels_last)
        self.bias = self.bias[outputs]
        if self.as_bytes:
            self.signs, self.gain = self.signs[outputs][:, inputs], self.gain[outputs]
        self._kept.clear()

    def _integer(self, maps: Tensor) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        ops = torch.ops.onednn
        zero = torch.zeros(len(self.gain), dtype=torch.int64)

        def pack() -> Tensor:
            signs, shape = self.signs.contiguous(), list(maps.shape)
            made: Tensor = ops.qconv_prepack(signs, self.gain, 1.0, 0, *geometry, shape)
            return made

        packed = self._kept.get("bytes", (self.signs, self.gain), pack)
        out: Tensor = ops.qconv2d_pointwise(
            maps.to(torch.uint8), 1.0, 0, packed, self.gain, zero, self.bias,
            *geometry, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._kept.clear()


def bytes_are_faster(maps: Tensor) -> bool:
    """Whether byte products run, and run faster, on this machine and this input.

    Measured on two cores with AVX-512 VNNI, conversion of the spikes included: 1.7 to 5 times
    faster than float32 from 48 input channels on; without VNNI nothing is gained.
    """
    return maps.shape[1] >= 16 and not in_graph() and is_plain(maps) and has_byte_products()


_FEW = 256  # rows of a step: 5 to 14 % are gained on 44 of them, none on 1,408 (products.py)


def fire(act: Any, current: Tensor, T: int, source: nn.Module | None = None) -> Tensor:
    """``act(current, T)``, which may overwrite `current`.

    A kernel that writes where it read touches half the memory. It runs where `act` is a plain LIF
    without hooks, and only outside of graphs and gradients.

    Args:
        act: the activation.
        current: ``[T|1, ...]``; of no use afterwards.
        T: number of time steps.
        source: what made the current; a hook that watches it may have kept it.
    """
    params = None if source is not None and _watched(source) else _plain(act)
    own = current.shape[0] == T and current.is_contiguous() and not torch.is_grad_enabled()
    if params is None or not own or not dispatch.takes_numba(current, current.numel()):
        return act(current, T)  # type: ignore[no-any-return]
    try:
        from spikeformer_lt.layers.kernels.launch import Work

        v = act.start(current)
        start = None if v is None else v.contiguous()
        spikes, last = Work(current, start, T, params).forward(current)
    except ImportError:  # which the activation will report
        return act(current, T)  # type: ignore[no-any-return]
    except KernelError as error:
        dispatch.give_up(error)
        return act(current, T)  # type: ignore[no-any-return]
    act.keep(last)
    return spikes


def fire_linear(act: Any, product: Product, x: Tensor, T: int) -> Tensor | None:
    """``act(product(x), T)`` in one pass over the rows; None where that does not apply or pay.

    Of many rows the product alone takes so long that nothing is gained, and byte products are
    faster than both.

    Args:
        act: the activation.
        product: the linear map.
        x: ``[T|1, ..., in]``.
        T: number of time steps.
    """
    if in_graph():  # where a look at the number of rows would fix it
        return None
    params = None if _watched(product) else _plain(act)
    if params is None or torch.is_grad_enabled() or x.shape[0] not in (1, T):
        return None
    if x.shape[-1] != product.weight.shape[1]:  # the product will say so
        return None
    few = x.shape[1:-1].numel() <= _FEW or dispatch.is_forced()
    if not few or product.takes_bytes(x):
        return None
    if not dispatch.takes_numba(x, x.numel() // x.shape[0] * T) or product.weight.dtype != x.dtype:
        return None
    try:
        from spikeformer_lt.layers.kernels.matmul import linear_lif

        panels = product.panels()
        if panels is None:
            return None
        v = act.start(product.bias.expand(1, *x.shape[1:-1], -1))
        spikes, last = linear_lif(x.contiguous(), panels, product.bias, v, T, params)
    except ImportError:  # which the activation will report
        return None
    except KernelError as error:
        dispatch.give_up(error)
        return None
    act.keep(last)
    return spikes


def _plain(act: Any) -> NeuronConfig | None:
    """Constants of a LIF that nothing watches; None for every other activation."""
    if type(act) is not LIF or act.store_v_seq or _watched(act):
        return None
    return act.params()


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks) or hooked(module)


class CompactConvUnit(nn.Module):
    """A `ConvUnit` whose BatchNorm is in its convolution; same shapes, same calls."""

    def __init__(self, unit: ConvUnit, spikes_in: bool) -> None:
        super().__init__()
        self.conv = FoldedConv(unit.conv, unit.norm, spikes_in)
        self.act, self.pool, self.pool_before_act = unit.act, unit.pool, unit.pool_before_act

    def forward(self, rows: Tensor, T: int, need_current: bool = False) -> tuple[Tensor, Tensor]:
        """Return (activations, input current of the activation)."""
        current = map_rows(rows, self.conv)
        if self.pool is not None and self.pool_before_act:
            current = map_rows(current, self.pool)
            return self.act(current, T), current
        out = self.act(current, T)
        return (out if self.pool is None else map_rows(out, self.pool)), current


class CompactLinearUnit(nn.Module):
    """One or several `LinearUnit` on the same input, as one product and one LIF.

    Args:
        units: their neurons are alike.
        whole: the input is made of whole numbers from 0 to 255.
    """

    def __init__(self, *units: LinearUnit, whole: bool = False) -> None:
        super().__init__()
        folded = [fold_linear(unit.linear, unit.norm) for unit in units]
        weights, biases = zip(*folded, strict=True)
        found = [binary_linear(unit.linear, unit.norm) if whole else None for unit in units]
        parts = [part for part in found if part is not None]
        binary = None
        if len(parts) == len(units):
            signs, gains = zip(*parts, strict=True)
            binary = torch.cat(signs), torch.cat(gains)
        self.product = Product(torch.cat(weights), torch.cat(biases), binary)
        self.act = units[0].act

    def forward(self, tokens: Tensor, T: int, rows: int | None = None) -> Tensor:
        """Spikes ``[T, B, N, rows]`` of ``[T|1, B, N, D]``; all rows by default."""
        spikes = fire_linear(self.act, self.product, tokens, T) if rows is None else None
        if spikes is None:
            spikes = fire(self.act, self.product(tokens, rows), T, self.product)
        return spikes


class CompactAttention(SpikingSelfAttention):
    """Spiking self attention with one product for q, k and v."""

    def __init__(self, attn: SpikingSelfAttention, whole: bool = False) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.scale, self.rescale_to = attn.num_heads, attn.scale, attn.rescale_to
        self.qkv = CompactLinearUnit(attn.q, attn.k, attn.v, whole=whole)
        self.attn_act = attn.attn_act
        self.out = CompactLinearUnit(attn.proj, whole=True)  # it reads the spikes of attn_act

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Attend between the tokens of each step."""
        scale, spikes = self.scale_for(tokens), self.qkv(tokens, T)
        current = dispatch.attention(spikes.unflatten(-1, (3, -1)), self.num_heads, scale)
        if current is None:
            q, k, v = (self._heads(part) for part in spikes.chunk(3, -1))
            summed = spiking_attention(q, k, v) * scale
            current = rearrange(summed, "t b h n d -> t b n (h d)")
        return self.out(fire(self.attn_act, current, T), T)  # type: ignore[no-any-return]

    def received(self, tokens: Tensor, T: int) -> Tensor:
        """Attention that each token receives, ``[B, N]``; v is not computed."""
        two = self.qkv(tokens, T, 2 * len(self.qkv.product.bias) // 3)
        q, k = (self._heads(part) for part in two.chunk(2, -1))
        return (k @ q.sum(-2).unsqueeze(-1)).squeeze(-1).mean((0, 2))


class CompactConvLayer(nn.Module):
    """A `ConvLayer` whose BatchNorm is in its convolution; same shapes, same call."""

    def __init__(self, layer: ConvLayer, spikes_in: bool = False) -> None:
        super().__init__()
        self.conv, self.act = FoldedConv(layer.conv, layer.norm, spikes_in), layer.act

    def forward(self, rows: Tensor, T: int) -> Tensor:
        """Spikes, or the current where there is no neuron."""
        current = map_rows(rows, self.conv)
        return current if self.act is None else fire(self.act, current, T, self.conv)


class CompactHiddenLayer(nn.Module):
    """A `HiddenLayer` with its BatchNorm, if it has one, in its product; same shapes, same call."""

    def __init__(self, layer: HiddenLayer) -> None:
        super().__init__()
        weight, bias = layer.linear.weight.detach(), layer.linear.bias.detach()
        if layer.norm is not None:
            weight, bias = fold_linear(layer.linear, layer.norm)
        self.product, self.act = Product(weight, bias), layer.act

    def forward(self, values: Tensor, T: int) -> Tensor:
        """Spikes of the hidden neurons."""
        spikes = fire_linear(self.act, self.product, values, T)
        if spikes is None:
            spikes = fire(self.act, self.product(values), T, self.product)
        return spikes
