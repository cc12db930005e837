"""MultiSp: sparse patches, ConvPEP weights and activations, encoder; joint tickets."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.adapted import PRUNABLE
from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, MaskError
from spikeformer_lt.layers import subnet
from spikeformer_lt.layers.patches import Attention, selections
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.layers.subnet import SubnetConv2d, collapse, get_masks, set_masks
from spikeformer_lt.mask import Mask, check_floor, select
from spikeformer_lt.registry import register_search
from spikeformer_lt.rng import seed_for, seeded
from spikeformer_lt.ticket import Ticket, finished_folder, load_state
from spikeformer_lt.tickets import base, surgery
from spikeformer_lt.tickets.configs import JointConfig, MultiSpConfig, SparseTrainingConfig
from spikeformer_lt.tickets.imp import Imp
from spikeformer_lt.tickets.levels import (
    MOVING,
    ActivationConfig,
    EncoderConfig,
    HaltingConfig,
    PatchConfig,
    WeightConfig,
)
from spikeformer_lt.tickets.one_shot import random_mask
from spikeformer_lt.tickets.sparse_training import Rewiring, SparseTraining
from spikeformer_lt.training.options import OptimConfig
from spikeformer_lt.training.phase import Capture, Fit, Masked, Phase, Progress, held
from spikeformer_lt.training.ranks import digest, from_first


class StemProbe(nn.Module):
    """A stem with a temporary linear head, which gives logits ``[B, T, K]``.

    Source: arXiv 2311.12060, Algorithm 1, phase 1; the head is dropped afterwards.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_pep, self.T, self._door = stem_of(model), int(model.T), model.time_first
        self.head = nn.Linear(self.conv_pep.dim, int(model.num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Mean token of each step, classified."""
        tokens, _ = self.conv_pep(self._door(x), self.T)
        logits: Tensor = self.head(tokens.mean(2))
        return logits.expand(self.T, -1, -1).transpose(0, 1)


def install_subnets(stem: Any, config: WeightConfig) -> None:
    """Replace the stem's convolutions by subnet convolutions, in place, initialised as asked."""
    learns = config.method if config.method in ("scores", "both") else "weights"
    of_spikes = stem.in_channels == 2 and config.first_conv == "auto"
    for role, unit in stem.units():
        if role == "shortcut" and not config.include_rpe:
            continue
        init_weight(unit.conv.weight, config.init, config.sparsity)
        whole = role == "first" and not (of_spikes or config.first_conv == "binary")
        unit.conv = SubnetConv2d(
            unit.conv,
            learns,
            binary=config.binary and not whole,
            per_filter=config.gain == "filter",
        )


def init_weight(weight: Tensor, init: str, sparsity: float) -> None:
    """Kaiming or signed-constant start weights; the fan counts kept weights only (scale_fan)."""
    if init == "keep":
        return
    std = (2 / (weight[0].numel() * (1 - sparsity))) ** 0.5
    drawn = torch.randn(weight.shape)
    with torch.no_grad():
        weight.copy_(std * (drawn.sign() if init == "signed" else drawn))


def encoder_weights(model: Any, head: bool = True) -> dict[str, Tensor]:
    """The weights of level 4, by name: of no unit of the stem, no selector, and no `head`.

    Blocks inside of a stem, such as a QKFormer's early stages, are among them.
    """
    stem = stem_of(model)
    others = set() if stem is None else {id(part.unit.synapse) for part in stem.units()}
    others |= {id(module) for selector in selections(model) for module in selector.modules()}
    named = getattr(model, "head", None)
    check(head or named is not None, "encoder.head", head, "true where no `head` is declared")
    others |= set() if head else {id(named)}
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, PRUNABLE)
        and id(module) not in others
        and module.weight.requires_grad  # those of a random attention stay
    }


def install_encoder(model: nn.Module, config: EncoderConfig) -> None:
    """Replace the layers of level 4 by subnet layers, in place; the gains are of each output."""
    for name in encoder_weights(model, config.head):
        own = {"binary": config.binary, "per_filter": True}
        subnet.install(model, name.removesuffix(".weight"), "weights", **own)


