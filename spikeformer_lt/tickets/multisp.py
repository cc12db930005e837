"""MultiSp: patch, ConvPEP-weight and ConvPEP-activation sparsity in one search."""

from __future__ import annotations

import copy
import logging
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.layers.patch_scores import Attention, make_score
from spikeformer_lt.layers.patch_select import PatchSelect
from spikeformer_lt.layers.state import reset_state
from spikeformer_lt.layers.subnet import collapse, get_masks, subnets
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import snapshot
from spikeformer_lt.tickets.multisp_config import MultiSpConfig
from spikeformer_lt.tickets.stem_ticket import MaskController, StemProbe, install_subnets
from spikeformer_lt.training.phase import Fit, FitResult, OptimConfig, Phase

log = logging.getLogger(__name__)
LITERAL_SCORES = OptimConfig(
    opt="adam", lr=0.1, score_lr=0.1, weight_decay=0.0, min_lr=0.0, clip_grad=0.0
)
"""Adam at 0.1, cosine, no decay: arXiv 2311.12060, section IV."""


class MultiSp:
    """Finds a MultiSp ticket.

    Args:
        config: levels, schedule and options.
        seed: of initialisations that the search draws itself (scores, heads, control masks).

    Attributes:
        trained: the ticket's weights are trained ones.
        start: whole state_dict that they are.

    The model must have ``conv_pep``, ``patch``, ``blocks``, ``head``, ``T``, ``num_classes``.

    Source: arXiv 2309.13302; Algorithm 1 of arXiv 2311.12060; arXiv 2103.09377 (biprop).
    """

    trained = True

    def __init__(self, config: MultiSpConfig | None = None, seed: int = 0) -> None:
        self.config, self.seed = (config or MultiSpConfig()).resolved(), seed
        self.literal = config is not None and config.preset == "literal"
        self.results: list[FitResult] = []
        self.start: dict[str, torch.Tensor] = {}
        self._mask: Mask | None = None

    def find(self, model: nn.Module, fit: Fit) -> Ticket:
        """Train `model` in place into a ticket; it ends collapsed to plain convolutions.

        Every phase is resumable through `fit`; the surgery between phases is deterministic, so
        that a resumed search meets the same modules.
        """
        if not hasattr(model, "conv_pep"):
            raise ConfigError(
                f"MultiSp needs a model with a ConvPEP; {type(model).__name__} has none: "
                "give --model.name of a Spikformer, or use another search"
            )
        config, self.results, self._mask = self.config, [], None
        teacher = None
        if config.dense_epochs:
            self._fit(fit, model, Phase("dense", config.dense_epochs))
            if config.distill:
                teacher = copy.deepcopy(model).requires_grad_(False)
        _convs(model).set_activation(config.activation.kind, config.activation.residual)
        final = Phase(config.schedule, config.epochs, teacher=teacher, distill=config.distill)
        getattr(self, f"_{config.schedule}")(model, fit, final)
        if any(True for _ in subnets(model)):
            self._mask = get_masks(model)
            collapse(model)
        mask = self._mask or _all_kept(model)
        reset_state(model)
        provenance = {
            "search": "multisp",
            "config": asdict(config),
            "phases": [asdict(result) for result in self.results],
        }
        self.start = snapshot(model)
        return Ticket(mask, dict(self.start), provenance)

    # -- schedules -----------------------------------------------------------------------

    def _joint(self, model: nn.Module, fit: Fit, final: Phase) -> None:
        self.select_patches(model, fit)
        self._fit(fit, model, self._with_masks(model, final))

    def _sequential(self, model: nn.Module, fit: Fit, final: Phase) -> None:
        config = self.config
        if config.weights.method != "off":
            self._seeded("head")
            probe = StemProbe(model)
            phase = Phase("conv_pep", config.stem_epochs)
            if self.literal:
                phase = replace(phase, optim=LITERAL_SCORES)
            searched = self._with_masks(model, phase)
            self._fit(fit, probe, searched)
            if config.stem == "frozen":
                self._mask = get_masks(model)
                collapse(model)
                _convs(model).requires_grad_(False)
                final = replace(final, frozen=("conv_pep",))
            else:
                controller = searched.before_step
                if isinstance(controller, MaskController):
                    final = replace(final, before_step=controller.at_full_sparsity())
        self.select_patches(model, fit)
        self._fit(fit, model, final)

    def _reverse(self, model: nn.Module, fit: Fit, final: Phase) -> None:
        self.select_patches(model, fit)
        self._fit(fit, model, replace(final, name="patches", teacher=None, distill=0.0))
        stem = replace(final, name="conv_pep", epochs=max(1, self.config.stem_epochs))
        self._fit(fit, model, self._with_masks(model, stem))

    # -- levels --------------------------------------------------------------------------

    def _with_masks(self, model: nn.Module, phase: Phase) -> Phase:
        """Turn level 2 on for a phase."""
        weights = self.config.weights
        if weights.method == "off":
            return phase
        self._seeded("scores")
        install_subnets(_convs(model), weights)
        seed = seed_for(self.seed, "mask")
        controller = MaskController(model, weights, seed)
        return replace(phase, before_step=controller, settled_from=controller.settled_from)

    def select_patches(self, model: nn.Module, fit: Fit) -> None:
        """Turn level 1 on, training its selector first where it has one."""
        patches = self.config.patches
        if patches.sparsity == 0:
            return
        self._seeded("selector")
        heads = int(model.num_heads)  # type: ignore[arg-type]
        classes = int(model.num_classes)  # type: ignore[arg-type]
        score = make_score(patches.score, _convs(model).dim, classes, heads)
        if isinstance(score, Attention):
            if patches.selector_epochs:
                probe = SelectorProbe(model, score)
                phase = Phase("selector", patches.selector_epochs, frozen=("stem",))
                wanted = {p: p.requires_grad for p in probe.stem.parameters()}
                probe.stem.requires_grad_(False)
                self._fit(fit, probe, phase)
                for parameter, needs in wanted.items():
                    parameter.requires_grad_(needs)
            score.requires_grad_(False)
        model.patch = PatchSelect(
            score, patches.sparsity, space=patches.space, rescale=patches.rescale
        )

    def _fit(self, fit: Fit, model: nn.Module, phase: Phase) -> None:
        self.results.append(fit(model, phase))

    def _seeded(self, what: str) -> None:
        torch.manual_seed(seed_for(self.seed, "multisp", what))


class SelectorProbe(nn.Module):
    """Frozen stem, one encoder block and a head: what trains the attention selector (SETS)."""

    def __init__(self, model: nn.Module, score: Attention) -> None:
        super().__init__()
        self.stem, self.score, self.T = _convs(model), score, int(model.T)  # type: ignore[arg-type]
        self._door = model.time_first

    def forward(self, x: Any) -> Any:
        """Logits ``[B, T, K]`` of the selector."""
        reset_state(self)
        try:
            tokens, _ = self.stem(self._door(x), self.T)  # type: ignore[operator]
            return self.score.logits(tokens, self.T)
        finally:
            reset_state(self)


def _convs(model: nn.Module) -> Any:
    return model.conv_pep


def _all_kept(model: nn.Module) -> Mask:
    weights = _convs(model).state_dict(prefix="conv_pep.")
    return Mask(
        {k: torch.ones_like(v, dtype=torch.bool).cpu() for k, v in weights.items() if v.ndim == 4}
    )


@register_search
def multisp(config: MultiSpConfig | None = None, seed: int = 0) -> MultiSp:
    """MultiSp's three levels: patches, ConvPEP weights, ConvPEP activations."""
    return MultiSp(config, seed)
