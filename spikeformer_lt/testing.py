"""Checks for authors of models: what a model declares, and what searches and exports would miss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from spikeformer_lt.layers.inputs import kept_modes
from spikeformer_lt.layers.patches import patches_of
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.layers.tracing import trace_chains
from spikeformer_lt.layers.units import Unit, chains_of

__all__ = ["ModelCheck", "check_model"]

_SIZES = ("T", "num_classes", "in_channels", "image_size")


@dataclass(repr=False)
class ModelCheck:
    """What a model declares, by topic, and what is missing or wrong, one sentence each."""

    declared: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"ModelCheck({len(self.declared)} topics declared, {len(self.missing)} missing)"

    def __str__(self) -> str:
        width = max(map(len, self.declared), default=0)
        lines = [f"{topic:{width}}  {text}" for topic, text in self.declared.items()]
        return "\n".join([*lines, *(f"missing: {text}" for text in self.missing)])


def check_model(model: nn.Module) -> ModelCheck:
    """Say what a model declares of itself, and what is missing; print the result to read it.

    A model without declarations trains, and its weights are pruned by their names; declarations let
    MultiSp find the stem, exports fold units and remove dead channels, and reports name layers.
    `missing` is empty for a model that every search and export takes. One forward is run on zeros,
    in eval mode.
    """
    found = ModelCheck()
    _check_parts(model, found)
    units = {name: m for name, m in model.named_modules() if isinstance(m, Unit)}
    _check_units(model, units, found)
    _check_chains(model, units, found)
    _check_forward(model, found)
    return found


def _check_parts(model: Any, found: ModelCheck) -> None:
    for name in _SIZES:
        if getattr(model, name, None) is None:
            found.missing.append(f"attribute {name}: recipes, exports and streaming read it")
        else:
            found.declared[name] = str(getattr(model, name))
    stem = stem_of(model)
    if stem is None:
        found.missing.append(
            "a stem: MultiSp needs one module with in_channels, dim, stride, units() and "
            "set_activation(kind, residual)"
        )
    else:
        name = next(name for name, module in model.named_modules() if module is stem)
        roles = ", ".join(role for role, _ in stem.units())
        found.declared["stem"] = f"{name}: {roles}; stride {stem.stride}"
        for i, (role, unit) in enumerate(stem.units()):
            if not isinstance(unit, Unit):
                found.missing.append(f"unit {i} ({role}) of the stem is no Unit")
    if getattr(model, "blocks", None) is None:
        found.missing.append("blocks: the encoder's or residual blocks, in order")
    else:
        found.declared["blocks"] = str(len(model.blocks))
    if isinstance(getattr(model, "head", None), nn.Linear):
        found.declared["head"] = f"{model.head.in_features} -> {model.head.out_features}"
    else:
        found.missing.append("head: the last nn.Linear")
    if hasattr(model, "patch"):
        found.declared["patch selection"] = "none now" if patches_of(model) is None else "in place"


def _check_units(model: nn.Module, units: dict[str, Any], found: ModelCheck) -> None:
    firing = sum(unit.fires for unit in units.values())
    kinds = sorted({str(unit.reads) for unit in units.values()})
    found.declared["units"] = f"{len(units)}, of which {firing} fire; they read {', '.join(kinds)}"
    inside = {id(part) for unit in units.values() for part in unit.modules()}
    inside.add(id(getattr(model, "head", None)))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in inside:
            found.missing.append(f"{name} is in no unit: it is pruned, but not folded")
    for name, unit in units.items():
        try:
            unit.folded()
        except Exception as error:
            found.missing.append(f"{name}.folded() fails: {error}")


def _check_chains(model: nn.Module, units: dict[str, Any], found: ModelCheck) -> None:
    chains = chains_of(model)
    if not chains:
        found.missing.append("chains(): no dead channel is removed from an export")
        return
    found.declared["chains"] = "; ".join(" > ".join(chain.names) for chain in chains)
    traced = _traced(model)
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    synapses = linear | {name: unit.synapse for name, unit in units.items()}
    for chain in chains:
        for before, after in zip(chain.names, chain.names[1:], strict=False):
            lacking = [name for name in (before, after) if name not in synapses]
            if lacking:
                found.missing.append(f"chains(): {lacking[0]} is neither a unit nor a linear map")
                continue
            repeats = chain.repeats if after == chain.names[-1] else 1
            outputs, inputs = synapses[before].weight.shape[0], synapses[after].weight.shape[1]
            if outputs * repeats != inputs:
                found.missing.append(
                    f"chains(): {before} has {outputs} outputs, {after} reads {inputs} columns, "
                    f"with repeats={repeats}"
                )
            elif repeats == 1 and traced is not None and (before, after) not in traced:
                found.missing.append(f"chains(): {before} is read by others than {after}")


def _traced(model: Any) -> set[tuple[str, ...]] | None:
    """Pairs of units that one forward shows, the second of which alone reads the first."""
    try:
        chains = trace_chains(model, _zeros(model))
    except Exception:  # which the check of a forward tells
        return None
    return {pair for chain in chains for pair in zip(chain.names, chain.names[1:], strict=False)}


def _zeros(model: Any) -> torch.Tensor:
    size = model.image_size
    size = (size, size) if isinstance(size, int) else size
    zeros: torch.Tensor = next(model.parameters()).new_zeros(2, model.in_channels, *size)
    return zeros


@torch.no_grad()
def _check_forward(model: Any, found: ModelCheck) -> None:
    if not all(name in found.declared for name in _SIZES):
        return
    x = _zeros(model)
    wanted = [2, model.T, model.num_classes]
    try:
        with kept_modes(model):
            shape = list(model.eval()(x).shape)
    except Exception as error:
        found.missing.append(f"a forward of images {list(x.shape)} fails: {error}")
    else:
        if shape == wanted:
            found.declared["logits"] = str(shape)
        else:
            found.missing.append(f"logits are {shape}; they must be [B, T, K] = {wanted}")