class MaskController:
    """Keeps masks at the sparsity of the schedule; a ConfigError if a layer would lose all.

    It has the subnet layers of a model that are there when it is made, without those of `others`.
    """

    def __init__(
        self,
        model: nn.Module,
        config: WeightConfig,
        seed: int,
        others: MaskController | None = None,
    ) -> None:
        known: dict[str, subnet.Subnet] = others.layers if others else {}
        self.layers: dict[str, subnet.Subnet] = {
            name: m for name, m in subnet.subnets(model) if name not in known
        }
        self.config = config
        self.fixed = config.method not in MOVING
        if config.method == "random":
            drawn = Mask.random_like(Mask(self._mask(config.sparsity)), seed)
            subnet.put_masks(self.layers, drawn)
        else:
            self.update(0.0 if config.ramp_epochs and not self.fixed else 1.0)

    @property
    def settled_from(self) -> int:
        """First epoch that trains wholly at the final sparsity."""
        return 0 if self.fixed else int(-(-self.config.ramp_epochs // 1))

    def at_full_sparsity(self) -> MaskController:
        """Return a controller that goes on from here: the ramp is behind it."""
        after = copy.copy(self)
        after.config = replace(self.config, ramp_epochs=0.0)
        return after

    def __call__(self, progress: Progress) -> None:
        """Update masks and annealing for the step to come."""
        if self.fixed:
            return
        for layer in self.layers.values():
            layer.anneal = self.config.anneal * min(progress.fraction, self.config.freeze_mask_at)
        if progress.fraction > self.config.freeze_mask_at:
            return
        ramp = self.config.ramp_epochs
        self.update(min(1.0, progress.epochs_done / ramp) if ramp else 1.0)

    def update(self, done: float) -> None:
        """Recompute the masks with `done` of the ramp behind: r + (s - r)(1 - (1 - done)^3)."""
        end = self.config.sparsity
        begin = min(end, self.config.ramp_from)
        sparsity = begin + (end - begin) * (1 - (1 - done) ** 3)
        within = None
        if self.config.monotone and done > 0:
            within = {name: layer.mask for name, layer in self.layers.items()}
        subnet.put_masks(self.layers, self._mask(sparsity, within))

    def _mask(
        self, sparsity: float, within: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Rank the first rank's weights; a mask that leaves nothing of a layer is refused."""
        config, everywhere = self.config, self.config.scope == "global"
        floor = config.floor if everywhere else 0.0
        ranked = {name: layer.ranking() for name, layer in self.layers.items()}
        mask = select(ranked, sparsity, config.scope, within, floor)
        mask = from_first(mask)
        alive = torch.stack([kept.any() for kept in mask.values()])
        if not bool(alive.all()):
            name = list(mask)[int(alive.int().argmin())]
            rule = f"lower, as it removes all {mask[name].numel()} weights of {name}"
            rule += ", or a floor above 0" if everywhere else ""
            check(False, "weights.sparsity", config.sparsity, rule)
        return mask


LITERAL_SCORES = OptimConfig(
    opt="adam", lr=1e-3, score_lr=0.1, weight_decay=0.0, min_lr=0.0, clip_grad=0.0
)
"""Adam at 0.1 for the scores, cosine, no decay: arXiv 2311.12060, section IV; head at 1e-3."""


@register_search("multisp", MultiSpConfig)
class MultiSp(base.Search):
    """Finds a MultiSp ticket.

    The model must have a stem, and for level 1 ``patch``; ``T``, ``num_classes``, ``time_first``.

    Source: arXiv 2309.13302; Algorithm 1 of arXiv 2311.12060; arXiv 2103.09377 (biprop).
    """

    trained = True

    def __init__(self, config: Any = None, seed: int = 0, batch: base.Batch | None = None) -> None:
        super().__init__(config, seed, batch)
        self.trained = True  # it trains a control itself

    def planned(self) -> int:
        """Epochs of the dense network, the selector, the stem and the rest."""
        if self.config.ticket:
            return int(self.config.epochs)
        config = self.config
        searched = config.stem_epochs if config.weights.method != "off" else 0
        stem = {"sequential": searched, "reverse": max(1, config.stem_epochs)}
        trained = config.epochs * (1 + len(config.encoder.levels))
        found = config.dense_epochs + trained + config.patches.searched
        return int(found + stem.get(config.schedule, 0))

    def check(self, model: nn.Module) -> None:
        """Refuse a model without a stem, or what its score reads; a ticket not of this model."""
        if stem_of(model) is None:
            raise ConfigError(
                f"MultiSp needs a model with a stem; {model._get_name()} has none: "
                "give --model.name of a spiking transformer, or use another search"
            )
        surgery.check_patches(model, self.config.patches)
        surgery.check_activation(model, self.config.activation)
        surgery.set_halting(model, self.config.halting, refuse_only=True)
        if self.config.ticket:
            self._opened(model)
        else:
            self._check_rates(model)

    def _check_rates(self, model: nn.Module) -> None:
        """Refuse a sparsity that empties a layer, or leaves less than its floor."""
        weights, encoder = self.config.weights, self.config.encoder
        own = {id(unit.conv.weight) for role, unit in stem_of(model).units()
               if role != "shortcut" or weights.include_rpe}  # fmt: skip
        stem = {n: p.numel() for n, p in model.named_parameters() if id(p) in own}
        behind = {n: p.numel() for n, p in encoder_weights(model, encoder.head).items()}
        levels = [("weights", weights, stem)] if weights.method != "off" else []
        levels += [("encoder", encoder, behind)] if encoder.sparsity else []
        for name, level, sizes in levels:
            bare = level.scope == "layer" or (name == "encoder" and level.method == "rigl")
            try:
                check_floor(sizes, level.sparsity, level.scope, 0.0 if bare else level.floor, 1)
            except MaskError as fault:
                told = ConfigError(f"multisp.{name}.{fault}")
                told.most = fault.most
                raise told from None

    def _search(self, model: nn.Module, fit: Fit) -> Mask:
        """Train `model` in place into a ticket; it ends collapsed to plain convolutions.

        The surgery between phases is deterministic: a resumed search meets the same modules.
        """
        self.check(model)
        config, teacher, self._level2 = self.config, None, _stem_weights(model)
        self._mask: Mask | None = None
        self._stem: MaskController | None = None
        self._encoder: MaskController | None = None
        self._rigl: Rewiring | None = None
        self._origin: dict[str, Any] = {"start_sha256": digest(self.start)}
        if config.ticket:
            return self._trained_again(model, fit)
        if config.dense_epochs:
            self._fit(fit, model, Phase("dense", config.dense_epochs))
            if config.distill:
                teacher = copy.deepcopy(model).requires_grad_(False)
        surgery.set_activation(model, config.activation)
        final = Phase(config.schedule, config.epochs, teacher=teacher, distill=config.distill)
        getattr(self, f"_{config.schedule}")(model, fit, final)
        if any(True for _ in subnet.subnets(model)):
            self._mask = self._collapsed(model)
        if self._rigl is not None:
            self._mask = Mask({**(self._mask or {}), **self._rigl.mask})
        return self._mask or _all_kept(model)

    def _ticket(self, model: nn.Module, mask: Mask) -> Ticket:
        self.start, phases = base.snapshot(model), [asdict(result) for result in self.results]
        about = {"search": self.name, "config": asdict(self.config), "phases": phases}
        about |= {"control": self.control, "mask_sha256": mask.sha256, **self._origin}
        about["deviations"] = base.deviations(self.config)
        return Ticket(mask, dict(self.start), about)

    def _asked(self, mask: Mask) -> int | None:
        asked = 0
        for level, inside in ((self.config.weights, True), (self.config.encoder, False)):
            part = {name: m for name, m in mask.items() if (name in self._level2) == inside}
            if part and getattr(level, "method", "") != "off":
                asked += base.asked_for(Mask(part), level.sparsity, level.scope)
        return asked

    def _opened(self, model: nn.Module) -> Ticket:
        """The ticket that is trained again."""
        where, own = self.config.ticket, model.state_dict()
        found = Ticket.load(finished_folder(where))
        about, seed = found.provenance, found.provenance.get("seed")
        check(about.get("search") == "multisp", "multisp.ticket", where, "a ticket of multisp")
        fits = all(n in own and own[n].shape == kept.shape for n, kept in found.mask.items())
        check(fits, "multisp.ticket", where, "a ticket of this network: take its --model options")
        rule = f"{seed}, with which the ticket's search drew its start weights"
        drawn = self.control == "fresh" or seed in (None, self.seed)
        check(drawn, "train.seed", self.seed, rule)
        return found

    def _trained_again(self, model: nn.Module, fit: Fit) -> Mask:
        """Train the mask of a finished search from its start weights, or from a control's."""
        kind, found = self.control, self._opened(model)
        about = found.provenance
        begun, same = about.get("start_sha256"), self._origin["start_sha256"]
        rule = (
            "a ticket whose search began with these weights: take its --model.init-from and phases"
        )
        check(kind == "fresh" or begun in (None, same), "multisp.ticket", self.config.ticket, rule)
        levels: dict[str, type] = {"weights": WeightConfig, "activation": ActivationConfig}
        later = {"encoder": EncoderConfig, "halting": HaltingConfig}  # than tickets of once
        levels |= {name: kind for name, kind in later.items() if name in about.get("config", {})}
        stored, config = surgery.known_config, about.get("config")
        own = {n: stored(cls, config, n) for n, cls in levels.items()}
        own["patches"] = stored(PatchConfig, config, "patches", ties="index")
        own["weights"] = weights = replace(own["weights"], ramp_epochs=0.0)
        own["encoder"] = encoder = replace(own.get("encoder", EncoderConfig()), ramp_epochs=0.0)
        self.config = replace(self.config, **own)
        self._origin |= {
            "from_ticket": {n: about.get(n) for n in ("run_id", "mask_sha256", "seed")}
        }
        stem, sparse, mask = stem_of(model), weights.method != "off", found.mask
        drawn = seed_for(self.seed, "multisp control")
        if kind == "fresh":
            load_state(model, base.fresh_weights(model, drawn))
        with seeded(drawn) if kind == "fresh" else self._seeded("scores"):
            if sparse:
                install_subnets(stem, weights)  # draws start weights as the search did
        start = {key: value for key, value in base.snapshot(model).items() if key in self.start}
        collapse(model)
        if kind in ("random", "shuffle"):
            mask, start = base.control(kind, mask, start, model, drawn)
        load_state(model, start)
        surgery.apply_surgery(model, found)
        selector = {key: value for key, value in found.tensors.items() if key not in start}
        selector = {key: value for key, value in selector.items() if ".halt." not in key}
        load_state(model, selector, strict=False)
        if sparse:
            install_subnets(stem, replace(weights, method="latent", init="keep"))
        if encoder.binary or encoder.sparsity:
            install_encoder(model, encoder)
        if known := dict(subnet.subnets(model)):
            set_masks(model, mask)
        self._fit(fit, model, Phase("retrain", self.config.epochs))
        return self._collapsed(model) if known else mask

    def _collapsed(self, model: nn.Module) -> Mask:
        mask = {**(self._mask or {}), **get_masks(model)}
        collapse(model)
        return Mask(mask)

    def _joint(self, model: nn.Module, fit: Fit, final: Phase) -> None:
        self.select_patches(model, fit)
        if final.epochs:
            self._fit_encoder(model, fit, self._with_masks(model, final))

    def _sequential(self, model: nn.Module, fit: Fit, final: Phase) -> None:
        config = self.config
        if config.weights.method != "off":
            with self._seeded("head"):
                probe = StemProbe(model)
            optim = LITERAL_SCORES if config.preset == "literal" else None
            searched = self._with_masks(model, Phase("conv_pep", config.stem_epochs, optim))
            moves = [p for p in stem_of(model).parameters() if p.ndim < 2 and p.requires_grad]
            for parameter in moves:
                parameter.requires_grad_(config.weights.learn_norm)
            self._fit(fit, probe, searched)
            for parameter in moves:
                parameter.requires_grad_(True)
            if config.stem == "frozen":
                self._mask = self._collapsed(model)
                final = replace(final, frozen=(_stem_name(model),))
            elif self._stem is not None:
                final = replace(final, before_step=self._stem.at_full_sparsity())
        with held(model, final.frozen):
            self.select_patches(model, fit)
            self._fit_encoder(model, fit, final)

    def _reverse(self, model: nn.Module, fit: Fit, final: Phase) -> None:
        self.select_patches(model, fit)
        first = replace(final, name="patches", teacher=None, distill=0.0)
        self._fit_encoder(model, fit, first)
        stem = replace(final, name="conv_pep", epochs=max(1, self.config.stem_epochs))
        if self._rigl is not None:
            stem = replace(stem, hooks=(Masked(self._rigl.mask),))
        self._fit(fit, model, self._with_masks(model, stem))

    def _with_masks(self, model: nn.Module, phase: Phase) -> Phase:
        """Turn level 2 on for a phase."""
        weights = self.config.weights
        if weights.method == "off":
            return phase
        with self._seeded("scores"):
            install_subnets(stem_of(model), weights)
        self._stem = controller = MaskController(
            model, weights, seed_for(self.seed, "mask"), self._encoder
        )
        return replace(phase, before_step=controller, settled_from=controller.settled_from)

    def _fit_encoder(self, model: nn.Module, fit: Fit, phase: Phase) -> None:
        """Train a phase with level 4; by method imp again and again, from an early point."""
        config = self.config.encoder
        if not config.levels:
            self._fit(fit, model, self._with_encoder(model, phase))
            return
        install_encoder(model, config)
        early, seed = Capture(config.rewind_step), seed_for(self.seed, "encoder mask")
        for number, level in enumerate(config.levels):
            own = replace(phase, name=f"{phase.name}-{number}", settled_from=phase.epochs - 1)
            self._fit(fit, model, own if number else replace(own, hooks=(*own.hooks, early)))
            how = WeightConfig(
                "magnitude", level, scope=config.scope, floor=config.floor, monotone=True
            )
            self._encoder = MaskController(model, how, seed, self._stem)
            found = {name: layer.mask.clone() for name, layer in self._encoder.layers.items()}
            load_state(model, early.captured)  # with the masks of that point
            subnet.put_masks(self._encoder.layers, found)
        self._fit(fit, model, phase)

    def _with_encoder(self, model: nn.Module, phase: Phase) -> Phase:
        """Turn level 4 on for a phase that trains the encoder."""
        config, before = self.config.encoder, phase.before_step
        if not (config.binary or config.sparsity):
            return phase
        seed = seed_for(self.seed, "encoder mask")
        if config.method == "rigl":
            how = SparseTrainingConfig(sparsity=config.sparsity, every=config.every)
            behind = encoder_weights(model, config.head)
            if config.scope == "layer":
                flat = {name: torch.zeros(weight.shape) for name, weight in behind.items()}
                mask = Mask.from_scores(flat, config.sparsity, "layer")
                mask = Mask.random_like(mask, seed_for(seed, "random ticket"))
            else:
                mask = random_mask(behind, config.sparsity, "erk", seed)
            self._rigl = Rewiring(mask, SparseTraining.resolved(how), seed)
            settled = max(phase.settled_from, math.ceil(how.end * phase.epochs))
            return replace(phase, hooks=(self._rigl,), settled_from=settled)
        install_encoder(model, config)
        names = "method", "sparsity", "binary", "scope", "floor", "ramp_epochs"
        same = {name: getattr(config, name) for name in names}
        own = MaskController(model, WeightConfig(**same), seed, self._stem)
        self._encoder = own

        def both(progress: Progress) -> None:
            if before is not None:
                before(progress)
            own(progress)

        settled = max(phase.settled_from, own.settled_from)
        return replace(phase, before_step=both, settled_from=settled)

    def select_patches(self, model: nn.Module, fit: Fit) -> None:
        """Turn level 1 on, training its selector first where it has one, and level 5."""
        self._select(model, fit)
        surgery.set_halting(model, self.config.halting)

    def _select(self, model: nn.Module, fit: Fit) -> None:
        patches = self.config.patches
        if patches.sparsity == 0:
            return
        if patches.space == "input" and patches.searched:
            start = base.snapshot(model)
            self._fit(fit, model, Phase("selector", patches.searched))
            with self._seeded("selector"):
                surgery.set_patches(model, patches)  # it copies what was trained
            load_state(model, model.state_dict() | start)
            return
        with self._seeded("selector"):
            if patches.mode != "remove":
                return surgery.set_patches(model, patches)
            score = surgery.new_score(model, patches)
        if isinstance(score, Attention):
            probe = SelectorProbe(model, score)
            wanted = {p: p.requires_grad for p in probe.stem.parameters()}
            if patches.selector_epochs:
                probe.stem.requires_grad_(False)
                self._fit(fit, probe, Phase("selector", patches.selector_epochs, frozen=("stem",)))
            for parameter, needs in wanted.items():
                parameter.requires_grad_(needs)
            score.requires_grad_(False)
        surgery.set_patches(model, patches, score)

    def _seeded(self, what: str) -> AbstractContextManager[None]:
        return seeded(seed_for(self.seed, "multisp", what))


class SelectorProbe(nn.Module):
    """Frozen stem, one encoder block and a head: what trains the attention selector (SETS)."""

    def __init__(self, model: Any, score: Attention) -> None:
        super().__init__()
        self.stem, self.score = stem_of(model), score
        self.T, self._door = int(model.T), model.time_first

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, T, K]`` of the selector."""
        tokens, _ = self.stem(self._door(x), self.T)
        return self.score.logits(tokens, self.T)


def _stem_weights(model: nn.Module) -> set[str]:
    """Names of the weights of the stem's units."""
    synapses = {id(part.unit.synapse) for part in stem_of(model).units()}
    return {f"{name}.weight" for name, module in model.named_modules() if id(module) in synapses}


def _stem_name(model: nn.Module) -> str:
    stem = stem_of(model)
    found: str = next(name for name, module in model.named_modules() if module is stem)
    return found


def _all_kept(model: nn.Module) -> Mask:
    weights = stem_of(model).state_dict(prefix=f"{_stem_name(model)}.")
    return Mask(
        {k: torch.ones_like(v, dtype=torch.bool).cpu() for k, v in weights.items() if v.ndim == 4}
    )


@register_search("joint", JointConfig)
class Joint(base.Search):
    """Patches are removed first; every round of weight pruning sees the patches that are left.

    The ticket's mask is over the encoder's weights; its provenance has the sparsity of each level.

    Source: patches: arXiv 2311.12060; weights: as `imp`; both together: arXiv 2311.08806.
    """

    def planned(self) -> int:
        """Epochs of the selector and of the rounds."""
        return int(self.config.patches.searched + Imp(self.config.imp).planned())

    def check(self, model: nn.Module) -> None:
        """Refuse a model without patches, and as `imp`."""
        if stem_of(model) is None:
            raise ConfigError(
                f"joint needs a model with patches (a stem); {model._get_name()} has none: use imp"
            )
        surgery.check_patches(model, self.config.patches)
        Imp(self.config.imp, self.seed).check(model)

    def find(self, model: nn.Module, fit: Fit) -> Ticket:
        """Select patches, then prune the encoder; a ConfigError for a model without patches."""
        self.check(model)
        levels = MultiSp(MultiSpConfig(patches=self.config.patches), self.seed)
        levels.select_patches(model, fit)
        inner = Imp(self.config.imp, self.seed)
        ticket = inner.find(model, fit)
        self.start, self.results = inner.start, levels.results + inner.results
        about = ticket.provenance
        ledger = {
            "patch": self.config.patches.removed,
            "weight": about["prunable_sparsity"],
            "total_weight": about["total_sparsity"],
        }
        phases = [asdict(result) for result in levels.results] + about["phases"]
        seconds = sum(phase["seconds"] for phase in phases)
        own = {"search": self.name, "config": asdict(self.config), "ledger": ledger}
        return base.noted(ticket, **own, phases=phases, search_seconds=seconds)
