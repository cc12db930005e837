"""From a ticket on disk back to the network it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from spikeformer_lt.errors import TicketError
from spikeformer_lt.layers.patches import PatchSelect, make_score
from spikeformer_lt.registry import create_model
from spikeformer_lt.ticket import Ticket


def model_from_ticket(ticket: Ticket, **overrides: Any) -> nn.Module:
    """Build the model that a ticket's provenance names and put the ticket's weights into it.

    Args:
        ticket: a ticket that a recipe saved; its provenance holds ``model: {name, args}`` and,
            for MultiSp and joint tickets, the search's ``config``.
        overrides: model arguments to change, such as T.

    Raises:
        TicketError: the provenance names no model, or the weights do not fit it.
    """
    known = ticket.provenance.get("model")
    if not isinstance(known, dict) or "name" not in known:
        raise TicketError("the ticket's provenance names no model; save it with a recipe of ours")
    model = create_model(known["name"], **{**known.get("args", {}), **overrides})
    dress_as(model, ticket)
    try:
        ticket.apply_(model)
    except (RuntimeError, KeyError) as error:
        raise TicketError(f"the ticket does not fit {known['name']}: {error}") from error
    return model.eval()


def dress_as(model: Any, ticket: Ticket) -> None:
    """Give a fresh model what the search of a ticket built into its own, in place."""
    search = ticket.provenance.get("search")
    if search == "multisp":
        dress(model, ticket.provenance["config"])
    elif search == "joint":
        select(model, ticket.provenance["config"]["patches"])


def dress(model: Any, config: dict[str, Any]) -> None:
    """Give a fresh model MultiSp's level 3 activation and level 1 selection."""
    level3 = config["activation"]
    model.conv_pep.set_activation(level3["kind"], level3["residual"])
    select(model, config["patches"])


def select(model: Any, patches: dict[str, Any]) -> None:
    """Give a fresh model the patch selection of level 1."""
    if patches["sparsity"] > 0:
        score = make_score(patches["score"], model.embed_dim, model.num_classes, model.num_heads)
        model.set_patch(
            PatchSelect(
                score, patches["sparsity"], space=patches["space"], rescale=patches["rescale"]
            )
        )
