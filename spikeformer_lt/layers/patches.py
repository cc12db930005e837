"""Patch selection (level 1): scores of tokens, and the selection of those that are kept.

A score is one real number for each token of each image; larger is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError, shown
from spikeformer_lt.layers.attention import (
    EncoderBlock,
    SpikingAttention,
    SpikingMLP,
    SpikingSelfAttention,
)
from spikeformer_lt.layers.inputs import autocasts, transformed
from spikeformer_lt.layers.recompute import call
from spikeformer_lt.layers.units import declared_part

log = logging.getLogger(__name__)


class PatchScore(nn.Module):
    """Base of all scores. ``learned``: it has a training of its own.

    ``needs``: what it reads of the stem as `current`: ``current``, that of the last neurons,
    ``[T|1, B, N, D]``; ``gates`` of token attentions, ``[T, B, N, h]``; or nothing.

    Shape: tokens ``[T|1, B, N, D]``, images ``[T|1, B, C, H, W]`` -> ``[B, N]``.
    """

    needs = ""
    learned = False

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """Score every token."""
        raise NotImplementedError


class Rate(PatchScore):
    """Mean firing of the token over time and channels (algorithms A10, Alg. 1's PatE sorting)."""

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """Mean over T and D."""
        return tokens.mean((0, 3))


class L2(PatchScore):
    """Mean over time of the L2 norm of the membrane input of the last ConvPEP neuron."""

    needs = "current"

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """Mean over T of the norm over D."""
        return current.square().sum(3).sqrt().mean(0)


class Gates(PatchScore):
    """How often a token, or the places that it covers, passed the gates of the token attention.

    Source: the gate is Zhou et al.'s, QKFormer, arXiv 2403.16552, eq. 7; to rank by it is ours.
    """

    needs = "gates"

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """Mean over T and heads."""
        rates: Tensor = current.mean((0, 3))
        return rates


class TemporalSpatial(PatchScore):
    """Training-free temporal change plus spatial contrast (TP-Spikformer).

    temporal = mean_t |mean_D x_t - mean_D x_(t-1)| (0 for T = 1 or a static token);
    spatial = -cos(x, mean of its 3x3 neighbourhood), depthwise, borders averaged over what is
    there. Each is softmaxed over the tokens; the sum is the score.

    Source: TP-Spikformer, arXiv 2603.00527, the scores as its text has them.
    """

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """Temporal plus spatial score."""
        batch, count = tokens.shape[1:3]
        level = tokens.mean(3)
        temporal = level.new_zeros(batch, count)
        if len(level) > 1:
            temporal = (level[1:] - level[:-1]).abs().mean(0)
        mean = tokens.mean(0)
        height, width = grid_of(count, images.shape[-2:])
        # One layout whatever the batch: a lone image would be summed in another order.
        grid = mean.transpose(1, 2).contiguous().unflatten(2, (height, width))
        around = self.around(grid).flatten(2).transpose(1, 2)
        spatial = -F.cosine_similarity(mean, around, dim=2)
        return temporal.softmax(1) + spatial.softmax(1)

    def around(self, grid: Tensor) -> Tensor:
        """The neighbourhoods of a grid ``[B, D, H, W]``."""
        return F.avg_pool2d(grid, 3, stride=1, padding=1, count_include_pad=False)


class TemporalSpatialCode(TemporalSpatial):
    """The same as TP-Spikformer's published code has it: a neighbourhood is summed over channels.

    So the cosine is that with a vector of equal entries; borders are padded by 0. Differs: no
    change in time is 0 also for T = 1, where the code gives NaN.
    """

    def around(self, grid: Tensor) -> Tensor:
        """The sums of the neighbourhoods, over all channels."""
        level = grid.sum(1, keepdim=True)
        return F.avg_pool2d(level, 3, stride=1, padding=1).expand_as(grid)


class Random(PatchScore):
    """The control: a pseudo-random order for each image.

    The order is a hash of the image's own bits, all frames of it, and the token position, so that
    it does not depend on batch, worker or rank, and an evaluation repeats exactly. Another `salt`
    gives another order.
    """

    def __init__(self, salt: int = 0) -> None:
        super().__init__()
        self.salt = salt

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """A 53-bit hash of (image bits, position) as a float64 in [0, 1)."""
        view = {2: torch.int16, 4: torch.int32, 8: torch.int64}[images.element_size()]
        bits = images.contiguous().view(view).flatten(2).to(torch.int64)
        place = torch.arange(bits.shape[2], device=bits.device)
        frames = (bits * (2 * place + 1)).sum(2)  # wraps: exact in any order
        # Changes from frame to frame, so that T equal frames count as the one image they are.
        image = frames[0] + _splitmix(frames[1:] - frames[:-1]).sum(0)
        position = torch.arange(tokens.shape[2], device=bits.device) + (self.salt << 32)
        mixed = _splitmix(image[:, None] + position[None] * -7046029254386353131)
        return ((mixed >> 11) & ((1 << 53) - 1)).to(torch.float64) / 2.0**53


def _splitmix(x: Tensor) -> Tensor:
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class Attention(PatchScore):
    """Attention received by each token in a small trained selector (SETS of arXiv 2311.12060).

    The selector is one encoder block and a linear head, trained on the frozen stem; a token's
    score is the attention it receives, mean over T and heads of sum_i A_ij.
    """

    learned = True

    def __init__(self, dim: int, num_classes: int, num_heads: int = 4) -> None:
        super().__init__()
        self.block = EncoderBlock(SpikingSelfAttention(dim, num_heads), SpikingMLP(dim, 2 * dim))
        self.head: nn.Linear | None = nn.Linear(dim, num_classes)
        self._known = False  # whether it was trained was looked at

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """Attention received."""
        if not (self._known or torch.compiler.is_compiling() or tokens.is_meta):
            self._warn()
        received: Tensor = self.block.attn.received(self.block.fired(tokens, T), T)
        return received

    def _warn(self) -> None:
        norm = getattr(getattr(self.block.attn, "q", None), "norm", None)
        count = None if norm is None else norm.num_batches_tracked
        self._known = not transformed(count)
        if self._known and count is not None and not int(count):
            log.warning(
                "the attention selector of patches was never trained, so its choice means nothing; "
                "train it (selector_epochs above 0) or load its weights"
            )

    def logits(self, tokens: Tensor, T: int) -> Tensor:
        """Class logits ``[B, T, K]`` that train the selector."""
        assert self.head is not None, "the selector is a block of a trained network"
        return self.head(self.block(tokens, T).mean(2)).transpose(0, 1)  # type: ignore[no-any-return]


class Gumbel(PatchScore):
    """Learned keep-logits, perturbed by Gumbel noise in training (Gumbel top-k).

    Source: the predictor of SparseSpikformer (arXiv 2311.08806), D -> D/2 -> GELU -> 1.
    Differs: the exact top-k of the perturbed logits is gathered in training as in evaluation
    (no train/eval mismatch); the gradient passes through a unit multiplier on kept tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, 1))

    def forward(self, tokens: Tensor, current: Tensor, images: Tensor, T: int) -> Tensor:
        """Logits, with noise in training."""
        logits: Tensor = self.net(tokens.mean(0)).squeeze(-1)
        if not self.training:
            return logits
        noise = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
        return logits - torch.log(-torch.log(noise))


SCORES: dict[str, type[PatchScore]] = {
    "rate": Rate, "l2": L2, "attention": Attention, "tp": TemporalSpatial,
    "tp-code": TemporalSpatialCode, "gumbel": Gumbel, "qk": Gates, "random": Random,
}  # fmt: skip
STOPS = ("rate", "l2", "tp", "tp-code", "random")
"""Scores of the tokens that stop before a block: of its input alone, without a training."""


def make_score(kind: str, dim: int, num_classes: int, num_heads: int) -> PatchScore:
    """Build a patch score by name."""
    if kind not in SCORES:
        raise ConfigError(f"patch score {shown(kind)} is not one of {', '.join(SCORES)}")
    sizes = {"attention": (dim, num_classes, num_heads), "gumbel": (dim,)}
    return SCORES[kind](*sizes.get(kind, ()))


def check_needs(
    score: PatchScore | type[PatchScore], model: Any, stem: Any, stop: bool = False
) -> None:
    """Refuse a score that reads what a stem does not give, and a model that needs all tokens.

    With `stop` they are needed where they cannot even stop before blocks.
    """
    may_stop = getattr(model, "stops_tokens", False)
    if (why := getattr(model, "keeps_tokens", "")) and not (stop and may_stop):
        raise ConfigError(
            f"{type(model).__name__} {why} reads the neighbours of every token, so that none can "
            "leave: use patches.sparsity 0" + (", or patches.mode stop" if may_stop else "")
        )
    if score.needs not in ("", *getattr(stem, "gives", ("current",))):
        name = next(name for name, kind in SCORES.items() if kind in (score, type(score)))
        raise ConfigError(
            f"patch score {name!r} reads {score.needs} of the stem, and a "
            f"{type(stem).__name__} has none; use another score, or a QKFormer"
        )


def check_stops(model: Any, stops: Sequence[PatchSelect]) -> None:
    """Refuse selections that cannot stand before the blocks of a model."""
    blocks = model.encoder_blocks()
    check_unhalted(model)
    if len(stops) != len(blocks):
        raise ConfigError(f"{len(stops)} shares of tokens that stop, for {len(blocks)} blocks")
    allowed = tuple(SCORES[kind] for kind in STOPS)
    for i, (stop, block) in enumerate(zip(stops, blocks, strict=True)):
        check_needs(stop.score, model, model.stem, stop=True)
        if stop.sparsity > 0 and not isinstance(block.attn, SpikingAttention | None):
            raise ConfigError(
                f"block {i} reads the neighbours of every token, so that none can stop before it: "
                "give it a share of 0"
            )
        if type(stop.score) not in allowed or stop.space != "token":
            raise ConfigError(
                f"{type(stop.score).__name__} in {stop.space} space chooses no tokens that stop "
                f"inside of the encoder: that do {', '.join(STOPS)}, in token space"
            )


def check_stages(model: Any, stages: Mapping[int, Any]) -> None:
    """Refuse selectors that cannot stand before the blocks of a model."""
    check_needs(Gumbel, model, model.stem)
    check_unhalted(model)
    for i in stages:
        if not 0 <= i < len(model.blocks):
            raise ConfigError(f"stage {i} is before none of {len(model.blocks)} blocks, 0 first")
    if stages and not all(isinstance(b.attn, SpikingSelfAttention) for b in model.blocks):
        raise ConfigError(
            f"selectors in stages mask the keys of a self attention q k^T v, and "
            f"{type(model).__name__} has another; let its tokens leave behind the stem, or stop"
        )


def check_unhalted(model: Any) -> None:
    """Refuse a second way in which the tokens of a model leave its blocks."""
    if any(getattr(block, "halt", None) is not None for block in model.blocks):
        raise ConfigError("tokens halt in the blocks of this network: call set_halting() first")


def grid_of(count: int, size: torch.Size) -> tuple[int, int]:
    """Token grid (rows, columns) of an H x W image cut into `count` square patches."""
    height, width = size
    side = round((height * width / count) ** 0.5)
    return height // side, width // side


def kept_count(tokens: int, sparsity: float) -> int:
    """How many of N tokens stay: N - round(sparsity * N), at least 1."""
    return max(1, tokens - round(sparsity * tokens))


def top_tokens(scores: Tensor, keep: int, ties: str = "hash") -> Tensor:
    """Indices ``[B, keep]``, ascending, of the best tokens by their scores ``[B, N]``.

    Of equal scores "hash" takes a pseudo-random order of their places, which the order of an
    image's scores turns, so that no part of the images is preferred; "index" that of the indices.
    Both are the same on every device, in every batch and in graphs.

    Source: the hash is Fibonacci hashing, Knuth, TAOCP volume 3, section 6.4.
    """
    count, place = scores.shape[1], torch.arange(scores.shape[1], device=scores.device)
    # Graphs have no stable sort, transforms no search; comparisons are as exact, and slower.
    compare = torch.compiler.is_exporting() or transformed(scores)
    ahead = scores[:, None, :] > scores[:, :, None] if compare else None  # m goes before n
    order = place[None]
    if ties == "hash":
        falling = -scores
        better = (
            torch.searchsorted(falling.sort(1).values, falling) if ahead is None else ahead.sum(2)
        )
        turn = (better * (2 * place + 1)).sum(1, keepdim=True)
        order = (place + turn) * 2654435761 % 2**32
    if ahead is None:
        places = order.argsort(1).expand(len(scores), -1)
        best = torch.sort(scores.gather(1, places), dim=1, descending=True, stable=True).indices
        return places.gather(1, best[:, :keep]).sort(dim=1).values
    ahead |= (scores[:, None, :] == scores[:, :, None]) & (order[:, None, :] < order[:, :, None])
    late = torch.where(ahead.sum(2) < keep, place, count + place)
    return late.topk(keep, dim=1, largest=False, sorted=True).indices


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Keep tokens ``[T|1, B, N, D]`` at ``index`` ``[B, K]``, the same at every step."""
    time, _, _, dim = tokens.shape
    return tokens.gather(2, index[None, :, :, None].expand(time, -1, -1, dim))


def put_tokens(tokens: Tensor, index: Tensor, ran: Tensor) -> Tensor:
    """Tokens ``[T|1, B, N, D]``, at ``index`` ``[B, K]`` replaced by ``ran`` ``[T|1, B, K, D]``."""
    place = index[None, :, :, None].expand(ran.shape)
    whole = tokens.to(ran.dtype).expand(len(ran), -1, -1, -1)
    return whole.scatter(2, place, ran)


class PatchSelect(nn.Module):
    """Selects, for each image, the same ``N - round(sparsity*N)`` tokens at all time steps.

    Args:
        score: the criterion.
        sparsity: fraction of tokens removed, in [0, 1).
        space: ``token`` gathers after the whole ConvPEP; ``pixel`` also zeroes the pixels of
            removed patches and embeds the masked image again (Alg. 1's last line; its receptive
            fields still see neighbours); ``input`` does so by tokens of another stem.
        stem: of space ``input``: a trained stem like the model's, which stays as it is and gives
            the tokens that are scored; None for a random choice, which reads none.
        rescale: multiply attention sums by N/K, for the removed keys; see `Spikformer.set_patch`.
        ties: the order of equal scores, "hash" or "index", of :func:`top_tokens`.

    Source: arXiv 2311.12060, alg. 1 (PatchS); arXiv 2211.01484 (data-level tickets).
    """

    def __init__(
        self,
        score: PatchScore,
        sparsity: float,
        *,
        space: str = "token",
        rescale: bool = False,
        ties: str = "hash",
        stem: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= sparsity < 1:
            raise ConfigError(f"patch sparsity={sparsity} is outside [0, 1)")
        if space not in ("token", "pixel", "input"):
            raise ConfigError(f"patch space={shown(space)} is not one of token, pixel, input")
        if ties not in ("hash", "index"):
            raise ConfigError(f"patch ties={shown(ties)} is not one of hash, index")
        self.score, self.sparsity, self.space = score, sparsity, space
        self.rescale, self.ties, self.stem = rescale, ties, stem
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a score with a training of its own keeps its fixed BatchNorm statistics."""
        super().train(mode)
        if self.score.learned:
            self.score.eval()
        if self.stem is not None:
            self.stem.eval()
        return self

    def measure(self, images: Tensor, T: int, tokens: int) -> tuple[Tensor, Tensor]:
        """What the stem of space ``input`` gives for images, without a graph."""
        if self.stem is None:
            blank = images.new_zeros(*images.shape[:2], tokens, 1)
            return blank, blank
        with torch.no_grad():
            return call(self.stem, images, T, self.score.needs)  # type: ignore[no-any-return]

    def forward(
        self, tokens: Tensor, current: Tensor, images: Tensor, T: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return (index ``[B, K]``, multiplier ``[1, B, K, 1]`` that carries learned gradients)."""
        trained = self.training and any(p.requires_grad for p in self.score.parameters())
        learns = trained and not self.score.learned
        # In 16 bits many scores would be equal; a network that scores has a type of its own.
        own = next(self.score.parameters(), None)
        wide = torch.promote_types(tokens.dtype, torch.float32) if own is None else own.dtype
        narrow = autocasts(tokens)
        full = torch.autocast(tokens.device.type, enabled=False) if narrow else nullcontext()
        with full, torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            scores = self.score(tokens.detach().to(wide), current.detach().to(wide), images, T)
        index = top_tokens(scores.detach(), self.kept(tokens.shape[2]), self.ties)
        if not learns:
            return index, None
        soft = torch.sigmoid(scores.gather(1, index))
        # This grouping is exactly 1; (1 + soft) - soft would round, and tokens must stay spikes.
        return index, (1 + (soft - soft.detach()))[None, :, :, None]

    def kept(self, tokens: int) -> int:
        """How many of the tokens stay."""
        return kept_count(tokens, self.sparsity)

    def mask_pixels(self, images: Tensor, index: Tensor, tokens: int) -> Tensor:
        """Zero the pixels of removed patches in ``[T|1, B, C, H, W]``."""
        rows, columns = grid_of(tokens, images.shape[-2:])
        keep = torch.zeros(index.shape[0], tokens, device=images.device, dtype=images.dtype)
        keep.scatter_(1, index, 1.0)
        grid = keep.view(1, -1, 1, rows, columns)[0]
        return images * F.interpolate(grid, size=images.shape[-2:], mode="nearest")[None]


class StagedSelect(nn.Module):
    """A learned selector before a block: of the tokens that are left some go on.

    In training every token runs, by a policy ``[B, N]`` of ones and zeros that is drawn from the
    selector's probabilities with Gumbel noise and multiplied with that of the stage before; no
    other token attends to one of 0. In evaluation ``int(keep * N)`` of the N tokens of the network
    stay, those of the highest probability.

    Args:
        dim: width D.
        tokens: the N tokens behind the stem.
        keep: share of them behind this stage, in (0, 1].
        weight: of ``(mean_N policy - keep)^2``, mean over the batch, among :func:`penalties`.
        ties: as of :func:`top_tokens`.

    Source: SparseSpikformer, arXiv 2311.08806, section 3.2 and the loss of its ratio.
    """

    def __init__(
        self, dim: int, tokens: int, keep: float, weight: float = 0.0, ties: str = "hash"
    ) -> None:
        super().__init__()
        self.tokens, self.sparsity, self.ties = tokens, 1 - keep, ties
        self.keep, self.weight = keep, weight
        self.net = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, 2), nn.LogSoftmax(-1)
        )

    def kept(self, tokens: int) -> int:
        """How many of the N tokens stay in evaluation."""
        return max(1, int(tokens * self.keep + 1e-9))

    def forward(self, tokens: Tensor, policy: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return (index ``[B, K]``, policy) for tokens ``[T|1, B, N', D]``."""
        logs = self.net(tokens.mean(0))
        if not self.training:
            return top_tokens(logs[..., 0].detach(), self.kept(self.tokens), self.ties), None
        drawn = F.gumbel_softmax(logs, hard=True)[..., 0]
        policy = drawn if policy is None else drawn * policy
        penalise(self.weight * (policy.mean(1) - self.keep).square().mean())
        return torch.arange(tokens.shape[2], device=tokens.device).expand(len(logs), -1), policy


_PENALTIES: ContextVar[list[Tensor] | None] = ContextVar("penalties", default=None)


@contextmanager
def penalties() -> Iterator[list[Tensor]]:
    """Collect what selectors add to the loss of the forwards inside."""
    found = list[Tensor]()
    token = _PENALTIES.set(found)
    try:
        yield found
    finally:
        _PENALTIES.reset(token)


def penalise(cost: Tensor) -> None:
    """Add to the loss where :func:`penalties` collects."""
    if (found := _PENALTIES.get()) is not None:
        found.append(cost)


def narrowed(block: Any, tokens: Tensor, policy: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The tokens that the selector before a block lets go on, and its policy in training."""
    select = getattr(block, "select", None)
    if select is None:
        return tokens, policy
    index, policy = select(tokens, policy)
    return (gather_tokens(tokens, index) if policy is None else tokens), policy


def through(
    block: Any, tokens: Tensor, T: int, images: Tensor, policy: Tensor | None = None
) -> Tensor:
    """Run an encoder block; tokens that ``block.stop`` does not choose leave it as they came.

    Nothing is computed for these, but what a block convolves before its attention. A static input
    is the same at every step of the output. With the `policy` of a :class:`StagedSelect` all tokens
    run, and attend by it.

    Source: TP-Spikformer, arXiv 2603.00527 (early stopping).
    """
    if policy is not None:
        return call(block, tokens, T, policy)  # type: ignore[no-any-return]
    stop = getattr(block, "stop", None)
    if stop is None or stop.sparsity == 0:
        return call(block, tokens, T)  # type: ignore[no-any-return]
    index, _ = stop(tokens, tokens, images, T)
    if getattr(block, "convolves", False):
        return call(block, tokens, T, index)  # type: ignore[no-any-return]
    return put_tokens(tokens, index, call(block, gather_tokens(tokens, index), T))


def selections(model: nn.Module) -> list[Any]:
    """All selections of tokens in a model: behind its stem, or before blocks."""
    return [m for m in model.modules() if isinstance(m, PatchSelect | StagedSelect)]


def removed_share(model: Any, kept: Callable[[Any], float]) -> float:
    """Share of tokens that a selection behind the stem removes, else of those that blocks skip.

    That is the mean over all blocks; `kept` gives the share that a selection keeps.
    """
    blocks: list[Any] = getattr(model, "encoder_blocks", list)()
    inside = [(getattr(b, "select", None), getattr(b, "stop", None)) for b in blocks]
    every, left, found = selections(model), 1.0, list[float]()
    if not any(m in pair for pair in inside for m in every):
        found = [kept(m) for m in every]
        inside = []
    for select, stop in inside:
        left = left if select is None else kept(select)
        found.append(left if stop is None else kept(stop))
    return 1 - sum(found) / len(found) if found else 0.0


def patches_of(model: nn.Module) -> PatchSelect | None:
    """The patch selection that a model declares, else the only one among its modules."""
    found: PatchSelect | None = declared_part(model, "patch", PatchSelect)
    return found
