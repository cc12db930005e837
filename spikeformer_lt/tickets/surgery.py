"""Changes to a built model: the stem's activation, patch selection, and a ticket's network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from spikeformer_lt.errors import TicketError
from spikeformer_lt.layers.patches import PatchScore, PatchSelect, make_score
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.preprocess import Preprocess
from spikeformer_lt.registry import create_model
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.configs import ActivationConfig, PatchConfig


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
    search, config = ticket.provenance.get("search"), ticket.provenance.get("config", {})
    if search == "multisp":
        set_activation(model, _known(ActivationConfig, config["activation"]))
    if search in ("multisp", "joint"):
        set_patches(model, _known(PatchConfig, config["patches"]))


def _known(cls: type, values: Mapping[str, Any]) -> Any:
    """Return a configuration of the values that this version knows."""
    return cls(**{name: values[name] for name in asdict(cls()) if name in values})


def model_from_ticket(ticket: Ticket, **overrides: Any) -> nn.Module:
    """Build the model that a ticket's provenance names, with the ticket's weights, in eval mode.

    Its attribute ``preprocess`` is the ticket's, or None. `overrides` are model arguments to
    change, such as T.

    Raises:
        TicketError: the provenance names no model, or the weights do not fit it.
    """
    known = ticket.provenance.get("model")
    if not isinstance(known, dict) or "name" not in known:
        raise TicketError("the ticket's provenance names no model; save it with a recipe of ours")
    model = create_model(known["name"], **{**known.get("args", {}), **overrides})
    apply_surgery(model, ticket)
    try:
        ticket.apply_(model)
    except (RuntimeError, KeyError) as error:
        raise TicketError(f"the ticket does not fit {known['name']}: {error}") from error
    model.preprocess = Preprocess.known(ticket.provenance)  # type: ignore[assignment]
    return model.eval()
