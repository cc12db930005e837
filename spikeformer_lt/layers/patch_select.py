"""Patch-number sparsity (level 1): score the tokens, gather the kept ones, forget the rest."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.patch_scores import PatchScore, grid_of


def kept_count(tokens: int, sparsity: float) -> int:
    """How many of N tokens stay: N - round(sparsity * N), at least 1."""
    return max(1, tokens - round(sparsity * tokens))


def top_tokens(scores: Tensor, keep: int) -> Tensor:
    """Indices ``[B, keep]``, ascending, of the best tokens; ties keep the lower index."""
    if torch.compiler.is_exporting():  # ONNX has no stable sort; ranks by comparison are as exact
        place = torch.arange(scores.shape[1], device=scores.device)
        ahead = scores[:, None, :] > scores[:, :, None]
        ahead |= (scores[:, None, :] == scores[:, :, None]) & (place < place[:, None])
        late = torch.where(ahead.sum(2) < keep, place, scores.shape[1] + place)
        return late.topk(keep, dim=1, largest=False, sorted=True).indices
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :keep]
    return order.sort(dim=1).values


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Keep tokens ``[T|1, B, N, D]`` at ``index`` ``[B, K]``, the same at every step."""
    time, _, _, dim = tokens.shape
    return tokens.gather(2, index[None, :, :, None].expand(time, -1, -1, dim))


class PatchSelect(nn.Module):
    """Selects, for each image, the same ``N - round(sparsity*N)`` tokens at all time steps.

    Args:
        score: the criterion.
        sparsity: fraction of tokens removed, in [0, 1).
        space: ``token`` gathers after the whole ConvPEP; ``pixel`` also zeroes the pixels of
            removed patches and embeds the masked image again (Alg. 1's last line; its receptive
            fields still see neighbours).
        rescale: multiply attention sums by N/K, for the keys that are gone.

    Source: arXiv 2311.12060, alg. 1 (PatchS); arXiv 2211.01484 (data-level tickets).
    """

    def __init__(
        self,
        score: PatchScore,
        sparsity: float,
        *,
        space: str = "token",
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= sparsity < 1:
            raise ConfigError(f"patch sparsity={sparsity} is outside [0, 1)")
        if space not in ("token", "pixel"):
            raise ConfigError(f"patch space={space!r} is not one of token, pixel")
        self.score, self.sparsity, self.space, self.rescale = score, sparsity, space, rescale
        self.index: Tensor | None = None
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a score with a training of its own keeps its fixed BatchNorm statistics."""
        super().train(mode)
        if self.score.learned:
            self.score.eval()
        return self

    def forward(
        self, tokens: Tensor, current: Tensor, images: Tensor, T: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return (index ``[B, K]``, multiplier ``[1, B, K, 1]`` that carries learned gradients)."""
        trained = self.training and any(p.requires_grad for p in self.score.parameters())
        learns = trained and not self.score.learned
        # In 16 bits many scores would be equal, and the position would decide.
        wide = torch.promote_types(tokens.dtype, torch.float32)
        device = tokens.device.type
        narrow = torch.is_autocast_enabled(device)
        full = torch.autocast(device, enabled=False) if narrow else nullcontext()
        with full, torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            scores = self.score(tokens.detach().to(wide), current.detach().to(wide), images, T)
        index = top_tokens(scores.detach(), kept_count(tokens.shape[2], self.sparsity))
        if not torch.compiler.is_exporting():
            self.index = index
        if not learns:
            return index, None
        soft = torch.sigmoid(scores.gather(1, index))
        # This grouping is exactly 1; (1 + soft) - soft would round, and tokens must stay spikes.
        return index, (1 + (soft - soft.detach()))[None, :, :, None]

    def mask_pixels(self, images: Tensor, index: Tensor, tokens: int) -> Tensor:
        """Zero the pixels of removed patches in ``[T|1, B, C, H, W]``."""
        rows, columns = grid_of(tokens, images.shape[-2:])
        keep = torch.zeros(index.shape[0], tokens, device=images.device, dtype=images.dtype)
        keep.scatter_(1, index, 1.0)
        grid = keep.view(1, -1, 1, rows, columns)[0]
        return images * F.interpolate(grid, size=images.shape[-2:], mode="nearest")[None]
