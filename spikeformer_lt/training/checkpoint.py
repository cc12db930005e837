"""Checkpoints of a run: verified when loaded, never lost to a kill, equal to the bit.

A checkpoint is a bundle of tensor files and a state. The folder of a run's checkpoints holds
``ckpt-00000012/`` and its predecessors, and ``LATEST``, which names the newest; old ones go only
after the new one is published.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.bundle import BundleKind, discard, open_bundle, staged
from spikeformer_lt.config import changes, check
from spikeformer_lt.disk import dump_json, free_bytes, parse_json, safe_name, write_atomic
from spikeformer_lt.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    listed,
    name_of,
    near,
    shown,
)
from spikeformer_lt.ticket import fit_buffers, fitted
from spikeformer_lt.training.monitor import count_nonfinite

CHECKPOINT = BundleKind(
    "checkpoint", "spikeformer_lt.checkpoint", 1, "manifest.json", CheckpointError,
    sizes=True, indent=1,
)  # fmt: skip
STATE, LATEST = "state.json", "LATEST"
MADE_BY = "made_by"  # key of the state: the facts that made a phase
NUMBER_LIMIT = 10**18
_NAME = re.compile(r"ckpt-(\d{8,18})(?:\.(\d{1,9}))?")
_STALE = re.compile(rf"\.?(?:ckpt-.+|{LATEST})\.tmp-[0-9a-f]+")
# State that has its parameter's shape, or one value, in every optimizer that has it.
_SHAPED = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")

Content = Mapping[str, Mapping[str, Tensor]]
"""Tensors by group and name."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a folder held: its number, place, tensors by group and name, and state."""

    number: int
    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write_checkpoint(folder: Path, number: int, tensors: Content, state: Mapping[str, Any]) -> None:
    """Publish a new folder of tensor files, ``state.json`` and the manifest; raises as `save`."""
    for group, members in tensors.items():
        if safe_name(group) != group or group != group.lower():
            raise CheckpointError(
                f"group {shown(group)} cannot be a file name; use lower-case letters and digits"
            )
        for name, value in members.items():
            if count := count_nonfinite(value):
                raise NonFiniteError(
                    f"not saved: {group} tensor {shown(name)} has {count} non-finite values of "
                    f"{value.numel()}; the last good checkpoint is untouched; begin a new run, "
                    "e.g. with a lower learning rate"
                )
    text = dump_json(dict(state), "state", CheckpointError)
    with staged(folder, CHECKPOINT) as stage:
        for group, members in tensors.items():
            own = {"group": group, "number": number}
            stage.write_tensors(f"{group}.safetensors", members, own)
        stage.write(STATE, text.encode())
        stage.seal({"number": number})


def read_checkpoint(folder: Path, number: int) -> Checkpoint:
    """Read and verify a checkpoint's folder; a CheckpointError names the file, tensor and fault."""
    bundle, where = open_bundle(folder, CHECKPOINT), name_of(folder)
    if bundle.about.get("number") != number:
        found = shown(bundle.about.get("number"))
        raise CheckpointError(f"{where}: is of checkpoint {found}, not {number}")
    text = bundle.read(STATE).decode("utf-8")
    state = parse_json(text, name_of(folder / STATE), CheckpointError)
    tensors = {}
    for group in [Path(name).stem for name in bundle.files if name.endswith(".safetensors")]:
        tensors[group], own = bundle.tensors(f"{group}.safetensors")
        if own != {"group": group, "number": number}:
            raise CheckpointError(f"{where}: {group} belongs to another checkpoint: {shown(own)}")
    return Checkpoint(number, folder, tensors, state)


