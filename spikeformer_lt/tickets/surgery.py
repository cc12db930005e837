"""What is done with a ticket: its network is built again, or another network takes it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from spikeformer_lt.adapted import at_door, read_foreign
from spikeformer_lt.config import check, from_dict
from spikeformer_lt.errors import ConfigError, SpikeformerError, TicketError, shown
from spikeformer_lt.layers.attention import SpikingSelfAttention
from spikeformer_lt.layers.halting import HaltingNeuron, check_halting
from spikeformer_lt.layers.inputs import SpikingClassifier, kept_modes
from spikeformer_lt.layers.patches import (
    SCORES,
    Attention,
    PatchScore,
    PatchSelect,
    Random,
    StagedSelect,
    check_needs,
    check_stages,
    check_stops,
    make_score,
)
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.layers.subnet import effective_weight
from spikeformer_lt.mask import Mask
from spikeformer_lt.preprocess import Preprocess
from spikeformer_lt.registry import create_model
from spikeformer_lt.ticket import Ticket, compare, finished_folder, load_state
from spikeformer_lt.tickets.base import fresh_weights, snapshot
from spikeformer_lt.tickets.levels import (
    CONTROLS,
    NORMS,
    ActivationConfig,
    HaltingConfig,
    PatchConfig,
)

if TYPE_CHECKING:
    from spikeformer_lt.splits import Splits

LIBRARIES = ("timm:", "torchvision:")
OWN = "module:"  # before the class of a network that a user gave
LARGEST = 1 << 20  # number that an argument of a stored model may be
_FILLS = {torch.Tensor.uniform_, torch.Tensor.normal_, torch.Tensor.erfinv_}
MODULES = 8  # for each tensor of a stored model; ours have about one


def teacher_of(folder: str, data: Splits) -> nn.Module | None:
    """The frozen network of a run or ticket that can teach on some data; "" is none.

    ``timm:NAME@FILE`` and ``torchvision:NAME@FILE`` are networks of these libraries with weights of
    a file.

    Raises:
        TicketError: no ticket there.
        CheckpointError: the file holds something else than weights.
        ConfigError: a network of other classes, or of samples that are prepared in another way;
            weights of another network.
    """
    if not folder:
        return None
    if folder.startswith(LIBRARIES):
        return _teacher_of_library(folder, data)
    try:
        found = Ticket.load(finished_folder(folder))
    except TicketError as fault:
        raise TicketError(f"train.teacher={fault}") from None
    model: Any = model_from_ticket(found)
    known, own = Preprocess.known(found.provenance), data.preprocess
    alike = known is None or own is None or known.facts() == own.facts()
    rule = f"a network of {data.num_classes} classes, of samples prepared as those of {data.name}"
    check(alike and model.num_classes == data.num_classes, "train.teacher", folder, rule)
    taught: nn.Module = model.requires_grad_(False)
    return taught


def _teacher_of_library(place: str, data: Splits) -> nn.Module:
    library, _, rest = place.partition(":")
    name, at, file = rest.partition("@")
    check(bool(name and at and file), "train.teacher", place, f"{library}:NAME@FILE")
    sample = data.train[0][0][None].float()
    sizes: dict[str, Any] = {"image_size": sample.shape[-1], "in_channels": sample.shape[-3]}
    net = create_model(library, name=name, num_classes=data.num_classes, **sizes)
    try:
        net.load_state_dict(read_foreign(file))
    except RuntimeError as fault:
        said = " ".join(str(fault).split())
        raise ConfigError(f"train.teacher={shown(place)}: {shown(said, 200)[1:-1]}") from None
    return at_door(net, 1, lambda: sample).requires_grad_(False)


def set_activation(model: Any, config: ActivationConfig) -> None:
    """Replace the activations of the stem (MultiSp's level 3), in place."""
    own = {} if config.ste == "auto" else {"surrogate": config.ste}
    stem_of(model).set_activation(config.kind, config.residual, **own)


def check_activation(model: Any, config: ActivationConfig) -> None:
    """Refuse a residual rule (level 3) that the stem of a model cannot have."""
    stem = stem_of(model)
    allowed = getattr(stem, "residuals", (config.residual,)) or ("add",)
    rule = f"one of {', '.join(allowed)}" if len(allowed) > 1 else "add"
    rule += f" for the {type(stem).__name__} of a {type(model).__name__}"
    check(config.residual in allowed, "multisp.activation.residual", config.residual, rule)


def set_patches(model: Any, config: PatchConfig, score: PatchScore | None = None) -> None:
    """Select patches (level 1), in place, by a trained score or a new one; 0 changes nothing."""
    options: dict[str, Any] = {"rescale": config.rescale, "ties": config.ties}
    if config.sparsity == 0:
        return
    if config.mode == "stages":
        weight, kept = config.ratio_weight / len(config.stages), config.kept
        sizes = model.embed_dim, model.num_tokens
        model.set_stages({
            i: StagedSelect(*sizes, share, weight, config.ties)
            for i, share in zip(config.stages, kept, strict=True)
        })  # fmt: skip
    elif config.mode == "stop":
        model.set_stops(_stops(model, config))
    else:
        score = new_score(model, config) if score is None else score
        chooser = None
        if config.space == "input" and config.score != "random":
            chooser = _frozen_copy(stem_of(model))
            if isinstance(score, Attention):
                score.block = _frozen_copy(model.blocks[0])
                score.head = None
        patch = PatchSelect(score, config.sparsity, space=config.space, stem=chooser, **options)
        model.set_patch(patch)


def _stops(model: Any, config: PatchConfig) -> list[PatchSelect]:
    """The selections of mode stop, one before each block."""
    shares = config.blocks or [config.sparsity] * len(model.encoder_blocks())
    scores = (Random(i) if config.score == "random" else new_score(model, config)
              for i in range(len(shares)))  # fmt: skip
    own: dict[str, Any] = {"rescale": config.rescale, "ties": config.ties}
    return [PatchSelect(score, share, **own) for score, share in zip(scores, shares, strict=True)]


def check_patches(model: Any, config: PatchConfig) -> None:
    """Refuse a selection of patches (level 1) that a model cannot have; nothing is changed."""
    if config.sparsity == 0:
        return
    check_needs(SCORES[config.score], model, stem_of(model), stop=config.mode == "stop")
    if config.space == "input" and config.score == "attention":
        first = next(iter(model.blocks), None)
        fits = isinstance(getattr(first, "attn", None), SpikingSelfAttention)
        rule = f"another in space input: the first block of a {type(model).__name__} has no q k^T v"
        check(fits, "multisp.patches.score", config.score, rule)
    if config.mode == "stop":
        blocks: list[Any] = getattr(model, "encoder_blocks", list)()
        check(bool(blocks), "multisp.patches.mode", "stop", "for a model with encoder_blocks()")
        fits = len(config.blocks) in (0, len(blocks))
        rule = f"{len(blocks)} fractions, one for each block of this network"
        check(fits, "multisp.patches.blocks", config.blocks, rule)
        check_stops(model, _stops(model, config))
    if config.mode == "stages":
        check(
            hasattr(model, "set_stages"), "multisp.patches.mode", "stages", "for our transformers"
        )
        check_stages(model, {0: None})  # the first block stands for all
        rule = f"numbers of the {len(model.blocks)} blocks of this network, the first of which is 0"
        inside = max(config.stages) < len(model.blocks)
        check(inside, "multisp.patches.stages", config.stages, rule)


def _frozen_copy(part: nn.Module) -> Any:
    """A part of a network as it is now, without the blocks that a stem tells what they read."""
    known = {id(readers): ()} if (readers := getattr(part, "_readers", None)) else {}
    return copy.deepcopy(part, known).requires_grad_(False)


def set_halting(model: Any, config: HaltingConfig, refuse_only: bool = False) -> None:
    """Let tokens and images halt (level 5), in place, or only refuse what cannot."""
    act = config.kind == "act"
    if not (act or config.confidence):
        return
    ours = hasattr(model, "set_halting")
    check(ours, "multisp.halting", config.kind, "off, but for our transformers")
    if refuse_only:
        return check_halting(model, act, config.confidence)
    count = len(model.blocks) if act else 0
    own = (config.eps, config.ponder / max(1, count), count * model.T)
    model.set_halting([HaltingNeuron(*own) for _ in range(count)], config.confidence)


def new_score(model: Any, config: PatchConfig) -> PatchScore:
    """An untrained score of patches, of the sizes of a model."""
    return make_score(config.score, model.embed_dim, model.num_classes, model.num_heads)


def apply_surgery(model: nn.Module, ticket: Ticket) -> None:
    """Make the changes of a ticket's search to a new model, in place; most searches make none."""
    _operate(model, ticket.provenance)


def _operate(model: nn.Module, provenance: Mapping[str, Any]) -> None:
    search, config = provenance.get("search"), provenance.get("config")
    if search == "multisp":
        set_activation(model, known_config(ActivationConfig, config, "activation"))
    if search in ("multisp", "joint"):
        # A ticket of an earlier version kept the lower index, and goes on doing so.
        set_patches(model, known_config(PatchConfig, config, "patches", ties="index"))
    if search == "multisp" and isinstance(config, dict) and "halting" in config:
        set_halting(model, known_config(HaltingConfig, config, "halting"))


def known_config(cls: type, config: Any, name: str, **earlier: Any) -> Any:
    """Return the configuration `name` of a search, of the values that this version knows."""
    values = config.get(name) if isinstance(config, dict) else None
    if not isinstance(values, dict):
        raise TicketError(f"the provenance has no {name} in the configuration of its search")
    values = earlier | {key: values[key] for key in asdict(cls()) if key in values}
    return from_dict(cls, values, f"{name}.")


def expected_tensors(
    provenance: Mapping[str, Any], count: int, **overrides: Any
) -> dict[str, Tensor]:
    """The state_dict of the network that a provenance names; raises as `_unallocated`."""
    return dict(_unallocated(provenance, count, **overrides).state_dict())


def _unallocated(provenance: Mapping[str, Any], count: int, **overrides: Any) -> nn.Module:
    """The network that a provenance names, on the meta device.

    Nothing is allocated, and what is far larger than `count` stored tensors is not made to its end.

    Raises:
        TicketError: the provenance names no model, or one that cannot be made.
        ConfigError: an unknown model, or arguments that it refuses.
    """
    known = provenance.get("model")
    if not isinstance(known, dict) or not isinstance(known.get("name"), str):
        raise TicketError("the ticket's provenance names no model; save it with a recipe of ours")
    if known["name"].startswith(OWN):
        raise TicketError(
            f"the ticket is of {shown(known['name'].removeprefix(OWN))}, no registered model: give "
            "the network, load_exported(DIR, model=net), or register what makes it"
        )
    name, given = known["name"], known.get("args", {})
    if not isinstance(given, dict):
        raise TicketError(f"the arguments of {shown(name)} are {shown(given)}, not named values")
    for key, value in given.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        plain = all(isinstance(n, str | int | float | None) for n in numbers)
        if not plain or any(isinstance(n, int | float) and not abs(n) <= LARGEST for n in numbers):
            raise TicketError(f"{key}={shown(value)} is no argument that a model can have")
    places, here = iter(range(MODULES * (count + 100))), threading.get_ident()

    def register(*registered: Any) -> None:
        if threading.get_ident() == here and next(places, None) is None:
            raise TicketError(
                f"{shown(name)} with {shown(given)} has far more than {count} tensors"
            )

    def made() -> nn.Module:
        model = create_model(name, **{**given, **overrides})
        _operate(model, provenance)
        return model

    hook = nn.modules.module.register_module_module_registration_hook(register)
    try:
        try:
            with torch.device("meta"):
                return made()
        except RuntimeError as fault:  # snntorch's neurons read their own tensors when made
            if "meta tensors" not in str(fault):
                raise
            return made().to("meta")
    except SpikeformerError:
        raise
    except Exception as fault:
        what = f"{type(fault).__name__}: {shown(str(fault))}"
        raise TicketError(f"{shown(name)} cannot be made with {shown(given)}: {what}") from fault
    finally:
        hook.remove()


class _Unfilled(TorchFunctionMode):
    """Inside, parameters get no random numbers, because the ticket's values follow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLS and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def model_from_ticket(
    ticket: Ticket, network: nn.Module | None = None, **overrides: Any
) -> nn.Module:
    """Build the model that a ticket's provenance names, with the ticket's weights, in eval mode.

    Its attribute ``preprocess`` is the ticket's, or None. `network` takes the weights in place of a
    new one, which a ticket of no registered model needs. `overrides` are model arguments to
    change, such as T; a TicketError where no model is named, the weights do not fit it, or a
    `network` of ours, which has its arguments, comes with others.
    """
    free = set() if isinstance(network, SpikingClassifier) else {"T", "image_size", "in_channels"}
    if odd := {} if network is None else {k: overrides[k] for k in overrides if k not in free}:
        told = ", ".join(f"{name}={shown(value)}" for name, value in odd.items())
        raise TicketError(f"{told} with a network is not allowed: make the network with it")
    known: Any = ticket.provenance.get("model")
    given = known.get("args") if isinstance(known, dict) else None
    args = {**given, **overrides} if isinstance(given, dict) else overrides
    if network is None:
        # Nothing of a stranger's size is allocated: the shapes are compared first.
        expected = expected_tensors(ticket.provenance, len(ticket.tensors), **overrides)
        compare(ticket.tensors, expected)
        with _Unfilled():
            network = create_model(known["name"], **args)
        if not isinstance(network, SpikingClassifier):  # a probe will run it
            network = create_model(known["name"], **args)
    model = network
    if not isinstance(model, SpikingClassifier):
        model = at_door(model, args.get("T", 4), lambda: _blank(ticket.provenance, args))
    apply_surgery(model, ticket)
    try:
        ticket.apply_(model)
    except (RuntimeError, KeyError) as error:
        raise TicketError(f"the ticket does not fit {type(network).__name__}: {error}") from error
    model.preprocess = Preprocess.known(ticket.provenance)  # type: ignore[assignment]
    return model.eval()


def in_form(ticket: Ticket, network: nn.Module | None = None) -> Ticket:
    """The ticket with the weights that its layers run on, where they have a form of their own."""
    plain = _unallocated(ticket.provenance, len(ticket.tensors)) if network is None else network
    if not any(hasattr(m, "form") for m in plain.modules()):
        return ticket
    model = model_from_ticket(ticket, copy.deepcopy(network))
    found = {f"{n}.weight": effective_weight(m).cpu() for n, m in model.named_modules()
             if hasattr(m, "form")}  # fmt: skip
    return replace(ticket, tensors={**ticket.tensors, **found}) if found else ticket


def _blank(provenance: Mapping[str, Any], args: Mapping[str, Any]) -> Tensor:
    """A batch of zeros in the form of a network's input: images, or frames of recordings."""
    prepared, size = Preprocess.known(provenance), args.get("image_size", 32)
    frames = prepared is not None and prepared.recordings is not None
    shape = (args.get("in_channels", 3), *([size] * 2 if isinstance(size, int) else size))
    return torch.zeros(1, *([args.get("T", 4)] if frames else []), *shape)


def transfer_ticket(
    ticket: Ticket,
    model: nn.Module,
    *,
    norm: str = "keep",
    batches: Iterable[Tensor] | None = None,
    fresh: Sequence[str] = (),
    control: str = "none",
    seed: int = 0,
    **changed: Any,
) -> Ticket:
    """Put a ticket's mask and weights into another network, such as a ReLU CNN's into its SNN.

    Args:
        ticket: found on a network with the same names in its state_dict.
        model: takes the weights, in place; those that the mask removes are exactly 0.
        norm: BatchNorm's running statistics: ``keep`` the ticket's, ``reset`` or ``estimate`` them.
        batches: images or frames for ``estimate``, on the model's device.
        fresh: names of layers, such as "head", that keep the model's own weights, not masked.
        control: "none", or what stands in the ticket's place, drawn by `seed`: its weights at
            random places (random), at its own but permuted (shuffle), both within each layer, or
            weights drawn anew (fresh). Weights that the ticket removed are not known any more.
        changed: model arguments that differ from those in the ticket's provenance.

    Raises:
        ConfigError: an unknown `norm`, `control` or layer in `fresh`; no batches for ``estimate``.
        TicketError: names or shapes differ elsewhere. Nothing is written in either case.

    Source: Kim et al., ECCV 2022 (arXiv 2207.01382), asks whether tickets of ANNs serve SNNs.
    """
    check(norm in NORMS, "norm", norm, f"one of {', '.join(NORMS)}")
    check(control in CONTROLS, "control", control, f"one of {', '.join(CONTROLS)}")
    listed = list(batches) if batches is not None else []
    if norm == "estimate" and not listed:
        raise ConfigError("norm='estimate' needs batches: images that BatchNorm is measured on")
    names = {name for name, _ in model.named_modules() if name}
    for layer in fresh:
        check(layer in names, "fresh", layer, "the name of a layer of the model")

    own = tuple(f"{layer}." for layer in fresh)
    tensors = {n: t for n, t in ticket.tensors.items() if not n.startswith(own)}
    tensors |= {n: t for n, t in snapshot(model).items() if n.startswith(own)}
    mask = Mask({n: kept for n, kept in ticket.mask.items() if not n.startswith(own)})
    Ticket(mask, tensors).apply_(model)
    if control != "none":
        mask, tensors = _controlled(control, mask, tensors, model, seed)
        load_state(model, tensors)
        mask.apply_(model)
    if norm != "keep":  # no batches reset them
        estimate_norms(model, listed if norm == "estimate" else [])
    provenance = dict(ticket.provenance)
    if changed and isinstance(known := provenance.get("model"), dict):
        provenance["model"] = {**known, "args": {**known.get("args", {}), **changed}}
    provenance["transfer"] = {
        "norm": norm,
        "images": sum(len(batch) for batch in listed) if norm == "estimate" else 0,
        "fresh": list(fresh),
        "changed": dict(changed),
        "mask_sha256": ticket.mask.sha256,
    }
    provenance |= {"mask_sha256": mask.sha256, "control": control}
    return Ticket.of(model, mask, provenance)


def _controlled(
    kind: str, mask: Mask, start: dict[str, Tensor], model: nn.Module, seed: int
) -> tuple[Mask, dict[str, Tensor]]:
    if kind == "fresh":
        return mask, fresh_weights(model, seed)
    places = Mask.random_like(mask, seed) if kind == "random" else mask
    moved, generator = dict(start), torch.Generator().manual_seed(seed)
    for name, kept in mask.items():
        values = start[name][kept]
        moved[name] = torch.zeros_like(start[name])
        moved[name][places[name]] = values[torch.randperm(len(values), generator=generator)]
    return places, moved


@torch.no_grad()
def estimate_norms(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every BatchNorm's running statistics to the mean of those of the batches, in place.

    Each layer is measured while the ones before it normalise by the batch itself, as in training;
    all else of the model runs in eval mode. Batches are images or frames on the model's device; a
    DataError for one that has no variance, such as one image at a map of one pixel.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [layer.momentum for layer in norms]
    with kept_modes(model):
        model.eval()
        try:
            for layer in norms:
                layer.reset_running_stats()
                layer.momentum = None  # the plain mean over batches
                layer.train()
            for batch in batches:
                model(batch)
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum
