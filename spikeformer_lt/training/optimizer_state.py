"""An optimizer's state as named tensors and JSON, and back, to the bit and without pickle.

Any state of tensors, numbers, text, None and dicts, lists or tuples of these passes. Numbers keep
their type, tuples stay tuples, and a tensor stays in its place, be that the state of a parameter or
a parameter group (timm's LAMB counts its steps there).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spikeformer_lt.errors import CheckpointError, shown

__all__ = ["flatten_optimizer", "restore_optimizer"]

# State that has its parameter's shape in every optimizer that has it.
_SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def flatten_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split ``optimizer.state_dict()`` into tensors and JSON.

    Returns:
        Tensors by names such as ``state.3.exp_avg``, not copied; and a tree of JSON values that
        refers to them.

    Raises:
        CheckpointError: a value of another kind, with its place.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, {
        "state": _encode(dict(state_dict["state"]), "state", tensors),
        "param_groups": _encode(list(state_dict["param_groups"]), "param_groups", tensors),
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Load what `flatten_optimizer` gave into an optimizer over the same parameters.

    Args:
        optimizer: changed in place; its state goes to the device of each parameter.
        tensors: as `flatten_optimizer` returned; not shared with the optimizer afterwards.
        state: as it returned.

    Raises:
        CheckpointError: a tensor is missing, or the parameters are others in number or shape.
    """
    try:
        groups = _decode(state["param_groups"], tensors)
        members = _decode(state["state"], tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise CheckpointError(f"optimizer state: damaged or incomplete: {fault!r}") from None
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group["params"]) for group in groups]
    if sizes != found:
        raise CheckpointError(
            f"optimizer state: parameter groups of {found} tensors in the checkpoint, of {sizes} "
            "in the optimizer; build model and optimizer from the run's config.json"
        )
    places = [place for group in groups for place in group["params"]]
    for place, parameter in zip(places, parameters, strict=True):
        for name in _SHAPED:
            value = members.get(place, {}).get(name)
            if isinstance(value, Tensor) and value.shape != parameter.shape:
                raise CheckpointError(
                    f"optimizer state: {name} of parameter {place} has shape {list(value.shape)} "
                    f"in the checkpoint, {list(parameter.shape)} in the optimizer"
                )
    optimizer.load_state_dict({"state": members, "param_groups": groups})
    # torch casts state to the dtype of its parameter, and takes a text for a list of letters.
    for place, parameter in zip(places, parameters, strict=True):
        for name, value in members.get(place, {}).items():
            own = optimizer.state[parameter]
            if isinstance(value, str):
                own[name] = value
            elif isinstance(value, Tensor) and own[name].dtype != value.dtype:
                own[name] = value.to(own[name].device)


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[where] = value.detach()
        return {"tensor": where}
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise CheckpointError(f"optimizer state: {where} has the key {shown(key)}")
        pairs = [[key, _encode(v, f"{where}.{key}", tensors)] for key, v in value.items()]
        return {"dict": pairs}
    if type(value) in (list, tuple):
        members = [_encode(v, f"{where}.{i}", tensors) for i, v in enumerate(value)]
        return {type(value).__name__: members}
    if type(value) is float and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CheckpointError(
        f"optimizer state: {where} is {shown(value)} of type {type(value).__name__}; allowed are "
        "tensors, numbers, text, None, dicts, lists and tuples; choose another optimizer"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        # Optimizers keep what they are given; a copy leaves the checkpoint's tensors alone.
        return tensors[content].clone()
    if kind == "dict":
        return {key: _decode(member, tensors) for key, member in content}
    if kind in ("list", "tuple"):
        members = [_decode(member, tensors) for member in content]
        return members if kind == "list" else tuple(members)
    if kind == "float":
        return float(content)
    raise ValueError(f"unknown kind {kind!r}")
