"""Tickets become networks again, or say why they cannot."""

from __future__ import annotations

import pytest
import torch

from spikeformer_lt import Mask, Ticket, create_model
from spikeformer_lt.errors import TicketError
from spikeformer_lt.tickets import model_from_ticket

ARGS = {"image_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "T": 2}


def ticket_of(net, **provenance) -> Ticket:
    name = "conv_pep.rpe.conv.weight"
    mask = Mask({name: torch.ones_like(net.state_dict()[name], dtype=torch.bool)})
    return Ticket.of(net, mask, provenance)


def test_a_plain_ticket_rebuilds_its_model():
    model = create_model("spikformer_toy", **ARGS).eval()
    ticket = ticket_of(model, model={"name": "spikformer_toy", "args": ARGS})
    images = torch.rand(2, 3, 16, 16)
    again = model_from_ticket(ticket)
    assert not again.training
    assert torch.equal(again(images), model(images))
    assert model_from_ticket(ticket, T=3)(images).shape == (2, 3, 10)


def test_a_ticket_that_names_no_model_is_refused():
    model = create_model("spikformer_toy", **ARGS)
    with pytest.raises(TicketError, match="names no model"):
        model_from_ticket(ticket_of(model))


def test_weights_of_another_size_are_refused():
    model = create_model("spikformer_toy", **ARGS)
    wrong = {**ARGS, "embed_dim": 32}
    with pytest.raises(TicketError):
        model_from_ticket(ticket_of(model, model={"name": "spikformer_toy", "args": wrong}))
