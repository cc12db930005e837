"""Checkpoints of the published Spikformer code, read without running them and renamed to ours.

That code has a model file for each data set: the CIFAR one has ``q_linear`` where those of DVS and
ImageNet have ``q_conv`` with kernels ``[D, D, 1]`` or ``[D, D, 1, 1]``, and no bias on q, k and v.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.config import check
from spikeformer_lt.disk import sha256_of, write_atomic, write_tensors
from spikeformer_lt.errors import CheckpointError, near, shown
from spikeformer_lt.registry import create_model

WRAPPERS = ("state_dict", "state_dict_ema")
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")  # DistributedDataParallel, torch.compile
_KINDS = {"conv": "linear", "linear": "linear", "bn": "norm"}
_DEAD = re.compile(r"(block\.\d+\.norm[12]|norm)\.(weight|bias)|pos_embed")
_STEM = re.compile(r"patch_embed\.(?:proj_(conv|bn)([123]?)|rpe_(conv|bn))\.(\w+)")
_BLOCK = re.compile(r"block\.(\d{1,4})\.(attn\.(?:q|k|v|proj)|mlp\.fc[12])_(conv|linear|bn)\.(\w+)")


@dataclass(frozen=True)
class Translation:
    """A published checkpoint in our terms.

    Attributes:
        sizes: the keywords of the model that the tensors' shapes tell.
        tensors: state_dict under our names.
        dropped: tensors of the file that its own forward never reads.
    """

    sizes: dict[str, Any]
    tensors: dict[str, Tensor]
    dropped: list[str]


def convert(
    source: str | Path, name: str, out: str | Path, ema: bool = False, **chosen: Any
) -> str:
    """Write a published checkpoint as ``model.safetensors`` and ``config.json`` of ours.

    Args:
        source: the checkpoint; see `read_original`.
        name: the registered model that it is of.
        out: folder, which must hold neither file.
        ema: take the averaged weights.
        chosen: model arguments that no tensor tells, where they are not the model's own.

    Returns:
        Lines that say what was read, told and written.

    Raises:
        ConfigError: files in `out`, a model without published checkpoints, or a wrong argument.
        CheckpointError: the file is refused or does not fit; nothing is written.
    """
    out = Path(out)
    taken = [n for n in ("model.safetensors", "config.json") if (out / n).exists()]
    check(not taken, "out", str(out), f"a new folder; it already holds {', '.join(taken)}")
    with torch.device("meta"):
        named: Any = create_model(name)
    published = hasattr(named, "translate")
    check(published, "model", name, "a model with published checkpoints, a Spikformer")
    tensors = read_original(source, ema)
    found = named.translate(tensors)
    heads, dim = chosen.get("num_heads", named.num_heads), found.sizes["embed_dim"]
    rule = f"a divisor of the file's embed_dim={dim}; no tensor tells it, so give --num-heads"
    check(heads > 0 and dim % heads == 0, "num_heads", heads, rule)
    args = {**found.sizes, **chosen}
    model: Any = create_model(name, **args)
    load_translated(model, found.tensors)
    about = {
        "model": {"name": name, "args": args},
        "source": {"file": Path(source).name, "sha256": sha256_of(source)},
    }
    write_tensors(out / "model.safetensors", model.state_dict(), {"kind": "model", **about})
    write_atomic(out / "config.json", (json.dumps(about, indent=2) + "\n").encode())
    parameters = sum(p.numel() for p in model.parameters())
    own = {"T": model.T, "num_heads": model.num_heads, "image_size": model.image_size}
    own["attn_scale"] = model.blocks[0].attn.scale
    told, untold = (", ".join(f"{n}={v}" for n, v in d.items()) for d in (found.sizes, own))
    dead = f": {', '.join(found.dropped[:5])}" if found.dropped else ""
    return (
        f"read      {len(tensors)} tensors of {source}\n"
        f"told      {told}\n"
        f"not told  {untold}: {', '.join(chosen) or 'none'} from the options\n"
        f"dropped   {len(found.dropped)} tensors that the published code never reads{dead}\n"
        f"wrote     {parameters:,} parameters to {out / 'model.safetensors'}"
    )


def read_original(path: str | Path, ema: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a ``.pth``, ``.pth.tar`` or ``.safetensors`` file under their own names.

    A pickle is read by torch's weights-only reader, which builds tensors and plain containers
    and calls nothing that the file names.

    Args:
        path: the file; a training checkpoint with the weights under ``state_dict`` will do.
        ema: take the averaged weights, ``state_dict_ema``, of a training checkpoint.

    Raises:
        CheckpointError: the file holds code, something else than weights, or numbers that are not
            finite.
    """
    where = shown(str(path), 300)
    content: Any = _load(Path(path), where)
    if isinstance(content, Mapping):
        found = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        if ema and WRAPPERS[1] not in found:
            raise CheckpointError(f"{where}: no averaged weights ({WRAPPERS[1]}) in it; drop --ema")
        if found:
            content = content[WRAPPERS[1] if ema else found[0]]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{where}: no table of tensors but {type(content).__name__}")
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise CheckpointError(
                f"{where}: {shown(name)} is no dense tensor but {type(value).__name__}; "
                f"allowed: a state_dict, or a dict with one as {' or '.join(WRAPPERS)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{where}: tensor {shown(name)} has NaN or infinite values")
        plain = _PREFIX.sub("", str(name))
        if plain in tensors:
            raise CheckpointError(f"{where}: {shown(plain)} is there twice, with another prefix")
        tensors[plain] = value.detach()
    return tensors


