"""Tickets that move: found on one network, loaded into another of the same names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError
from spikeformer_lt.mask import Mask
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.base import kept_modes, snapshot
from spikeformer_lt.tickets.configs import NORMS


def transfer_ticket(
    ticket: Ticket,
    model: nn.Module,
    *,
    norm: str = "keep",
    batches: Iterable[Tensor] | None = None,
    fresh: Sequence[str] = (),
    **changed: Any,
) -> Ticket:
    """Put a ticket's mask and weights into another network, such as a ReLU CNN's into its SNN.

    Args:
        ticket: found on a network with the same names in its state_dict.
        model: takes the weights, in place; those that the mask removes are exactly 0.
        norm: BatchNorm's running statistics: ``keep`` the ticket's; ``reset`` to mean 0 and
            variance 1; or ``estimate`` them anew from `batches`, whose activity in the new
            neurons is another. Scale and shift are weights and always come along.
        batches: images or frames for ``estimate``, on the model's device.
        fresh: names of layers, such as "head", that keep the model's own weights, not masked.
        changed: model arguments that differ from those in the ticket's provenance, where they are
            recorded, so that the new ticket can be built again.

    Returns:
        The ticket that `model` now is, with ``transfer`` in its provenance.

    Raises:
        ConfigError: an unknown `norm`, no batches for ``estimate``, or a layer in `fresh` that the
            model does not have; nothing is written.
        TicketError: names or shapes differ elsewhere; nothing is written.

    Source: Kim et al., ECCV 2022 (arXiv 2207.01382), asks whether tickets of ANNs serve SNNs.
    """
    check(norm in NORMS, "norm", norm, f"one of {', '.join(NORMS)}")
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
    if norm == "reset":
        for module in _norms(model):
            module.reset_running_stats()
    elif norm == "estimate":
        estimate_norms(model, listed)
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
    return Ticket.of(model, mask, provenance)


@torch.no_grad()
def estimate_norms(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every BatchNorm's running statistics to the mean of those of the batches, in place.

    Each layer is measured while the ones before it normalise by the batch itself, as in training.
    Weights, training modes and momenta stay as they are; all else of the model runs in eval mode.
    Batches are images or frames on the model's device, with more than one value a channel.

    Raises:
        DataError: a batch that has no variance, such as one image at a map of one pixel.
    """
    norms = _norms(model)
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


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
