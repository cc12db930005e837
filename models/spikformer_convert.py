"""Checkpoints of the published transformers, and of spikingjelly's Spikformer, renamed to ours.

The published codes have a model file for each data set: Spikformer's for CIFAR has ``q_linear``
where those of DVS and ImageNet have ``q_conv`` with kernels ``[D, D, 1]`` or ``[D, D, 1, 1]``, and
no bias on q, k and v; Spikingformer's number their convolutions as blocks or as projections, and
QKFormer's by places that differ. spikingjelly 2's Spikformer has one ``qkv_conv_bn``, no biases,
and pools before it fires.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
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

Tensors = Mapping[str, Tensor]
_KINDS = {"conv": "linear", "linear": "linear", "bn": "norm"}
_STAGE = {"conv": "conv", "bn": "norm"}
_DEAD = re.compile(
    r"(block\.\d+\.norm[12]|norm)\.(weight|bias)|pos_embed|block\.\d+\.attn\.talking_heads\.weight"
)
_STEM = re.compile(r"patch_embed\.(?:proj_(conv|bn)([123]?)|rpe_(conv|bn))\.(\w+)")
_BLOCK = re.compile(r"block\.(\d{1,4})\.(attn\.(?:q|k|v|proj)|mlp\.fc[12])_(conv|linear|bn)\.(\w+)")
_JELLY_STEM = re.compile(
    r"patch_embed\.(?:stages\.([0-3])|positional_encoding)\.conv_bn\.block\.([01])\.(\w+)"
)
_JELLY_BLOCK = re.compile(
    r"blocks\.(\d{1,4})\.(attn\.(?:qkv|proj)(?=_conv_bn)|mlp\.fc[12])(?:_conv_bn)?\.([01])\.(\w+)"
)
_ENCODER = re.compile(r"(attn|tssa|ssa|mlp)\.(q|k|v|proj|(?:mlp|fc)[12])_(conv|bn)\.(\w+)")
_TOKENIZER = re.compile(r"patch_embed\.(?:block|proj)([0-4]?)_(conv|bn)\.(\w+)")
_EMBEDDING = re.compile(r"patch_embed([1-9])\.proj(\d?|_res)_(conv|bn)\.(\w+)")


@dataclass(frozen=True)
class Published:
    """How checkpoints of one family of networks are read.

    Attributes:
        family: its name in messages.
        renamer: makes the function from a name of the file to ours, or None for an unknown one.
        telling: tensors of ours that every checkpoint has, and their number of axes.
        sizes: the keywords of the model that the renamed tensors tell.
        also: further ones, which the file's own names tell.
    """

    family: str
    renamer: Callable[[Tensors], Callable[[str], str | None]]
    telling: Mapping[str, int]
    sizes: Callable[[Tensors], dict[str, Any]]
    also: Callable[[Tensors], dict[str, Any]] = lambda tensors: {}


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
    published = hasattr(named, "published")
    rule = "a model with published checkpoints: a Spikformer, Spikingformer, QKFormer or SDT"
    check(published, "model", name, rule)
    tensors = read_foreign(source, ema)
    found = translate(tensors, named.published)
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
    scale = getattr(model.blocks[0].attn, "scale", None)
    own |= {} if scale is None else {"attn_scale": scale}
    told, untold = (", ".join(f"{n}={v}" for n, v in d.items()) for d in (found.sizes, own))
    dead = f": {', '.join(found.dropped[:5])}" if found.dropped else ""
    return (
        f"read      {len(tensors)} tensors of {source}\n"
        f"told      {told}\n"
        f"not told  {untold}: {', '.join(chosen) or 'none'} from the options\n"
        f"dropped   {len(found.dropped)} tensors that the published code never reads{dead}\n"
        f"wrote     {parameters:,} parameters to {out / 'model.safetensors'}"
    )


def translate(tensors: Tensors, published: Published | None = None) -> Translation:
    """Rename the tensors of a published network, a Spikformer by default, and tell its sizes.

    Raises:
        CheckpointError: a name that no published network of the family has, or one that all of
            them have is not there.
    """
    published = published or SPIKFORMER
    rename, renamed = published.renamer(tensors), dict[str, Tensor]()
    dropped, unknown = list[str](), list[str]()
    for name, tensor in tensors.items():
        ours = rename(name)
        if ours is None:
            (dropped if _DEAD.fullmatch(name) else unknown).append(name)
            continue
        if ours.endswith(".linear.weight"):
            tensor = _matrix(tensor)
        if ".attn.qkv." in ours:
            parts = tensor.chunk(3) if tensor.ndim else (tensor, tensor, tensor)
            for unit, part in zip("qkv", parts, strict=False):
                renamed[ours.replace(".qkv.", f".{unit}.")] = part
        else:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(f"no name of a published {published.family}: {listed(unknown)}")
    lacking = [name for name in published.telling if name not in renamed]
    if lacking:
        hint = near(lacking[0], renamed)
        raise CheckpointError(f"no published {published.family}; missing: {listed(lacking)}{hint}")
    for name, ndim in published.telling.items():
        shape = list(renamed[name].shape)
        if len(shape) != ndim:
            raise CheckpointError(f"of another shape: {name} {shape}, {ndim} axes expected")
    return Translation(published.sizes(renamed) | published.also(tensors), renamed, dropped)


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
        return f"conv_pep.{unit}.{_STAGE[kind or rpe]}.{leaf}"
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


def _rename_block(name: str, ours: str) -> str | None:
    """Name of a tensor inside of a block, whose name is `ours`."""
    if not (found := _ENCODER.fullmatch(name)):
        return None
    part, unit, kind, leaf = found.groups()
    unit = unit.replace("mlp", "fc")
    return f"{ours}.{'mlp' if part == 'mlp' else 'attn'}.{unit}.{_KINDS[kind]}.{leaf}"


def _rename_tokenizer(name: str) -> str | None:
    """Ours for a Spikingformer's: convolutions 0 to 4, then blocks."""
    if name in ("head.weight", "head.bias"):
        return name
    if stem := _TOKENIZER.fullmatch(name):
        place, kind, leaf = stem.groups()
        unit = "last" if place == "4" else f"stages.{place or 0}"
        return f"stem.{unit}.{_STAGE[kind]}.{leaf}"
    block = re.fullmatch(r"block\.(\d{1,4})\.(.+)", name)
    return block and _rename_block(block[2], f"blocks.{int(block[1])}")


