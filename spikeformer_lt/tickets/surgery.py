"""Changes to a built model: the stem's activation, patch selection, and a ticket's network."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import from_dict
from spikeformer_lt.errors import SpikeformerError, TicketError, shown
from spikeformer_lt.layers.patches import PatchScore, PatchSelect, make_score
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.registry import create_model
from spikeformer_lt.ticket import Ticket, compare
from spikeformer_lt.tickets.configs import ActivationConfig, PatchConfig

LARGEST = 1 << 20  # number that an argument of a stored model may be
MODULES = 8  # for each tensor of a stored model; ours have about one


def set_activation(model: Any, config: ActivationConfig) -> None:
    """Replace the activations of the stem (MultiSp's level 3), in place."""
    stem_of(model).set_activation(config.kind, config.residual)


def set_patches(model: Any, config: PatchConfig, score: PatchScore | None = None) -> None:
    """Select patches (level 1), in place, by a trained score or a new one; 0 changes nothing."""
    if config.sparsity > 0:
        score = new_score(model, config) if score is None else score
        model.set_patch(
            PatchSelect(score, config.sparsity, space=config.space, rescale=config.rescale)
        )


def new_score(model: Any, config: PatchConfig) -> PatchScore:
    """An untrained score of patches, of the sizes of a model."""
    return make_score(config.score, model.embed_dim, model.num_classes, model.num_heads)


def apply_surgery(model: nn.Module, ticket: Ticket) -> None:
    """Make the changes of a ticket's search to a new model, in place; most searches make none."""
    _operate(model, ticket.provenance)


def _operate(model: nn.Module, provenance: Mapping[str, Any]) -> None:
    search, config = provenance.get("search"), provenance.get("config")
    if search == "multisp":
        set_activation(model, _known(ActivationConfig, config, "activation"))
    if search in ("multisp", "joint"):
        set_patches(model, _known(PatchConfig, config, "patches"))


def _known(cls: type, config: Any, name: str) -> Any:
    """Return the configuration `name` of a search, of the values that this version knows."""
    values = config.get(name) if isinstance(config, dict) else None
    if not isinstance(values, dict):
        raise TicketError(f"the provenance has no {name} in the configuration of its search")
    return from_dict(cls, {key: values[key] for key in asdict(cls()) if key in values}, f"{name}.")


def expected_tensors(
    provenance: Mapping[str, Any], count: int, **overrides: Any
) -> dict[str, Tensor]:
    """The state_dict of the network that a provenance names, on the meta device.

    Nothing is allocated, and what is far larger than `count` stored tensors is not made to its end.

    Raises:
        TicketError: the provenance names no model, or one that cannot be made.
        ConfigError: an unknown model, or arguments that it refuses.
    """
    known = provenance.get("model")
    if not isinstance(known, dict) or not isinstance(known.get("name"), str):
        raise TicketError("the ticket's provenance names no model; save it with a recipe of ours")
    name, given = known["name"], known.get("args", {})
    if not isinstance(given, dict):
        raise TicketError(f"the arguments of {shown(name)} are {shown(given)}, not named values")
    for key, value in given.items():
        numbers = value if isinstance(value, list) else [value]
        plain = all(isinstance(n, str | int | float | None) for n in numbers)
        if not plain or any(isinstance(n, int | float) and not abs(n) <= LARGEST for n in numbers):
            raise TicketError(f"{key}={shown(value)} is no argument that a model can have")
    places, here = iter(range(MODULES * (count + 100))), threading.get_ident()

    def register(*registered: Any) -> None:
        if threading.get_ident() == here and next(places, None) is None:
            raise TicketError(
                f"{shown(name)} with {shown(given)} has far more than {count} tensors"
            )

    hook = nn.modules.module.register_module_module_registration_hook(register)
    try:
        with torch.device("meta"):
            model = create_model(name, **{**given, **overrides})
            _operate(model, provenance)
    except SpikeformerError:
        raise
    except Exception as fault:
        what = f"{type(fault).__name__}: {shown(str(fault))}"
        raise TicketError(f"{shown(name)} cannot be made with {shown(given)}: {what}") from fault
    finally:
        hook.remove()
    return dict(model.state_dict())


def model_from_ticket(ticket: Ticket, **overrides: Any) -> nn.Module:
    """Build the model that a ticket's provenance names, with the ticket's weights, in eval mode.

    `overrides` are model arguments to change, such as T.

    Raises:
        TicketError: the provenance names no model, or the weights do not fit it.
        ConfigError: an unknown model, or arguments that it refuses.
    """
    # Nothing of a stranger's size is allocated: the shapes are compared first.
    expected = expected_tensors(ticket.provenance, len(ticket.tensors), **overrides)
    compare(ticket.tensors, expected)
    known = ticket.provenance["model"]
    model = create_model(known["name"], **{**known.get("args", {}), **overrides})
    apply_surgery(model, ticket)
    try:
        ticket.apply_(model)
    except (RuntimeError, KeyError) as error:
        raise TicketError(f"the ticket does not fit {known['name']}: {error}") from error
    return model.eval()
