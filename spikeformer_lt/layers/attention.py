"""Spiking encoders: self attention (SSA) without softmax, token attention (QK), MLP and block."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.kernels import dispatch
from spikeformer_lt.layers.neuron import LIF, NeuronConfig, make_activation
from spikeformer_lt.layers.units import (
    Chain,
    LinearUnit,
    Reads,
    add_spikes,
    emitted,
    spikes_together,
)

ATTENTIONS = ("ssa", "linear", "random", "qk", "sdsa")
RESIDUALS = ("add", "iand", "or", "ms")


def spiking_attention(q: Tensor, k: Tensor, v: Tensor, linear: bool = False) -> Tensor:
    """``q k^T v`` of ``[T, B, h, N, d]`` spikes, associated the cheaper way, or k^T v first.

    Both orders are exact: every partial sum is an integer far below 2^24.
    """
    if linear or q.shape[-2] >= q.shape[-1]:
        return q @ (k.transpose(-2, -1) @ v)
    return (q @ k.transpose(-2, -1)) @ v


class AttentionCount(NamedTuple):
    """Operations of one attention: multiply-accumulates of its products, and what spikes cause."""

    macs: float  # as computed
    dense: float  # as the papers count: (q k^T) v
    sops: float  # accumulates; integers count by value


class SpikingAttention(nn.Module):
    """What attentions share: units `roles` on the input, a neuron, and the projection after it.

    Args:
        dim, num_heads: embedding width D, a multiple of the heads h.
        attn_threshold: firing threshold of the neuron after the attention sum.
        bias, qkv_bias: bias of the projection, and whether q, k and v share in it.
        activation, neuron: of the neurons, and their constants; None means the defaults.
        current: end before the projection's neuron, whose current a sum follows.
        v_ratio: width of v over that of q and k.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D]`` spikes, or that current.
    """

    roles: ClassVar[tuple[str, ...]]
    inner: ClassVar[tuple[str, ...]] = ()  # neurons between its products
    pools: ClassVar[bool] = False  # whether its neurons fire for all tokens together
    rescales: ClassVar[bool] = False  # whether its sums follow `rescale_to`
    sums: ClassVar[str] = ""  # why its products are not driven by spikes alone; empty if they are

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        attn_threshold: float = 0.5,
        bias: bool = True,
        qkv_bias: bool = True,
        activation: str = "lif",
        neuron: NeuronConfig | None = None,
        current: bool = False,
        v_ratio: int = 1,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ConfigError(f"num_heads={num_heads} must divide the embedding dim={dim}")
        self.num_heads = num_heads
        self.rescale_to: int | None = None  # tokens N: sums over K kept keys are multiplied by N/K
        same: dict[str, Any] = {"activation": activation, "neuron": neuron}
        for role in self.roles:
            width = dim * v_ratio if role == "v" else dim
            setattr(self, role, LinearUnit(dim, width, bias=bias and qkv_bias, **same))
        self.attn_act = make_activation(activation, neuron, v_threshold=attn_threshold)
        self.proj = LinearUnit(dim * v_ratio, dim, bias=bias, current=current, **same)
        self.proj.reads = emitted(self.attn_act)

    def set_reads(self, reads: Reads) -> None:
        """Tell the units what values the attention reads."""
        for role in self.roles:
            getattr(self, role).reads = reads

    def spikes(self, tokens: Tensor, T: int) -> tuple[Tensor | None, list[Tensor]]:
        """Spikes of the units, by one kernel ``[T, B, N, U, D]`` if one applies, else a list."""
        units = [getattr(self, role) for role in self.roles]
        together = spikes_together(units, tokens, T)
        return together, [] if together is not None else [unit(tokens, T) for unit in units]

    def operations(self, *spikes: Tensor) -> AttentionCount:
        """Operations on spikes ``[T, B, N, D]`` of the units `roles`, then those of `inner`."""
        raise NotImplementedError

    def _heads(self, spikes: Tensor) -> Tensor:  # or bits, which einops does not know
        apart: Tensor = spikes.unflatten(-1, (self.num_heads, -1))
        return apart.transpose(2, 3)


class SpikingSelfAttention(SpikingAttention):
    """SSA of Spikformer: ``proj(LIF((q k^T) v * scale))`` with spiking q, k, v.

    Args:
        dim, num_heads, options: as of a :class:`SpikingAttention`.
        scale: factor of the integer attention sums, which does not follow 1/sqrt(d).
        kind: ``ssa``; ``linear`` always multiplies k^T v first; ``random`` freezes q and k as they
            were drawn, the control that says what attention is worth.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 6-9; thresholds from the published code.
    """

    roles: ClassVar = ("q", "k", "v")
    sums: ClassVar = "multiplies spikes by integer sums of spikes, and scales the result"
    rescales: ClassVar = True
    q: LinearUnit
    k: LinearUnit
    v: LinearUnit

    def __init__(
        self, dim: int, num_heads: int, *, scale: float = 0.125, kind: str = "ssa", **options: Any
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.scale, self.linear = scale, kind == "linear"
        if kind == "random":
            self.q.requires_grad_(False)
            self.k.requires_grad_(False)

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Attend between the tokens of each step."""
        scale = self.scale_for(tokens)
        spikes, parts = self.spikes(tokens, T)
        current = None if spikes is None else dispatch.attention(spikes, self.num_heads, scale)
        if current is None:
            q, k, v = self._apart(spikes, parts)
            summed = spiking_attention(q, k, v, self.linear) * scale
            current = rearrange(summed, "t b h n d -> t b n (h d)")
        return self.proj(self.attn_act(current, T), T)  # type: ignore[no-any-return]

    def masked(self, tokens: Tensor, T: int, policy: Tensor) -> Tensor:
        """The same where keys whose `policy` is 0 are seen by their own tokens alone.

        It is ``[B, N]``, or ``[T, B, N]`` for each step.

        Source: SparseSpikformer, arXiv 2311.08806, section 3.2.
        """
        q, k, v = self._apart(*self.spikes(tokens, T))
        seen = policy.unsqueeze(-2).unsqueeze(-1)
        own = (q * k).sum(-1, keepdim=True) * v * (1 - seen)
        summed = (spiking_attention(q, k * seen, v, self.linear) + own) * self.scale_for(tokens)
        current = rearrange(summed, "t b h n d -> t b n (h d)")
        return self.proj(self.attn_act(current, T), T)  # type: ignore[no-any-return]

    def _apart(self, spikes: Tensor | None, parts: list[Tensor]) -> Any:
        """q, k and v, ``[T, B, h, N, d]``."""
        if spikes is None:
            return map(self._heads, parts)
        return rearrange(spikes, "t b n u (h d) -> u t b h n d", h=self.num_heads)

    def scale_for(self, tokens: Tensor) -> float:
        """Factor of the attention sums over these tokens, ``[T|1, B, K, D]``."""
        return self.scale * (1.0 if self.rescale_to is None else self.rescale_to / tokens.shape[2])

    def received(self, tokens: Tensor, T: int) -> Tensor:
        """Attention that each token receives, ``[B, N]``: mean over T and heads of sum_i A_ij."""
        q, k = self._heads(self.q(tokens, T)), self._heads(self.k(tokens, T))
        return (k @ q.sum(-2).unsqueeze(-1)).squeeze(-1).mean((0, 2))

    def operations(self, *spikes: Tensor) -> AttentionCount:
        """Operations of the two products, the first of spikes, the second of sums and spikes."""
        q, k, v = (self._heads(part.double()) for part in spikes)
        tokens, width = q.shape[-2:]
        if self.linear or tokens >= width:
            first = k.transpose(-2, -1) @ v  # [d, d] coincidences of k and v
            second = (q.sum(-2) * (first != 0).sum(-1)).sum()
        else:
            first = q @ k.transpose(-2, -1)  # [N, N] coincidences of q and k
            second = ((first != 0).sum(-2) * v.sum(-1)).sum()
        inner = width if self.linear else min(tokens, width)
        met = float(first.sum() + second)
        return AttentionCount(2 * q.numel() * inner, 2 * q.numel() * tokens, met)


class TokenAttention(SpikingAttention):
    """Token attention of QKFormer: a neuron for each head and token gates the token's k.

    ``proj(a * k)`` with ``a = LIF(sum of the head's q)`` in {0, 1}: no v, no scale, O(N D).

    Source: Zhou et al., QKFormer, NeurIPS 2024, arXiv 2403.16552, eq. 6-8.
    """

    roles: ClassVar = ("q", "k")
    q: LinearUnit
    k: LinearUnit

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Gate each token by itself."""
        return self.gated(tokens, T)[0]

    def masked(self, tokens: Tensor, T: int, policy: Tensor) -> Tensor:
        """The same: no token reads another."""
        return self(tokens, T)  # type: ignore[no-any-return]

    def gated(self, tokens: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """The output, and the gates ``[T, B, N, h]``."""
        spikes, parts = self.spikes(tokens, T)
        q, k = parts if spikes is None else spikes.unbind(-2)
        per_head = (self.num_heads, -1)
        gates: Tensor = self.attn_act(q.unflatten(-1, per_head).sum(-1), T)
        kept = (k.unflatten(-1, per_head) * gates.unsqueeze(-1)).flatten(-2)
        return self.proj(kept, T), gates

    def operations(self, *spikes: Tensor) -> AttentionCount:
        """One accumulate for each spike of q; the gate passes or drops k without a sum."""
        macs = spikes[0].numel()
        return AttentionCount(macs, macs, float(spikes[0].double().sum()))


class SpikeDrivenAttention(SpikingAttention):
    """SDSA: a neuron for each channel, driven by its coincidences of k and v, gates its q.

    ``proj(q * c)`` with ``c = LIF(sum over tokens of k * v)``: no product but of spikes, no scale.

    Args:
        dim, num_heads, options: as of a :class:`SpikingAttention`.
        grid: rows and columns of the tokens, to erode silence: 3x3 maxima of k and v over places,
            and of k * v and q * c over the tokens and channels of each head; None for none.

    Source: Yao et al., NeurIPS 2023, arXiv 2307.01694, eq. 7-9; `grid` is ``dvs`` of its code.
    """

    roles: ClassVar = ("q", "k", "v")
    pools: ClassVar = True

    def __init__(
        self, dim: int, num_heads: int, *, grid: tuple[int, int] | None = None, **options: Any
    ) -> None:
        super().__init__(dim, num_heads, **options)
        self.grid = grid

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Gate the channels of all tokens."""
        return self.masked(tokens, T)

    def masked(self, tokens: Tensor, T: int, policy: Tensor | None = None) -> Tensor:
        """The same by the sums over tokens of a `policy` of 1, ``[T, B, N]``, not of 0."""
        spikes, parts = self.spikes(tokens, T)
        q, k, v = parts if spikes is None else spikes.unbind(-2)
        k = k if policy is None else k * policy.unsqueeze(-1)
        met = self._eroded(self._around(k) * self._around(v))
        gates: Tensor = self.attn_act(met.sum(2, keepdim=True), T)
        return self.proj(self._eroded(q * gates), T)  # type: ignore[no-any-return]

    def _around(self, spikes: Tensor) -> Tensor:
        """Maxima over 3x3 places of the grid."""
        if self.grid is None:
            return spikes
        maps = spikes.unflatten(2, self.grid).flatten(0, 1).permute(0, 3, 1, 2)
        maps = F.max_pool2d(maps, 3, stride=1, padding=1).permute(0, 2, 3, 1)
        out: Tensor = maps.flatten(1, 2).unflatten(0, spikes.shape[:2])
        return out

    def _eroded(self, spikes: Tensor) -> Tensor:
        """Maxima over 3 tokens and 3 channels of a head, in their order."""
        if self.grid is None:
            return spikes
        heads = self._heads(spikes).flatten(0, 1)
        around = F.max_pool2d(heads, 3, stride=1, padding=1).unflatten(0, spikes.shape[:2])
        out: Tensor = rearrange(around, "t b h n d -> t b n (h d)")
        return out

    def operations(self, *spikes: Tensor) -> AttentionCount:
        """One accumulate for each coincidence of k and v; masks and maxima are no sums."""
        _, k, v = (part.double() for part in spikes)
        met = self._eroded(self._around(k) * self._around(v))
        return AttentionCount(met.numel(), met.numel(), float(met.sum()))