def _rename_membrane(name: str) -> str | None:
    """Ours for a Spike-Driven Transformer's, whose names are those of a Spikformer."""
    ours = _rename(name)
    if ours is None or not ours.startswith("conv_pep."):
        return ours
    return ours.replace("conv_pep.", "stem.").replace(".stages.3.", ".last.")


def _stage_renamer(tensors: Tensors) -> Callable[[str], str | None]:
    """Ours for a QKFormer's; its convolutions are in the order of their numbers."""
    found = [match for name in tensors if (match := _EMBEDDING.fullmatch(name))]
    stages = max((int(match[1]) for match in found), default=0)
    numbers = {stage: sorted({m[2] for m in found if m[1] == stage and m[2] != "_res"})
               for stage in {match[1] for match in found}}  # fmt: skip

    def rename(name: str) -> str | None:
        if name in ("head.weight", "head.bias"):
            return name
        if part := _EMBEDDING.fullmatch(name):
            stage, number, kind, leaf = part.groups()
            res = number == "_res"
            unit = "shortcut" if res else f"stages.{numbers[stage].index(number)}"
            return f"stem.embeddings.{int(stage) - 1}.{unit}.{_STAGE[kind]}.{leaf}"
        if not (block := re.fullmatch(r"stage([1-9])\.(\d{1,4})\.(.+)", name)):
            return None
        stage, index = int(block[1]), int(block[2])
        ours = f"blocks.{index}" if stage == stages else f"stem.stages.{stage - 1}.{index}"
        return _rename_block(block[3], ours)

    return rename


