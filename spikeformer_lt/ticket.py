"""A lottery ticket: a mask, the weights to start from, and where both came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from spikeformer_lt.bundle import BundleKind, open_bundle, staged
from spikeformer_lt.errors import TicketError, counted, listed, name_of, near, shown
from spikeformer_lt.mask import Mask

TICKET = BundleKind(
    "ticket", "spikeformer_lt.ticket", 1, "ticket.json", TicketError,
    files=("mask.safetensors", "model.safetensors"), sealed=False,  # those of before 0.2 are not
)  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Ticket:
    """What a search finds and a training starts from.

    Args:
        mask: which weights are kept.
        tensors: whole `state_dict` of the start weights; removed weights are exactly 0.
        provenance: how it was found, in values that JSON can hold.

    Raises:
        TicketError: a masked layer is missing, has another shape, or has a removed weight that is
            not 0; a weight is NaN or infinite.
    """

    mask: Mask
    tensors: dict[str, Tensor]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kept in self.mask.items():
            tensor = self.tensors.get(name)
            if tensor is None:
                hint = near(name, self.tensors) or "; save the whole state_dict of the model"
                raise TicketError(f"layer {shown(name)} of the mask has no weights{hint}")
            if tensor.shape != kept.shape:
                raise TicketError(
                    f"layer {shown(name)}: the mask has shape {list(kept.shape)}, the weights "
                    f"{list(tensor.shape)}; they are of different models"
                )
            plain = tensor.detach().cpu()
            plain = plain.float() if plain.itemsize < 4 else plain  # numpy knows no bfloat16
            odd = np.greater(plain.numpy() != 0, kept.numpy())  # in a quarter of torch's time
            if alive := np.count_nonzero(odd):
                raise TicketError(
                    f"layer {shown(name)}: {alive} of {int((~kept).sum())} removed weights are not "
                    "0, so mask and weights do not belong together; call mask.apply_(model) first"
                )
        for name, tensor in self.tensors.items():
            odd = tensor.is_floating_point() and not math.isfinite(float(tensor.detach().sum()))
            if odd and not bool(torch.isfinite(tensor).all()):  # finite sums have finite terms
                raise TicketError(f"tensor {shown(name)} has NaN or infinite values")

    def __repr__(self) -> str:
        known = self.provenance
        model = known.get("model")
        name = model.get("name") if isinstance(model, dict) else None
        said = {"": name, " of ": known.get("dataset"), " by ": known.get("search")}
        told = "".join(f"{word}{value}" for word, value in said.items() if value)
        start = "start " * (known.get("trained") is False)
        weights = f"{start}weights: {counted(len(self.tensors), 'tensor')}"
        return f"Ticket({shown(told)[1:-1]}{', ' * bool(told)}{weights}, {self.mask!r})"

    @classmethod
    def of(cls, model: nn.Module, mask: Mask, provenance: dict[str, Any] | None = None) -> Ticket:
        """Copy the present weights of `model` as start weights, those that `mask` removes as 0."""
        tensors = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}
        own = model.state_dict()
        places = {k: (v.data_ptr(), v.shape, v.stride()) for k, v in own.items() if v.numel()}
        for name, kept in mask.items():
            if name in tensors and tensors[name].shape == kept.shape:
                for other in own if name in places else ():  # layers that share it
                    if places.get(other) == places[name]:
                        tensors[other][~kept] = 0
        return cls(mask, tensors, dict(provenance or {}))

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write ``mask.safetensors``, ``model.safetensors`` and ``ticket.json``, all or nothing.

        `folder` is new or empty, or with `overwrite` a ticket; a TicketError if it is in use.
        """
        with staged(folder, TICKET, overwrite) as stage:
            stage.write_tensors("mask.safetensors", self.mask, self.mask.facts())
            stage.write_tensors("model.safetensors", self.tensors, {"kind": "ticket weights"})
            stage.seal({"sparsity": self.mask.sparsity, "provenance": self.provenance})

    @classmethod
    def load(cls, folder: str | Path) -> Ticket:
        """Read and verify a ticket; a TicketError or CheckpointError says what is wrong with it."""
        bundle = open_bundle(folder, TICKET)
        where, provenance = name_of(folder), bundle.about.get("provenance")
        if not isinstance(provenance, dict):
            raise TicketError(f"{where}: ticket.json has no provenance; it was edited")
        mask = Mask.stored(*bundle.tensors("mask.safetensors"), where)
        tensors, _ = bundle.tensors("model.safetensors")
        try:
            return cls(mask, tensors, provenance)
        except TicketError as fault:
            raise TicketError(f"{where}: {fault}") from None

    def apply_(self, model: nn.Module) -> None:
        """Copy the start weights into `model`, in place; raises as `compare`, changing nothing."""
        compare(self.tensors, fitted(model, self.tensors))
        load_state(model, self.tensors)


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Load a state_dict, in place; buffers take the shapes that they have there.

    A RuntimeError as of ``load_state_dict`` for a parameter of another shape, and where `strict`
    for a name that is missing or unknown.
    """
    fit_buffers(model, tensors)
    model.load_state_dict(tensors, strict=strict)


def fit_buffers(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Register the buffers that tensors of their names have in another shape anew, in that one.

    Some networks give a buffer the shape of each batch. Statistics of normalisations, which have
    the shape of their layer, stay.
    """
    for name, module, own in open_buffers(model):
        buffer: Any = module._buffers[own]
        if name in tensors and tensors[name].shape != buffer.shape:
            module._buffers[own] = buffer.new_empty(tensors[name].shape)


def fitted(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state_dict as `fit_buffers` would make it, new buffers on ``meta``."""
    state = {n: v for n, v in model.state_dict().items() if isinstance(v, Tensor)}
    for name, _, _ in open_buffers(model):
        if name in tensors and name in state and tensors[name].shape != state[name].shape:
            state[name] = state[name].new_empty(tensors[name].shape, device="meta")
    return state


def open_buffers(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Name, module and own name of each buffer whose shape may change, state_dict or not."""
    return [
        (f"{path}.{own}" if path else own, module, own)
        for path, module in model.named_modules(remove_duplicate=False)
        if not isinstance(module, _NormBase)
        for own, buffer in module._buffers.items()
        if buffer is not None
    ]


def compare(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Compare names and shapes of stored tensors with a model's `state_dict`, on any device.

    Raises:
        TicketError: some differ; the first five are listed.
    """
    faults = []
    for name in dict.fromkeys([*state, *tensors]):
        if name not in tensors:
            faults.append(f"{shown(name)} {list(state[name].shape)} is missing in the ticket")
        elif name not in state:
            faults.append(f"{shown(name)} {list(tensors[name].shape)} is unknown to the model")
        elif (given := list(tensors[name].shape)) != (wanted := list(state[name].shape)):
            faults.append(f"{shown(name)} is {given}, the model has {wanted}")
    if faults:
        raise TicketError(
            f"the ticket is not of this model: {listed(faults, between='; ')}; make the model with "
            "the arguments in the ticket's provenance"
        )


def start_folder(path: str | Path) -> Path:
    """Where a run's ticket is, as it was before any training from it: ``ticket``, or the path."""
    return Path(path) / "ticket" if (Path(path) / "ticket").is_dir() else Path(path)


def finished_folder(path: str | Path) -> Path:
    """Where the network that a run ended with is: ``trained``, else as `start_folder`."""
    trained = Path(path) / "trained"
    return trained if trained.is_dir() else start_folder(path)
