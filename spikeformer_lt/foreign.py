"""Checkpoints that other code wrote, read without running them.

A training script wraps its weights: in a dict beside epoch and optimizer, under a prefix of
DistributedDataParallel, torch.compile or Lightning, and scalars lie beside the tensors.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.errors import CheckpointError, name_of, shown

WEIGHTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights")
"""Entries that hold the weights of a training checkpoint, in the order in which they are taken."""
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""The same for averaged weights."""
_PREFIX = re.compile(r"^(?:(?:module|model|net|network)\.)+")
_WRAPPED = re.compile(  # torch.compile, FSDP, recomputation, Fabric, Opacus: of any module inside
    r"(?<![^.])_(?:orig_mod|fsdp_wrapped_module|checkpoint_wrapped_module|forward_module|module)\."
)
_TRAINING = re.compile(r"optim|sched|scaler|callbacks|loops")  # entries about the training
_PROFILER = re.compile(r"(?:.*\.)?total_(?:ops|params)")  # thop's counters
_SCALARS = (int, float, complex, str, bytes, bool, type(None), np.generic)


def read_foreign(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth``, ``.pth.tar``, ``.ckpt`` or ``.safetensors`` file.

    A pickle is read by torch's weights-only reader, which builds tensors and plain containers
    and calls nothing that the file names. Names lose the prefixes of wrappers; scalars beside the
    tensors are left out.

    Args:
        path: the file: weights, or a training checkpoint that has them in an entry of its own.
        ema: take the averaged weights of a training checkpoint.

    Raises:
        CheckpointError: the file holds code, something else than weights, several sets of them, or
            numbers that are not finite.
    """
    where = name_of(path)
    table = _table(_load(Path(path), where), where, ema)
    tensors: dict[str, Tensor] = {}
    for name, value in table.items():
        if isinstance(value, _SCALARS) or _PROFILER.fullmatch(str(name)):
            continue
        dense = isinstance(value, Tensor) and value.layout is torch.strided
        if not dense or value.is_quantized or value.is_meta:
            raise CheckpointError(
                f"{where}: {shown(name)} is no dense tensor but {type(value).__name__}; allowed: "
                f"a state_dict, or a dict with one, such as {', '.join(WEIGHTS[:4])}"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{where}: tensor {shown(name)} has NaN or infinite values")
        plain = _PREFIX.sub("", _WRAPPED.sub("", str(name)))
        if plain in tensors:
            raise CheckpointError(f"{where}: {shown(plain)} is there twice, with another prefix")
        tensors[plain] = value.detach()
    return _without_common_prefix(tensors)


def _table(content: object, where: str, ema: bool) -> Mapping[Any, Any]:
    """The table of weights in the content of a file."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: no table of tensors but {type(content).__name__}")
    found = dict(_tables(content))
    averaged = [name for name in found if name.rpartition("/")[2] in AVERAGED]
    plain = [name for name in found if name not in averaged]
    if ema and not averaged:
        raise CheckpointError(f"{where}: no averaged weights ({AVERAGED[0]}) in it; drop --ema")
    names = averaged if ema else plain or averaged
    known = [name for word in WEIGHTS for name in names if name.rpartition("/")[2] == word]
    chosen = (known or names)[:1] if known or len(names) == 1 or ema else names
    if len(chosen) > 1:
        raise CheckpointError(
            f"{where}: several tables of tensors ({listed(chosen)}); give a file of the weights "
            "alone"
        )
    if not chosen and not any(isinstance(value, Tensor) for value in content.values()):
        odd = next((name for name, v in content.items() if not isinstance(v, _SCALARS)), None)
        said = f"; {shown(odd)} is no dense tensor" if odd is not None else ""
        raise CheckpointError(f"{where}: no table of tensors but {type(content).__name__}{said}")
    return found[chosen[0]] if chosen else content


def _tables(content: Mapping[Any, Any], at: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Tables of tensors inside a mapping, by their place."""
    for name, value in content.items():
        if not isinstance(value, Mapping) or _TRAINING.search(str(name)):
            continue
        place = f"{at}/{name}" if at else str(name)
        if any(isinstance(one, Tensor) for one in value.values()):
            yield place, value
        elif depth > 1:
            yield from _tables(value, place, depth - 1)


def _without_common_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the one module that all of them are in, as a wrapper of any name adds."""
    firsts = {name.partition(".")[0] for name in tensors}
    shorter = {name.partition(".")[2]: value for name, value in tensors.items()}
    if len(firsts) > 1 or not any("." in name for name in shorter):
        return tensors
    return _without_common_prefix(shorter)


def _load(path: Path, where: str) -> object:
    try:
        if not path.is_file() and path.exists():
            kind = "a directory" if path.is_dir() else "no regular file"
            raise CheckpointError(f"cannot read {where}: it is {kind}; give the file itself")
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as fault:
        raise CheckpointError(f"cannot read {where}: {fault.strerror or fault}") from None
    try:
        if head[8:9] == b"{":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:
        named = re.search(r"GLOBAL ([\w.]+)", str(fault))
        what = f"it asks for {named[1]}, which is code" if named else "it is damaged, or no weights"
        raise CheckpointError(
            f"{where}: refused, and nothing in it was run: {what}; give a file of tensors only"
        ) from fault


def _harmless() -> list[Any]:
    """What training scripts store beside weights: options, paths, numbers and arrays of NumPy."""
    scalar = np.float64(0).__reduce__()[0]  # makes a number of a dtype and its bytes
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"}
    named = [(f"numpy.{core}.multiarray.{name}", make) for core in ("core", "_core")
             for name, make in (("scalar", scalar), ("_reconstruct", _no_values))]  # fmt: skip
    named += [(f"pathlib{part}.{kind}Path", PurePosixPath) for part in ("", "._local")
              for kind in ("Posix", "PurePosix", "Windows", "PureWindows")]  # fmt: skip
    return [argparse.Namespace, np.dtype, np.ndarray, *kinds, *((m, name) for name, m in named)]


def _no_values(*_: object) -> NDArray[np.uint8]:
    """An array whose values follow in the file; its size is that of the values."""
    return np.empty(0, np.uint8)


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(shown(name, 120) for name in every[:limit]) + more