def _matrix(tensor: Tensor) -> Tensor:
    """The matrix of a 1x1 convolution; other shapes stay, to be refused by name."""
    pointwise = tensor.ndim > 2 and all(side == 1 for side in tensor.shape[2:])
    return tensor.flatten(1) if pointwise else tensor


def _count(names: Iterable[str], before: str) -> int:
    """Different numbers that follow `before` in names."""
    return len({name[len(before) :].split(".")[0] for name in names if name.startswith(before)})


def _sizes(tensors: Tensors, first: str) -> dict[str, Any]:
    """Sizes that all families have; `first` is the first convolution's weight."""
    head = tensors["head.weight"]
    hidden = tensors["blocks.0.mlp.fc1.linear.weight"].shape[0]
    return {
        "in_channels": tensors[first].shape[1],
        "embed_dim": head.shape[1],
        "mlp_ratio": hidden / max(1, head.shape[1]),
        "num_classes": head.shape[0],
    }


def _depth(tensors: Tensors) -> dict[str, Any]:
    return {"depth": _count(tensors, "blocks.")}


def _biases(tensors: Tensors) -> dict[str, Any]:
    return {
        "linear_bias": "blocks.0.attn.proj.linear.bias" in tensors,
        "qkv_bias": "blocks.0.attn.q.linear.bias" in tensors,
    }


def _of_jelly(tensors: Tensors) -> dict[str, Any]:
    jelly = any(_JELLY_STEM.fullmatch(name) for name in tensors)
    return {"pool_before_act": True, "attn_scale": 0.125} if jelly else {}


def _stages(tensors: Tensors) -> dict[str, Any]:
    inner = _count(tensors, "stem.stages.")
    depths = [_count(tensors, f"stem.stages.{i}.") for i in range(inner)]
    convolutions = _count(tensors, "stem.embeddings.0.stages.")
    layouts = {2: "cifar", 4: "dvs", 3: "imagenet"}
    if convolutions not in layouts:
        raise CheckpointError(
            f"no published QKFormer has {convolutions} convolutions in its first embedding"
        )
    return {"depths": (*depths, _count(tensors, "blocks.")), "layout": layouts[convolutions]}


_LAST = {"blocks.0.mlp.fc1.linear.weight": 2, "head.weight": 2}
_PEP, _TOKENS = "conv_pep.stages.0.conv.weight", "stem.stages.0.conv.weight"
_EMBEDDED = "stem.embeddings.0.stages.0.conv.weight"
SPIKFORMER = Published(
    "Spikformer",
    lambda tensors: _rename,
    {_PEP: 4, "conv_pep.rpe.conv.weight": 4, **_LAST},
    lambda found: _sizes(found, _PEP) | _depth(found) | _biases(found),
    _of_jelly,
)
SPIKINGFORMER = Published(
    "Spikingformer",
    lambda tensors: _rename_tokenizer,
    {_TOKENS: 4, "stem.last.conv.weight": 4, **_LAST},
    lambda found: _sizes(found, _TOKENS) | _depth(found),
)
QKFORMER = Published(
    "QKFormer",
    _stage_renamer,
    {_EMBEDDED: 4, "stem.embeddings.0.shortcut.conv.weight": 4, **_LAST},
    lambda found: _sizes(found, _EMBEDDED) | _stages(found),
)
SPIKE_DRIVEN = Published(
    "Spike-Driven Transformer",
    lambda tensors: _rename_membrane,
    {_TOKENS: 4, "stem.rpe.conv.weight": 4, **_LAST},
    lambda found: _sizes(found, _TOKENS) | _depth(found),
)