def make_attention(
    kind: str, dim: int, num_heads: int, scale: float, grid: tuple[int, int] | None, **options: Any
) -> Any:
    """An attention by its kind, one of ATTENTIONS; a ConfigError for another word."""
    check(kind in ATTENTIONS, "attention", kind, f"one of {', '.join(ATTENTIONS)}")
    if kind == "sdsa":
        return SpikeDrivenAttention(dim, num_heads, grid=grid, **options)
    if kind == "qk":
        return TokenAttention(dim, num_heads, **options)
    return SpikingSelfAttention(dim, num_heads, scale=scale, kind=kind, **options)


class SpikingMLP(nn.Module):
    """Two linear-BN-LIF units, D -> ratio*D -> D.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D]`` spikes, or with `current` what the last
    neuron would get.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        bias: bool = True,
        neuron: NeuronConfig | None = None,
        current: bool = False,
    ) -> None:
        super().__init__()
        self.fc1 = LinearUnit(dim, hidden, bias=bias, neuron=neuron)
        self.fc2 = LinearUnit(hidden, dim, bias=bias, neuron=neuron, current=current)
        self.fc2.reads = "spikes"

    def chains(self) -> list[Chain]:
        """The hidden units."""
        return [Chain(("fc1", "fc2"))]

    def forward(self, tokens: Tensor, T: int) -> Tensor:
        """Map each token by itself."""
        return self.fc2(self.fc1(tokens, T), T)  # type: ignore[no-any-return]


def join(x: Tensor, p: Tensor, residual: str, signed: bool = False) -> Tensor:
    """The sum of a stream `x` and spikes `p` of a branch, or for ``ms`` its current.

    ``add`` and ``ms`` x + p, ``iand`` x (1 - p), ``or`` x + p - x p: the last two keep {0, 1}, or
    with `signed` {-1, +1}, where True is +1.
    """
    if residual in ("add", "ms"):
        return x + p
    if signed:
        return x.minimum(-p) if residual == "iand" else x.maximum(p)
    return x * (1 - p) if residual == "iand" else x + p - x * p


def joined(reads: Reads, residual: str) -> Reads:
    """Values of :func:`join` of such values and spikes in {0, 1}."""
    if residual == "ms":
        return "real"
    return add_spikes(reads) if residual == "add" else reads


class EncoderBlock(nn.Module):
    """Attention and MLP, each joined to the stream.

    Args:
        attn, mlp: the branches; for ``ms`` they end with a current. `attn` may be another mixer of
            tokens, with `set_reads`, or None.
        residual: ``add`` spikes to the stream, which becomes integer (SEW); ``iand`` or ``or``, of
            :func:`join`; ``ms`` adds currents, and a neuron before each branch fires.
        neuron: constants of those neurons; None means the defaults.

    Shape: in ``[T|1, B, N, D]`` -> out ``[T, B, N, D]``.

    Source: Zhou et al., Spikformer, ICLR 2023, eq. 3-4; ``ms``: Spikingformer, arXiv 2304.11954.
    """

    def __init__(
        self,
        attn: nn.Module | None,
        mlp: SpikingMLP,
        residual: str = "add",
        neuron: NeuronConfig | None = None,
    ) -> None:
        super().__init__()
        check(residual in RESIDUALS, "block_residual", residual, f"one of {', '.join(RESIDUALS)}")
        self.attn: Any = attn
        self.mlp, self.residual = mlp, residual
        ms = residual == "ms"
        self.before_attn_act = LIF(neuron) if ms and attn is not None else None
        self.before_mlp_act = LIF(neuron) if ms else None
        self.stop: Any = None  # a `patches.PatchSelect` of the tokens that do not stop before it
        self.select: Any = None  # a `patches.StagedSelect` of those that do not leave before it
        self.halt: Any = None  # a `halting.HaltingNeuron` of those that have not halted before it
        self.recompute = False

    @classmethod
    def of(
        cls, kind: str, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, scale: float = 0.125,
        attn_threshold: float = 0.5, bias: bool = True, qkv_bias: bool = False,
        residual: str = "add", neuron: NeuronConfig | None = None,
        grid: tuple[int, int] | None = None,
    ) -> EncoderBlock:  # fmt: skip
        """A block of these sizes; `kind` is one of ATTENTIONS."""
        same: Any = {"bias": bias, "neuron": neuron, "current": residual == "ms"}
        own = {"attn_threshold": attn_threshold, "qkv_bias": qkv_bias, **same}
        attn = make_attention(kind, dim, num_heads, scale, grid, **own)
        return cls(attn, SpikingMLP(dim, int(dim * mlp_ratio), **same), residual, neuron)

    def set_reads(self, reads: Reads) -> Reads:
        """Tell the units what values the block reads; returns those of its output."""
        ms, summed = self.residual == "ms", reads
        if self.attn is not None:
            self.attn.set_reads("spikes" if ms else reads)
            summed = joined(reads, self.residual)
        self.mlp.fc1.reads = "spikes" if ms else summed
        return joined(summed, self.residual)

    def forward(self, tokens: Tensor, T: int, policy: Tensor | None = None) -> Tensor:
        """Run the block; a static input broadcasts into the first residual sum.

        With a `policy` the attention is its `masked`.
        """
        attended, fired = None, self.fired(tokens, T)
        if self.attn is not None:
            attended = self.attn(fired, T) if policy is None else self.attn.masked(fired, T, policy)
        return self._rest(tokens, attended, T)

    def gated(self, tokens: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """Run the block; also return the gates of its token attention, ``[T, B, N, h]``."""
        out, gates = self.attn.gated(self.fired(tokens, T), T)
        return self._rest(tokens, out, T), gates

    def fired(self, tokens: Tensor, T: int) -> Tensor:
        """What the attention reads of the stream."""
        act = self.before_attn_act
        return tokens if act is None else act(tokens, T)

    def _rest(self, tokens: Tensor, attended: Tensor | None, T: int) -> Tensor:
        tokens = tokens if attended is None else join(tokens, attended, self.residual)
        act = self.before_mlp_act
        fired = tokens if act is None else act(tokens, T)
        return join(tokens, self.mlp(fired, T), self.residual)
