"""Checkpoints of the published transformers, and of spikingjelly's Spikformer, renamed to ours.

The published codes have a model file for each data set: Spikformer's for CIFAR has ``q_linear``
where those of DVS and ImageNet have ``q_conv`` with kernels ``[D, D, 1]`` or ``[D, D, 1, 1]``, and
no bias on q, k and v; Spikingformer's number their convolutions as blocks or as projections,
QKFormer's by places that differ; BESTformer's, and a distilled Meta-SpikeFormer's, has two heads,
and classifies by their mean. spikingjelly 2's Spikformer has
one ``qkv_conv_bn``, no biases, and pools before it fires.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.adapted import read_foreign
from spikeformer_lt.bundle import refuse_foreign, staged
from spikeformer_lt.config import check
from spikeformer_lt.disk import sha256_of
from spikeformer_lt.errors import CheckpointError, listed, near, shown
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
_MAX_EMBEDDING = re.compile(
    r"patch_embed([1-9])\.(?:(proj)|((?:max_)?embed[1-4])\.embed)_(conv|bn)\.(\w+)"
)
_MIXER = re.compile(r"stage([1-9])\.(\d{1,4})\.mixer\.conv5?(_bn)?\.(\w+)")
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
        value: our value of a tensor, by our name.
        joined: our tensors that come of several of the file's, in place of these.
        md5: what the published files are, by their md5, where it is known.
    """

    family: str
    renamer: Callable[[Tensors], Callable[[str], str | None]]
    telling: Mapping[str, int]
    sizes: Callable[[Tensors], dict[str, Any]]
    also: Callable[[Tensors], dict[str, Any]] = lambda tensors: {}
    value: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    joined: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors
    md5: Mapping[str, str] = field(default_factory=dict)


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
    rule = "one of a family with published checkpoints, such as qkformer_cifar: see docs/models.md"
    check(published, "model", name, rule)
    tensors = read_foreign(source, ema)
    found = translate(tensors, named.published)
    args = {**found.sizes, **chosen}
    heads, dim = args.get("num_heads", named.num_heads), args["embed_dim"]
    rule = f"a divisor of the file's embed_dim={dim}; no tensor tells it, so give --num-heads"
    check(heads > 0 and dim % heads == 0, "num_heads", heads, rule)
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
    own = {n: v for n, v in own.items() if n not in found.sizes}
    told, untold = (", ".join(f"{n}={v}" for n, v in d.items()) for d in (found.sizes, own))
    dead = f": {', '.join(found.dropped[:5])}" if found.dropped else ""
    known = ""
    if named.published.md5:
        with Path(source).open("rb") as file:
            own_md5 = hashlib.file_digest(file, "md5").hexdigest()
        which = named.published.md5.get(own_md5, "of none of the published files that are known")
        known = f"md5       {own_md5}, {which}\n"
    return (
        f"read      {len(tensors)} tensors of {source}\n{known}"
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
        tensor = published.value(ours, tensor)
        if ".attn.qkv." in ours:
            parts = tensor.chunk(3) if tensor.ndim else (tensor, tensor, tensor)
            for unit, part in zip("qkv", parts, strict=False):
                renamed[ours.replace(".qkv.", f".{unit}.")] = part
        else:
            renamed[ours] = tensor
    if unknown:
        raise CheckpointError(
            f"no name of a published {published.family}: {listed(map(shown, unknown))}"
        )
    renamed = published.joined(renamed)
    lacking = [name for name in published.telling if name not in renamed]
    if lacking:
        hint = near(lacking[0], renamed)
        raise CheckpointError(
            f"no published {published.family}; missing: {listed(map(shown, lacking))}{hint}"
        )
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
    said = [f"{kind}: {listed(map(shown, names))}" for kind, names in faults.items() if names]
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


def _rename_two_heads(name: str) -> str | None:
    """Ours for a BESTformer's, which is named as a Spikingformer but for these."""
    if found := re.fullmatch(r"block\.(\d{1,4})\.attn\.lambda_attn", name):
        return f"blocks.{int(found[1])}.attn.gains"
    return name if name in ("head2.weight", "head2.bias") else _rename_tokenizer(name)


def _heads(tensors: dict[str, Tensor], other: str, family: str) -> list[Tensor]:
    """Take the weights and biases of the file's two heads out of `tensors`."""
    names = [f"{head}.{leaf}" for leaf in ("weight", "bias") for head in ("head", other)]
    given = [tensors.pop(name, None) for name in names]
    shapes = [None if value is None else list(value.shape) for value in given]
    if None in shapes or shapes[::2] != shapes[1::2]:
        sizes = ", ".join(f"{n} {s}" for n, s in zip(names, shapes, strict=True))
        raise CheckpointError(f"a published {family} has two heads of one size; found {sizes}")
    return [value for value in given if value is not None]


def _mean_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One head of both streams, whose logits are the mean of the file's two heads."""
    rest = dict(tensors)
    first, second, one, other = _heads(rest, "head2", "BESTformer")
    whole = torch.cat((first, second), 1) / 2
    return {**rest, "head.weight": whole, "head.bias": (one + other) / 2}


def _taught_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One head of the mean of two, where the file has one that a teacher trained."""
    rest = dict(tensors)
    if rest.keys().isdisjoint(_TAUGHT):
        return rest
    first, second, one, other = _heads(rest, "head_kd", "Meta-SpikeFormer with a teacher")
    return {**rest, "head.weight": (first + second) / 2, "head.bias": (one + other) / 2}


def _rename_membrane(name: str) -> str | None:
    """Ours for a Spike-Driven Transformer's, whose names are those of a Spikformer."""
    ours = _rename(name)
    if ours is None or not ours.startswith("conv_pep."):
        return ours
    return ours.replace("conv_pep.", "stem.").replace(".stages.3.", ".last.")


# Of a Max-Former's first embedding the part that only its layout has, the parts in order, and the
# shortcut; then those of the later ones.
_PATHS = {
    "imagenet": ("embed4", ["embed1", "embed2", "embed3"], "embed4"),
    "dvs": ("max_embed3", ["proj", "max_embed1", "max_embed2", "max_embed3"], "embed1"),
    "cifar": ("", ["proj", "embed1"], "embed2"),
    "later": ("", ["max_embed1", "embed1"], "max_embed2"),
}


def _max_layout(tensors: Tensors) -> str:
    first = {name.split(".")[1] for name in tensors if name.startswith("patch_embed1.")}
    return next(layout for layout, (sign, *_) in _PATHS.items() if not sign or sign in first)


def _max_renamer(tensors: Tensors) -> Callable[[str], str | None]:
    """Ours for a Max-Former's, whose blocks are named as a QKFormer's, but for the mixers."""
    layout = _max_layout(tensors)
    blocks = _stage_renamer(tensors)

    def rename(name: str) -> str | None:
        if part := _MAX_EMBEDDING.fullmatch(name):
            stage, first, unit, kind, leaf = part.groups()
            _, parts, around = _PATHS[layout if stage == "1" else "later"]
            unit = first or unit
            if unit not in (*parts, around):
                return None
            place = "shortcut" if unit == around else f"stages.{parts.index(unit)}"
            return f"stem.embeddings.{int(stage) - 1}.{place}.{_STAGE[kind]}.{leaf}"
        if mixer := _MIXER.fullmatch(name):
            stage, index, norm, leaf = mixer.groups()
            place = f"stem.stages.{int(stage) - 1}.{int(index)}.attn.proj"
            return f"{place}.{'norm' if norm else 'conv'}.{leaf}"
        return blocks(name)

    return rename


def _stage_renamer(tensors: Tensors) -> Callable[[str], str | None]:
    """Ours for a QKFormer's; its convolutions are in the order of their numbers."""
    found = [match for name in tensors if (match := _EMBEDDING.fullmatch(name))]
    stages = _count(tensors, "patch_embed")
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


_DOWN = re.compile(r"downsample(1_1|1_2|2|3|4)\.encode_(conv|bn)\.(\w+)")
_CONVOLVING = re.compile(
    r"ConvBlock([12]_[12])\.0\.(?:Conv\.(pwconv1|dwconv|pwconv2)\.([01])|(conv|bn)([12]))\.(\w+)"
)
_META = re.compile(
    r"block([34])\.(\d{1,4})\.(?:(conv)\.(pwconv1|dwconv|pwconv2)|(attn)\.([qkv]|proj)_conv)"
    r"\.([01])\.(\w+)"
)
_REP = re.compile(
    r"block([34])\.(\d{1,4})\.attn\.([qkv]|proj)_conv\.(0\.body\.(?:0|1\.bn|2\.[012])|1)\.(\w+)"
)
_REPS = {
    "0.body.0": "first", "0.body.1.bn": "first_norm", "0.body.2.0": "depthwise",
    "0.body.2.1": "second", "0.body.2.2": "second_norm", "1": "norm",
}  # fmt: skip
_TAUGHT = ("head_kd.weight", "head_kd.bias")
_UNNORMED = re.compile(r"ConvBlock([12]_[12])\.0\.Conv\.(pwconv1|bn1|dwconv|pwconv2|bn2)\.(\w+)")
_UNITS = {"pwconv1": "0.conv", "bn1": "0.norm", "dwconv": "1.conv", "pwconv2": "2.conv",
          "bn2": "2.norm"}  # fmt: skip
_META_MLP = re.compile(r"block([34])\.(\d{1,4})\.mlp\.fc([12])_(conv|bn)\.(\w+)")
_SEPARABLE = ("pwconv1", "dwconv", "pwconv2")
_DOWNS = ("1_1", "1_2", "2", "3", "4")
_CONVOLVED = {"1_1": "0.0", "1_2": "1.0", "2_1": "2.0", "2_2": "2.1"}


def _rename_meta(name: str) -> str | None:
    """Ours for an E-SpikeFormer's."""
    if name in ("head.weight", "head.bias"):
        return name
    if part := _DOWN.fullmatch(name):
        return f"stem.downs.{_DOWNS.index(part[1])}.units.0.{_STAGE[part[2]]}.{part[3]}"
    if part := _CONVOLVING.fullmatch(name):
        stage, own, place, kind, number, leaf = part.groups()
        block = f"stem.stages.{_CONVOLVED[stage]}"
        if own:
            kind = ("conv", "norm")[int(place)]
            return f"{block}.branches.0.units.{_SEPARABLE.index(own)}.{kind}.{leaf}"
        return f"{block}.branches.1.units.{int(number) - 1}.{_STAGE[kind]}.{leaf}"
    found = _META.fullmatch(name) or _META_MLP.fullmatch(name)
    if found is None:
        return None
    block = f"stem.stages.3.{int(found[2])}" if found[1] == "3" else f"blocks.{int(found[2])}"
    if found.re is _META_MLP:
        return f"{block}.branches.2.units.{int(found[3]) - 1}.{_KINDS[found[4]]}.{found[5]}"
    *_, conv, separable, _, role, place, leaf = found.groups()
    if conv:
        kind = ("conv", "norm")[int(place)]
        return f"{block}.branches.0.units.{_SEPARABLE.index(separable)}.{kind}.{leaf}"
    return f"{block}.branches.1.units.0.attn.{role}.{('linear', 'norm')[int(place)]}.{leaf}"


def _rename_rep(name: str) -> str | None:
    """Ours for a Meta-SpikeFormer's, which is named as an E-SpikeFormer but for these."""
    if name in _TAUGHT:
        return name
    if part := _UNNORMED.fullmatch(name):
        return f"stem.stages.{_CONVOLVED[part[1]]}.branches.0.units.{_UNITS[part[2]]}.{part[3]}"
    if part := _REP.fullmatch(name):
        block = f"stem.stages.3.{int(part[2])}" if part[1] == "3" else f"blocks.{int(part[2])}"
        return f"{block}.branches.0.units.0.{part[3]}.{_REPS[part[4]]}.{part[5]}"
    ours = None if _META.fullmatch(name) or ".Conv." in name else _rename_meta(name)
    return ours and ours.replace(".branches.2.", ".branches.1.")


def _in_whole_numbers(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a layer that reads whole numbers, where the published one reads quarters."""
    leaf = name.rpartition(".")[2]
    power = {"running_mean": 1, "running_var": 2, "bias": 0 if ".norm." in name else 1}.get(leaf, 0)
    whole = not name.startswith(("head.", "stem.downs.0."))
    return tensor * 4**power if whole and power else tensor


def _meta_sizes(tensors: Tensors, mlp: int) -> dict[str, Any]:
    widths = (tensors[f"stem.downs.{i}.units.0.conv.weight"].shape[0] for i in (1, 2, 3))
    block = f"blocks.0.branches.{mlp}.units"
    dim, hidden = (tensors[f"{block}.{i}.linear.weight"].shape[0] for i in (1, 0))
    return {
        "in_channels": tensors[_DOWNED].shape[1], "embed_dim": dim, "mlp_ratio": hidden / dim,
        "widths": tuple(widths), "num_classes": tensors["head.weight"].shape[0],
        "depths": (_count(tensors, "stem.stages.3."), _count(tensors, "blocks.")),
    }  # fmt: skip


def _matrix(tensor: Tensor) -> Tensor:
    """The matrix of a 1x1 convolution; other shapes stay, to be refused by name."""
    pointwise = tensor.ndim > 2 and all(side == 1 for side in tensor.shape[2:])
    return tensor.flatten(1) if pointwise else tensor


def _count(names: Iterable[str], before: str) -> int:
    """Different numbers that follow `before` in names."""
    return len({name[len(before) :].split(".")[0] for name in names if name.startswith(before)})


def _sizes(tensors: Tensors, first: str, streams: int = 1) -> dict[str, Any]:
    """Sizes that all families have; `first` is the first convolution's weight."""
    head = tensors["head.weight"]
    hidden, dim = tensors["blocks.0.mlp.fc1.linear.weight"].shape[0], head.shape[1] // streams
    return {
        "in_channels": tensors[first].shape[1],
        "embed_dim": dim,
        "mlp_ratio": hidden / max(1, dim),
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


def _depths(tensors: Tensors) -> dict[str, Any]:
    inner = _count(tensors, "stem.stages.")
    depths = [_count(tensors, f"stem.stages.{i}.") for i in range(inner)]
    return {"depths": (*depths, _count(tensors, "blocks."))}


def _mixers(tensors: Tensors) -> dict[str, Any]:
    names = (
        f"stem.stages.{i}.0.attn.proj.conv.weight"
        for i in range(len(_depths(tensors)["depths"]) - 1)
    )
    return {"mixers": tuple(tensors[n].shape[-1] if n in tensors else 0 for n in names)}


def _stages(tensors: Tensors) -> dict[str, Any]:
    convolutions = _count(tensors, "stem.embeddings.0.stages.")
    layouts = {2: "cifar", 4: "dvs", 3: "imagenet"}
    if convolutions not in layouts:
        raise CheckpointError(
            f"no published QKFormer has {convolutions} convolutions in its first embedding"
        )
    return {**_depths(tensors), "layout": layouts[convolutions]}


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
    md5={  # issue 8 of the published code; accuracies on ImageNet as its logs have them
        "60df416983ae326bb14bdb4566444320": "QKFormer-10-384, 78.85 %",
        "85dd1f94c87ba5ec908fed5d0a3f7f69": "QKFormer-10-512, 82.08 %",
        "dc1595408ed1bd40346be2bdaf5015d5": "QKFormer-10-768, 84.29 %",
        "ba20af8eb450d4ec9c71009fde8e7125": "QKFormer-10-768 of a larger input, 85.3 %",
        "99a671118f67a680aa38b6ac5aae449a": "QKFormer-10-768 of a larger input, 85.65 %",
    },
)
MAX_FORMER = Published(
    "Max-Former",
    _max_renamer,
    {_EMBEDDED: 4, "stem.embeddings.0.shortcut.conv.weight": 4, **_LAST},
    lambda found: _sizes(found, _EMBEDDED) | _depths(found) | _mixers(found),
    lambda tensors: {"layout": _max_layout(tensors)},
)
_DOWNED = "stem.downs.0.units.0.conv.weight"
_V = "blocks.0.branches.1.units.0.attn.v.linear.weight"
_MAPS = {f"stem.downs.{i}.units.0.conv.weight": 4 for i in range(4)} | {"head.weight": 2}
E_SPIKEFORMER = Published(
    "E-SpikeFormer",
    lambda tensors: _rename_meta,
    {**_MAPS, **{f"blocks.0.branches.2.units.{i}.linear.weight": 2 for i in (0, 1)}, _V: 2},
    lambda found: _meta_sizes(found, 2) | {"v_ratio": found[_V].shape[0] // found[_V].shape[1]},
    value=_in_whole_numbers,
)
META_SPIKEFORMER = Published(
    "Meta-SpikeFormer",
    lambda tensors: _rename_rep,
    {**_MAPS, **{f"blocks.0.branches.1.units.{i}.linear.weight": 2 for i in (0, 1)}},
    lambda found: _meta_sizes(found, 1),
    joined=_taught_head,
)
_GAINS = "block.0.attn.lambda_attn"
BESTFORMER = Published(
    "BESTformer",
    lambda tensors: _rename_two_heads,
    {_TOKENS: 4, "stem.last.conv.weight": 4, **_LAST, "blocks.0.attn.gains": 1},
    lambda found: _sizes(found, _TOKENS, 2) | _depth(found),
    lambda tensors: dict(zip(("T", "num_heads"), tensors[_GAINS].shape[:3:2], strict=True)),
    lambda name, tensor: tensor.flatten() if name.endswith(".gains") else tensor,
    _mean_head,
)
SPIKE_DRIVEN = Published(
    "Spike-Driven Transformer",
    lambda tensors: _rename_membrane,
    {_TOKENS: 4, "stem.rpe.conv.weight": 4, **_LAST},
    lambda found: _sizes(found, _TOKENS) | _depth(found),
)
