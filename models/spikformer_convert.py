"""Checkpoints of the published Spikformer code, and of spikingjelly's, renamed to ours.

The published code has a model file for each data set: the CIFAR one has ``q_linear`` where those of
DVS and ImageNet have ``q_conv`` with kernels ``[D, D, 1]`` or ``[D, D, 1, 1]``, and no bias on q, k
and v. spikingjelly 2's Spikformer has one ``qkv_conv_bn``, no biases, and pools before it fires.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.bundle import refuse_foreign, staged
from spikeformer_lt.config import check
from spikeformer_lt.disk import sha256_of
from spikeformer_lt.errors import CheckpointError, near
from spikeformer_lt.foreign import listed, read_foreign
from spikeformer_lt.mask import Mask
from spikeformer_lt.registry import create_model
from spikeformer_lt.ticket import TICKET

_KINDS = {"conv": "linear", "linear": "linear", "bn": "norm"}
_DEAD = re.compile(r"(block\.\d+\.norm[12]|norm)\.(weight|bias)|pos_embed")
_STEM = re.compile(r"patch_embed\.(?:proj_(conv|bn)([123]?)|rpe_(conv|bn))\.(\w+)")
_BLOCK = re.compile(r"block\.(\d{1,4})\.(attn\.(?:q|k|v|proj)|mlp\.fc[12])_(conv|linear|bn)\.(\w+)")
_JELLY_STEM = re.compile(
    r"patch_embed\.(?:stages\.([0-3])|positional_encoding)\.conv_bn\.block\.([01])\.(\w+)"
)
_JELLY_BLOCK = re.compile(
    r"blocks\.(\d{1,4})\.(attn\.(?:qkv|proj)(?=_conv_bn)|mlp\.fc[12])(?:_conv_bn)?\.([01])\.(\w+)"
)


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
    source: str | Path,
    name: str,
    out: str | Path,
    ema: bool = False,
    overwrite: bool = False,
    **chosen: Any,
) -> str:
    """Write a published checkpoint as a ticket that removes nothing, and its ``config.json``.

    Args:
        source: the checkpoint; see `read_foreign`.
        name: the registered model that it is of.
        out: new or empty folder, or with `overwrite` what an earlier call wrote.
        ema: take the averaged weights.
        overwrite: replace that.
        chosen: model arguments that no tensor tells, where they are not the model's own.

    Returns:
        Lines that say what was read, told and written.

    Raises:
        TicketError: something else in `out`.
        ConfigError: a model without published checkpoints, or a wrong argument.
        CheckpointError: the file is refused or does not fit; nothing is written.
    """
    out, kind = Path(out), replace(TICKET, files=(*TICKET.files, "config.json"))
    refuse_foreign(out, kind, overwrite)
    with torch.device("meta"):
        named: Any = create_model(name)
    published = hasattr(named, "translate")
    check(published, "model", name, "a model with published checkpoints, a Spikformer")
    tensors = read_foreign(source, ema)
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
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    mask = Mask({f"{n}.weight": torch.ones(m.weight.shape, dtype=torch.bool) for n, m in layers})
    with staged(out, kind, overwrite) as stage:
        stage.write_tensors("mask.safetensors", mask, mask.facts())
        stage.write_tensors("model.safetensors", model.state_dict(), {"kind": "model", **about})
        stage.write("config.json", (json.dumps(about, indent=2) + "\n").encode())
        stage.seal({"sparsity": 0.0, "provenance": {**about, "search": "none", "trained": True}})
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
        if ours is None:
            (dropped if _DEAD.fullmatch(name) else unknown).append(name)
            continue
        if ours.startswith("blocks.") and ours.endswith(".linear.weight"):
            tensor = _matrix(tensor)
        if ".attn.qkv." in ours:
            parts = tensor.chunk(3) if tensor.ndim else (tensor, tensor, tensor)
            for unit, part in zip("qkv", parts, strict=False):
                renamed[ours.replace(".qkv.", f".{unit}.")] = part
        else:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(f"no name of a published Spikformer: {listed(unknown)}")
    jelly = any(_JELLY_STEM.fullmatch(name) for name in tensors)
    of_jelly = {"pool_before_act": True, "attn_scale": 0.125} if jelly else {}
    return Translation(_sizes(renamed) | of_jelly, renamed, dropped)


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
    said = [f"{kind}: {listed(names)}" for kind, names in faults.items() if names]
    if said:
        raise CheckpointError(f"the tensors do not fit the model; {'; '.join(said)}")
    model.load_state_dict(tensors)


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
    if jelly := _JELLY_STEM.fullmatch(name):
        stage, place, leaf = jelly.groups()
        unit = "rpe" if stage is None else f"stages.{stage}"
        return f"conv_pep.{unit}.{('conv', 'norm')[int(place)]}.{leaf}"
    if jelly := _JELLY_BLOCK.fullmatch(name):
        index, unit, place, leaf = jelly.groups()
        return f"blocks.{int(index)}.{unit}.{('linear', 'norm')[int(place)]}.{leaf}"
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
        raise CheckpointError(f"no published Spikformer; missing: {listed(lacking)}{hint}")
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