def refuse_another(found: Checkpoint, facts: Mapping[str, Any], what: str) -> None:
    """Refuse a checkpoint that something else than `facts` made, by a ConfigError with each fact.

    `what` it is of, for messages. One that an older version wrote does not say; a warning does.
    """
    made_by = found.state.get(MADE_BY)
    if not isinstance(made_by, dict):
        log.warning("%s does not say what made it: %s is taken as it is", found.path, what)
    elif changed := changes(made_by, {name: facts.get(name, "absent") for name in made_by}):
        raise ConfigError(
            f"{what} was made otherwise: {'; '.join(changed)}; take the old values, or choose "
            "another --run.out (--model.init-from starts from the network of a run); --run.extend "
            "trains a finished run on"
        )


class CheckpointStore:
    """The checkpoints in one folder, which the first save makes, written by one process.

    The newest `keep` stay, 1 or more: 2 leave one to fall back on. ``refused`` says that what
    `begin` has begun is known to have failed.
    """

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        check(keep >= 1, "keep", keep, "an integer >= 1; 2 leave one to fall back on")
        self.refused = False
        self.folder, self.keep = Path(folder), keep
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[Path] | None = None

    def begin(self, tensors: Content, state: Mapping[str, Any]) -> None:
        """Save copies as the next checkpoint, in a thread, when the one before is published.

        What `save` refuses is raised by the next call, or by `wait`.
        """
        self.wait()
        try:
            copies = {
                group: {name: value.detach().to("cpu", copy=True) for name, value in own.items()}
                for group, own in tensors.items()
            }
            given = self.next_number(), copies, copy.deepcopy(dict(state))
        except (MemoryError, RuntimeError) as fault:
            raise CheckpointError(f"cannot copy what is to be saved: {fault}") from fault
        self._writing = self._writer.submit(self._saved, *given)

    def _saved(self, *given: Any) -> Path:
        try:
            return self.save(*given)
        except BaseException:
            self.refused = True
            raise

    def wait(self) -> None:
        """Wait until what `begin` has begun is published; raises as `save`."""
        if self._writing is None:
            return
        wait([self._writing])  # an interrupt here leaves it to the next call
        written, self._writing = self._writing, None
        self.refused = False
        try:
            written.result()
        except (MemoryError, RuntimeError, OSError) as fault:
            raise CheckpointError(f"cannot save in {name_of(self.folder)}: {fault}") from fault

    def save(self, number: int, tensors: Content, state: Mapping[str, Any]) -> Path:
        """Publish a checkpoint, then delete those that `keep` no longer covers; return its folder.

        Args:
            number: its place in the run, above that of all earlier ones.
            tensors: group -> name -> tensor; a group becomes one file.
            state: JSON values with text keys; tuples come back as lists.

        Raises:
            NonFiniteError: a NaN or infinity in a tensor.
            CheckpointError: a value that cannot be stored, or a disk that refuses, with path, bytes
                needed and bytes free. Earlier checkpoints are untouched in every case.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            first = self.next_number()
            check(first <= number < NUMBER_LIMIT, "number", number, f"an integer from {first} on")
            target = self.folder / f"ckpt-{number:08d}"
            write_checkpoint(target, number, tensors, state)
            write_atomic(self.folder / LATEST, f"{target.name}\n".encode())
        except (OSError, CheckpointError) as fault:
            cause = fault if isinstance(fault, OSError) else fault.__cause__
            if not isinstance(cause, OSError):
                raise
            needed = sum(value.nbytes for group in tensors.values() for value in group.values())
            free = free_bytes(self.folder)
            raise CheckpointError(
                f"cannot save checkpoint {number} in {name_of(self.folder)}: "
                f"{cause.strerror or cause}; {needed} bytes needed, {free} free; earlier "
                "checkpoints are untouched; make room or repair the folder, then resume"
            ) from fault
        for _, _, old in self._published()[: -self.keep]:
            try:
                discard(old)
            except OSError as fault:
                log.warning("cannot delete the old checkpoint %s: %s", old, fault)
        return target

    def load(self) -> Checkpoint | None:
        """Read and verify the latest checkpoint, or else, with a warning, the previous good one.

        Its tensors are on the CPU; None if nothing was ever published. A CheckpointError with the
        fault of each says that checkpoints are there and none is good.
        """
        self.wait()
        published, faults = self._published(), list[str]()
        with contextlib.suppress(OSError):
            latest = (self.folder / LATEST).read_bytes()[:100].decode("ascii", "replace").strip()
            if not any(path.name == latest for _, _, path in published):
                faults.append(f"LATEST names {shown(latest)}, which is not there")
        for number, _, path in reversed(published):
            try:
                found = read_checkpoint(path, number)
            except CheckpointError as fault:
                faults.append(str(fault))
                continue
            if faults:
                log.warning("skipped: %s; going on from %s", "; ".join(faults), found.path)
            return found
        if faults:
            raise CheckpointError(
                f"none of {len(published)} checkpoints in {name_of(self.folder)} is good: "
                f"{'; '.join(faults)}; restore one from a copy, or start anew in another folder"
            )
        return None

    def next_number(self) -> int:
        """Return the least number that `save` takes: one above the newest, 0 if there is none."""
        return max((number for number, _, _ in self._published()), default=-1) + 1

    def _published(self) -> list[tuple[int, int, Path]]:
        """Number, revision (of older versions) and folder of each checkpoint, oldest first."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as fault:
            raise CheckpointError(
                f"cannot read {name_of(self.folder)}: {fault.strerror or fault}"
            ) from None
        matches = [match for match in map(_NAME.fullmatch, names) if match]
        return sorted((int(m[1]), int(m[2] or 0), self.folder / m[0]) for m in matches)

    def _sweep(self) -> None:
        for name in os.listdir(self.folder):
            path = self.folder / name
            if _STALE.fullmatch(name) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif _STALE.fullmatch(name):
                path.unlink(missing_ok=True)


def misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors of a checkpoint whose name, shape or dtype is not the model's, in words."""
    odd = []
    for name in [*own, *(name for name in found if name not in own)]:
        there, here = (
            f"{str(of[name].dtype)[6:]} {list(of[name].shape)}" if name in of else "nothing"
            for of in (found, own)
        )
        if there != here:
            hint = "" if name in found else near(name, found.keys() - own.keys())
            odd.append(f"{shown(name)}: {there} in the checkpoint, {here} in the model{hint}")
    return odd


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors, in place, into a model; its parameters stay the same objects.

    Buffers take the shapes that they have there. It raises as `refuse_misfits`, and leaves the
    model untouched then.
    """
    refuse_misfits(model, tensors, source)
    fit_buffers(model, tensors)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def refuse_misfits(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors, name -> tensor, that are not those of a model's state_dict, on any device.

    Raises:
        CheckpointError: names, shapes or dtypes differ: the first five. It names the `source`.
    """
    if odd := misfits(fitted(model, tensors), tensors):
        raise CheckpointError(
            f"{source} does not fit the model: {listed(odd, between='; ')}; build the model from "
            "the config.json beside the checkpoint"
        )


def flatten_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split ``optimizer.state_dict()`` into tensors and JSON, to be restored to the bit.

    Tensors have names such as ``state.3.exp_avg`` and are not copied; the JSON tree names them. A
    CheckpointError refuses a value that is no tensor, number, text, None, dict, list or tuple.
    """
    tensors: dict[str, Tensor] = {}
    parts = {"state": dict(state_dict["state"]), "param_groups": list(state_dict["param_groups"])}
    return tensors, {name: _encode(part, name, tensors) for name, part in parts.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Load what `flatten_optimizer` gave into an optimizer over the same parameters, in place.

    A CheckpointError says that a tensor is missing, or the parameters differ in number or shape.
    """
    try:
        groups, members = (_decode(state[part], tensors) for part in ("param_groups", "state"))
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
            if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
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
        return {"list": list, "tuple": tuple}[kind](_decode(m, tensors) for m in content)
    if kind == "float":
        return float(content)
    raise ValueError(f"unknown kind {kind!r}")