def translate(tensors: Mapping[str, Tensor]) -> Translation:
    """Rename the tensors of a published Spikformer and tell its sizes from them.

    Raises:
        CheckpointError: a name that no published Spikformer has, or one that all of them have is
            not there.
    """
    renamed: dict[str, Tensor] = {}
    dropped, unknown = list[str](), list[str]()
    for name, tensor in tensors.items():
        ours = _rename(name)
        if ours is not None:
            flat = ours.startswith("blocks.") and ours.endswith(".linear.weight")
            renamed[ours] = _matrix(tensor) if flat else tensor
        else:
            (dropped if _DEAD.fullmatch(name) else unknown).append(name)
    if unknown:
        raise CheckpointError(f"no name of a published Spikformer: {_first(unknown)}")
    return Translation(_sizes(renamed), renamed, dropped)


def load_translated(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put translated tensors into a model; every one must fit and none may be left over.

    Raises:
        CheckpointError: names the first five tensors that are missing, extra or of another shape.
    """
    wanted = model.state_dict()
    faults = {
        "missing": [name for name in wanted if name not in tensors],
        "extra": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} for {list(value.shape)}"
            for name, value in wanted.items()
            if name in tensors and tensors[name].shape != value.shape
        ],
    }
    said = [f"{kind}: {_first(names)}" for kind, names in faults.items() if names]
    if said:
        raise CheckpointError(f"the tensors do not fit the model; {'; '.join(said)}")
    model.load_state_dict(tensors)


def _load(path: Path, where: str) -> object:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as fault:
        raise CheckpointError(f"cannot read {where}: {fault.strerror or fault}") from None
    try:
        if head[8:9] == b"{":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        # Training scripts store their parsed options, an object without behaviour.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:
        named = re.search(r"GLOBAL ([\w.]+)", str(fault))
        what = f"it asks for {named[1]}, which is code" if named else "it is damaged, or no weights"
        raise CheckpointError(
            f"{where}: refused, and nothing in it was run: {what}; give a file of tensors only"
        ) from fault


def _rename(name: str) -> str | None:
    if name in ("head.weight", "head.bias"):
        return name
    if stem := _STEM.fullmatch(name):
        kind, stage, rpe, leaf = stem.groups()
        unit = "rpe" if rpe else f"stages.{stage or 0}"
        return f"conv_pep.{unit}.{'conv' if (kind or rpe) == 'conv' else 'norm'}.{leaf}"
    if block := _BLOCK.fullmatch(name):
        index, unit, kind, leaf = block.groups()
        return f"blocks.{int(index)}.{unit}.{_KINDS[kind]}.{leaf}"
    return None


def _matrix(tensor: Tensor) -> Tensor:
    """The matrix of a 1x1 convolution; other shapes stay, to be refused by name."""
    pointwise = tensor.ndim > 2 and all(side == 1 for side in tensor.shape[2:])
    return tensor.flatten(1) if pointwise else tensor


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    telling = {
        "conv_pep.stages.0.conv.weight": 4,
        "conv_pep.rpe.conv.weight": 4,
        "blocks.0.mlp.fc1.linear.weight": 2,
        "head.weight": 2,
    }
    lacking = [name for name in telling if name not in tensors]
    if lacking:
        hint = near(lacking[0], tensors)
        raise CheckpointError(f"no published Spikformer; missing: {_first(lacking)}{hint}")
    shapes = {name: list(tensors[name].shape) for name in telling}
    for name, ndim in telling.items():
        if len(shapes[name]) != ndim:
            raise CheckpointError(f"of another shape: {name} {shapes[name]}, {ndim} axes expected")
    stem, rpe, hidden, head = shapes.values()
    return {
        "in_channels": stem[1],
        "embed_dim": rpe[0],
        "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
        "mlp_ratio": hidden[0] / max(1, rpe[0]),
        "num_classes": head[0],
        "linear_bias": "blocks.0.attn.proj.linear.bias" in tensors,
        "qkv_bias": "blocks.0.attn.q.linear.bias" in tensors,
    }


def _first(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(shown(name, 120) for name in listed[:limit]) + more
