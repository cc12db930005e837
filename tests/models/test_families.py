"""The families beside Spikformer: sizes, and each network written out."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based.surrogate import Sigmoid
from torch import Tensor, nn
from torch.nn import functional as F

from spikeformer_lt.errors import CheckpointError, ConfigError
from spikeformer_lt.export import Stream, compact, export_ticket, load_exported
from spikeformer_lt.export.graphs import to_pt2
from spikeformer_lt.layers.attention import SpikeDrivenAttention, TokenAttention
from spikeformer_lt.layers.patches import PatchSelect, make_score
from spikeformer_lt.layers.units import Unit
from spikeformer_lt.mask import Mask
from spikeformer_lt.models.bestformer import Bestformer
from spikeformer_lt.models.feature_maps import FeatureMaps
from spikeformer_lt.models.max_former import MaxFormer
from spikeformer_lt.models.meta_former import ESpikeFormer, MetaSpikeFormer, RepConv
from spikeformer_lt.models.qkformer import QKFormer
from spikeformer_lt.models.spike_driven import SpikeDrivenTransformer
from spikeformer_lt.models.spikformer import Spikformer
from spikeformer_lt.models.spikformer_convert import (
    QKFORMER,
    SPIKINGFORMER,
    convert,
    translate,
)
from spikeformer_lt.models.spikingformer import Spikingformer
from spikeformer_lt.registry import create_model, list_models
from spikeformer_lt.reports.ledger import build_ledger, count_operations
from spikeformer_lt.testing import check_model
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets import model_from_ticket

T, B, K = 3, 2, 10

# -- sizes ---------------------------------------------------------------------------------

SIZES = [  # parameters as published, and where known millions of MACs a step
    ("spikingformer_cifar_4_256", {}, 4_156_202, 409.8),
    ("spikingformer_cifar_4_256", {"num_classes": 100}, 4_179_332, 409.9),
    ("spikingformer_cifar_2_384", {}, 5_765_818, 695.0),
    ("spikingformer_cifar", {}, 9_326_266, 921.5),
    ("spikingformer_cifar", {"num_classes": 100}, 9_360_916, 921.5),
    ("spikingformer_dvs", {}, 2_568_714, 374.3),
    ("spikingformer_dvs", {"num_classes": 11}, 2_568_971, 374.3),
    ("spikingformer_imagenet_8_384", {}, 16_828_312, 4_660.7),
    ("spikingformer_imagenet_8_512", {}, 29_705_768, 8_256.7),
    ("spikingformer_imagenet_8_768", {}, 66_363_208, 18_512.1),
    ("qkformer_cifar", {}, 6_706_234, 1_511.3),
    ("qkformer_cifar", {"num_classes": 100}, 6_740_884, 1_511.3),
    ("qkformer_dvs", {}, 1_504_138, 507.0),
    ("qkformer_gesture", {}, 1_999_371, 557.3),
    ("qkformer_imagenet_10_384", {}, 16_473_688, 5_831.2),
    ("qkformer_imagenet_10_512", {}, 29_079_336, 10_337.6),
    ("qkformer_imagenet_10_768", {}, 64_962_760, 23_194.1),
    ("sdt_cifar_2_256", {}, 2_567_082, 309.2),
    ("sdt_cifar_2_512", {}, 10_233_546, 1_234.9),
    ("sdt_cifar_2_256", {"num_classes": 100}, 2_590_212, None),
    ("sdt_cifar_2_512", {"num_classes": 100}, 10_279_716, None),
    ("sdt_dvs", {}, 2_566_794, 1_235.5),
    ("sdt_gesture", {}, 2_567_051, 1_469.1),
    ("sdt_imagenet_8_384", {}, 16_816_536, 4_660.7),
    ("sdt_imagenet_6_512", {}, 23_373_736, None),
    ("sdt_imagenet_8_512", {}, 29_689_896, 8_256.7),
    ("sdt_imagenet_10_512", {}, 36_006_056, None),
    ("sdt_imagenet_8_768", {}, 66_339_144, 18_512.1),
    ("maxformer_cifar", {}, 6_568_282, 973.8),
    ("maxformer_cifar", {"num_classes": 100}, 6_602_932, 973.8),
    ("maxformer_dvs", {}, 1_950_602, None),
    ("maxformer_imagenet_10_384", {}, 16_237_240, None),
    ("maxformer_imagenet_10_512", {}, 28_653_480, None),
    ("maxformer_imagenet_10_768", {}, 63_992_200, None),
    ("sdt2_imagenet_8_384", {}, 31_333_864, None),
    ("sdt2_imagenet_8_512", {}, 55_350_248, 24_699.5),
    ("sdt2_imagenet_8_768", {}, 123_741_160, None),
    ("sdt3_imagenet_t", {}, 2_702_048, None),
    ("sdt3_imagenet_s", {}, 5_105_608, 1_877.8),
    ("sdt3_imagenet_m", {}, 10_023_112, 3_935.1),
    ("sdt3_imagenet_l", {}, 18_987_504, 7_200.1),
    ("bestformer_cifar", {"T": 4}, 9_314_884, None),
    ("bestformer_cifar", {}, 9_314_884 - 3 * 4 * 8, 921.5),  # gains of one step in four blocks
    ("spikformer_imagenet_8_384", {}, 16_828_312, 4_660.7),
    ("spikformer_imagenet_6_512", {}, 23_385_640, None),
    ("spikformer_imagenet_8_512", {}, 29_705_768, 8_256.7),
    ("spikformer_imagenet_10_512", {}, 36_025_896, None),
    ("spikformer_imagenet_8_768", {}, 66_363_208, 18_512.1),
]


@pytest.mark.parametrize(("name", "options", "parameters", "macs"), SIZES)
def test_published_parameters_and_operations(
    name: str, options: dict[str, Any], parameters: int, macs: float | None
) -> None:
    """Published counts include what no forward reads: two LayerNorms a block of Spikformer and
    Spikingformer, a convolution over heads a block of the Spike-Driven Transformer; and biases of
    the two heads of BESTformer, whose mean is one."""
    with torch.device("meta"):
        model: Any = create_model(name, **{"T": 1, **options}).eval()
    norms = dict.fromkeys((Spikformer, Spikingformer), 4 * model.embed_dim)
    unread = {**norms, SpikeDrivenTransformer: model.num_heads**2}
    dead = unread.get(type(model), 0) * len(model.blocks)
    dead += model.num_classes if isinstance(model, Bestformer) else 0
    assert sum(p.numel() for p in model.parameters()) + dead == parameters
    found = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(
                lambda m, x, out: found.append(out.numel() * m.weight[0].numel())
            )
    model(torch.empty(1, model.in_channels, *model.image_size, device="meta"))
    assert macs is None or f"{sum(found) / 1e6:.1f}" == f"{macs:.1f}"


PARTS = {
    "spikingformer_cifar": {"stem": 2_201_520, "blocks.0": 1_778_688, "head": 3_850},
    "bestformer_cifar": {"stem": 2_201_520, "blocks.0": 1_776_416, "head": 2 * 3_850 - 10},
    "qkformer_cifar": {
        "stem.embeddings.0": 47_856, "stem.stages.0": 103_488, "stem.embeddings.1": 517_248,
        "stem.stages.1": 409_728, "stem.embeddings.2": 2_066_688, "blocks": 3_557_376,
        "head": 3_850,
    },
    "qkformer_dvs": {
        "stem.embeddings.0": 101_888, "stem.stages.0": 83_584, "stem.embeddings.1": 919_040,
        "blocks": 397_056, "head": 2_570,
    },
    "qkformer_imagenet_10_384": {
        "stem.embeddings.0": 130_992, "stem.stages.0": 103_488, "stem.embeddings.1": 517_248,
        "stem.stages.1": 819_456, "stem.embeddings.2": 2_066_688, "blocks": 12_450_816,
        "head": 385_000,
    },
    "maxformer_imagenet_10_384": {
        "stem.embeddings.0": 130_992, "stem.stages.0": 80_160, "stem.embeddings.1": 517_248,
        "stem.stages.1": 606_336, "stem.embeddings.2": 2_066_688, "blocks": 12_450_816,
    },
    "sdt2_imagenet_8_512": {
        "stem.downs.0": 9_600, "stem.stages.0": 318_592, "stem.downs.1": 74_112,
        "stem.stages.1": 1_259_776, "stem.downs.2": 295_680, "stem.stages.2": 2 * 5_009_920,
        "stem.downs.3": 1_181_184, "stem.stages.3": 25_396_224, "stem.downs.4": 2_951_040,
        "blocks": 13_203_200, "head": 641_000, "stem.stages.3.0": 4_232_704,
        "stem.stages.3.0.branches.0.units.0.q": 531_968, "stem.stages.3.0.branches.1": 2_104_832,
    },
    "sdt3_imagenet_l": {
        "stem.stages.3": 6 * 1_456_384, "stem.stages.3.0.branches.0": 269_312,
        "stem.stages.3.0.branches.1": 658_944, "stem.stages.3.0.branches.2": 528_128,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_parameters_of_every_part(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    for part, count in PARTS[name].items():
        assert sum(p.numel() for p in model.get_submodule(part).parameters()) == count, part


@pytest.mark.parametrize("name", [n for n in list_models() if n.endswith(("_toy", "_digits"))])
def test_a_small_transformer_declares_everything(name: str) -> None:
    found = check_model(create_model(name))
    missing = [] if "former" in name else ["a stem", "blocks"]
    assert {text.split(":")[0] for text in found.missing} <= set(missing)


# -- the same networks, written out ---------------------------------------------------------

SPIKE = Sigmoid(alpha=4.0)


def lif(x: Tensor, threshold: float = 1.0, soft: bool = False) -> Tensor:
    """Leaky integration with tau 2, reset to 0 or by the threshold, detached; time first."""
    v, out = torch.zeros_like(x[0]), []
    for current in x:
        v = v + (current - v) / 2
        fired = SPIKE(v - threshold)
        v = v - fired.detach() * (threshold if soft else v)
        out.append(fired)
    return torch.stack(out)


class Plain:
    """Functions over the tensors of a model, on maps ``[T, B, C, H, W]``."""

    def __init__(self, model: Any) -> None:
        self.p = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.training, self.scale = model.training, getattr(model.blocks[0].attn, "scale", 0.0)
        self.quarters = isinstance(model, ESpikeFormer)
        self.bits = isinstance(model, Bestformer)

    def weight(self, layer: str) -> Tensor:
        weight = self.p[f"{layer}.weight"]
        if not self.bits or layer == "stem.stages.0.conv":
            return weight
        rows = weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
        return (rows + (rows.sign() - rows).detach()).view_as(weight)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.normed(f"{name}.norm", x)

    def normed(self, norm: str, x: Tensor) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (self.p[f"{norm}.{key}"] for key in keys)
        if self.quarters and norm != "stem.downs.0.units.0.norm":
            mean, var = mean / 4, var / 16
        own = (None, None) if self.training else (mean, var)
        return F.batch_norm(x, *own, scale, shift, training=self.training)

    def bias(self, layer: str) -> Tensor | None:
        found = self.p.get(f"{layer}.bias")
        whole = self.quarters and found is not None and layer != "stem.downs.0.units.0.conv"
        return found / 4 if whole else found

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weight(f"{name}.conv")
        own = {"bias": self.bias(f"{name}.conv"), "groups": x.shape[2] // weight.shape[1]}
        y = F.conv2d(x.flatten(0, 1), weight, stride=stride, padding=weight.shape[-1] // 2, **own)
        return self.norm(name, y).unflatten(0, x.shape[:2])

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weight(f"{name}.linear"), self.bias(f"{name}.linear")
        y = F.conv2d(x.flatten(0, 1), weight[:, :, None, None], bias)
        return self.norm(name, y).unflatten(0, x.shape[:2])

    def rep(self, name: str, x: Tensor) -> Tensor:
        """1x1, depthwise 3x3 and 1x1, of maps padded by what running statistics make of 0."""
        flat, layers = x.flatten(0, 1), (f"{name}.first_norm", f"{name}.second_norm")
        keys = ("running_mean", "running_var", "weight", "bias")
        weights = [self.p[f"{name}.{k}.weight"] for k in ("first", "depthwise", "second")]
        mean, var, scale, shift = (self.p[f"{layers[0]}.{key}"] for key in keys)
        edge = (shift - mean * scale / (var + 1e-5).sqrt()).detach()
        inner = self.normed(layers[0], F.conv2d(flat, weights[0]))
        pad = (1, 1, 1, 1)
        outside = 1 - F.pad(torch.ones_like(inner), pad)
        padded = F.pad(inner, pad) + outside * edge[:, None, None]
        inner = F.conv2d(padded, weights[1], groups=len(edge))
        inner = self.normed(layers[1], F.conv2d(inner, weights[2]))
        return self.norm(name, inner).unflatten(0, x.shape[:2])

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])

    def head(self, x: Tensor) -> Tensor:
        return F.linear(x.mean((3, 4)), self.p["head.weight"], self.p["head.bias"])

    def ssa(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Current of the projection."""
        parts = [lif(self.linear(f"{name}.{part}", x)) for part in "qkv"]
        q, k, v = (part.flatten(3).unflatten(2, (heads, -1)) for part in parts)
        weights = torch.einsum("tbhdn,tbhdm->tbhnm", q, k)
        out = torch.einsum("tbhnm,tbhdm->tbhdn", weights, v) * self.scale
        return self.linear(f"{name}.proj", lif(out.flatten(2, 3).view_as(x), 0.5))

    def token(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Current of the projection."""
        q, k = (lif(self.linear(f"{name}.{part}", x)) for part in "qk")
        gate = lif(q.unflatten(2, (heads, -1)).sum(3, keepdim=True), 0.5)
        return self.linear(f"{name}.proj", (k.unflatten(2, (heads, -1)) * gate).flatten(2, 3))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """Current of the second map."""
        return self.linear(f"{name}.fc2", lif(self.linear(f"{name}.fc1", x)))


def tokenized(p: Plain, x: Tensor) -> Tensor:
    for i, halve in enumerate((False, False, True, True)):
        x = lif(p.conv(f"stem.stages.{i}", x))
        x = p.pool(x) if halve else x
    return p.conv("stem.last", x)


def bestformer(p: Plain, x: Tensor, heads: int) -> Tensor:
    a = b = tokenized(p, x)
    for i in range(2):
        name, fired = f"blocks.{i}.attn", lif(b)
        q, k, v = (lif(p.linear(f"{name}.{part}", fired)).flatten(3).unflatten(2, (heads, -1))
                   for part in "qkv")  # fmt: skip
        seen = lif(torch.einsum("tbhdn,tbhdm->tbhnm", q, k), soft=True)
        gains = p.p[f"{name}.gains"].view(T, 1, heads, 1, 1)
        out = torch.einsum("tbhnm,tbhdm->tbhdn", seen, v) * p.scale * gains
        a = p.linear(f"{name}.proj", lif(out.flatten(2, 3).view_as(b), 0.5)) + (a + b) / 2
        b = p.mlp(f"blocks.{i}.mlp", lif(a)) + (a + b) / 2
    return p.head(torch.cat((a, b), 2))


def spikingformer(p: Plain, x: Tensor, heads: int) -> Tensor:
    x = tokenized(p, x)
    for i in range(2):
        x = x + p.ssa(f"blocks.{i}.attn", lif(x), heads)
        x = x + p.mlp(f"blocks.{i}.mlp", lif(x))
    return p.head(x)


def spike_driven(p: Plain, x: Tensor, heads: int, dvs: bool = False) -> Tensor:
    def erode(x: Tensor) -> Tensor:
        return F.max_pool3d(x, (1, 3, 3), 1, (0, 1, 1)) if dvs else x

    def attend(name: str, x: Tensor) -> Tensor:
        q, k, v = (lif(p.linear(f"{name}.{part}", x)) for part in "qkv")
        q, k, v = (part.flatten(3).unflatten(2, (heads, -1)).transpose(3, 4)
                   for part in (q, erode(k), erode(v)))  # fmt: skip
        gates = lif(erode(k * v).sum(3, keepdim=True), 0.5)
        kept = erode(q * gates).transpose(3, 4).reshape(x.shape)
        return p.linear(f"{name}.proj", kept)

    for i in range(3):
        x = lif(p.conv(f"stem.stages.{i}", x))
        x = p.pool(x) if i == 2 else x
    x = p.pool(p.conv("stem.last", x))
    x = x + p.conv("stem.rpe", lif(x))
    for i in range(2):
        x = x + attend(f"blocks.{i}.attn", lif(x))
        x = x + p.mlp(f"blocks.{i}.mlp", lif(x))
    return F.linear(lif(x.mean((3, 4))), p.p["head.weight"], p.p["head.bias"])


def qkformer(p: Plain, x: Tensor, heads: int, layout: str = "cifar") -> Tensor:
    def block(name: str, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        x = x + lif(attend(f"{name}.attn", x, heads))
        return x + lif(p.mlp(f"{name}.mlp", x))

    def run(name: str, x: Tensor, pools: str, begin: int) -> Tensor:
        straight, stride = x, 1
        for i, letter in enumerate(pools):
            straight = x if i == begin else straight
            stride *= 2 if letter == "p" and i >= begin else 1
            current = p.conv(f"{name}.stages.{i}", x)
            x = lif(p.pool(current) if letter == "p" else current)
        return x + lif(p.conv(f"{name}.shortcut", straight, stride))

    first, begin, later = {"cifar": ("--", 1, "-p"), "dvs": ("-ppp", 2, "-p"),
                           "imagenet": ("pp-", 1, "p-")}[layout]  # fmt: skip
    x = run("stem.embeddings.0", x, first, begin)
    x = block("stem.stages.0.0", x, p.token)
    x = run("stem.embeddings.1", x, later, 0)
    return p.head(block("blocks.0", x, p.ssa))


def max_former(p: Plain, x: Tensor, heads: int, layout: str = "cifar") -> Tensor:
    def embed(name: str, x: Tensor, halved: str, begin: int) -> Tensor:
        straight = x = x if begin else lif(x)
        for i, letter in enumerate(halved):
            straight = x if i == begin else straight
            x = p.conv(f"{name}.stages.{i}", x, 2 if letter == "s" else 1)
            x = p.pool(x) if letter == "p" else x
            x = x if i + 1 == len(halved) else lif(x)
        stride = 2 ** sum(letter != "-" for letter in halved[begin:]) if begin else 1
        around = p.conv(f"{name}.shortcut", straight, stride)
        return x + (around if begin else p.pool(around))

    first, begin = {"cifar": ("--", 1), "dvs": ("-ppp", 2), "imagenet": ("ss-", 1)}[layout]
    x = embed("stem.embeddings.0", x, first, begin)
    if layout != "cifar":
        x = x + p.conv("stem.stages.0.0.attn.proj", lif(x))
    x = x + p.mlp("stem.stages.0.0.mlp", lif(x))
    x = embed("stem.embeddings.1", x, "p-", 0)
    x = x + p.ssa("blocks.0.attn", lif(x), heads)
    x = x + p.mlp("blocks.0.mlp", lif(x))
    return F.linear(lif(x.mean((3, 4))), p.p["head.weight"], p.p["head.bias"])


def meta_spikeformer(p: Plain, x: Tensor, heads: int) -> Tensor:
    def separable(name: str, x: Tensor) -> Tensor:
        spikes = lif(p.conv(f"{name}.units.0", lif(x)))
        weight = p.p[f"{name}.units.1.conv.weight"]
        y = F.conv2d(spikes.flatten(0, 1), weight, padding=3, groups=len(weight))
        return p.conv(f"{name}.units.2", y.unflatten(0, x.shape[:2]))

    def attend(name: str, x: Tensor) -> Tensor:
        x = lif(x)
        q, k, v = (lif(p.rep(f"{name}.{part}", x)).flatten(3).unflatten(2, (heads, -1))
                   for part in "qkv")  # fmt: skip
        out = torch.einsum("tbhdn,tbhdm,tbhem->tbhen", q, k, v).flatten(2, 3) * p.scale
        return p.rep(f"{name}.proj", lif(out.unflatten(3, x.shape[3:]), 0.5))

    def mixed(name: str, x: Tensor) -> Tensor:
        x = x + attend(f"{name}.branches.0.units.0", x)
        y = p.linear(f"{name}.branches.1.units.0", lif(x))
        return x + p.linear(f"{name}.branches.1.units.1", lif(y))

    for i in range(5):
        x = p.conv(f"stem.downs.{i}.units.0", lif(x) if i else x, 1 if i == 4 else 2)
        for j in range((1, 1, 2, 0, 0)[i]):
            name = f"stem.stages.{i}.{j}.branches"
            x = x + separable(f"{name}.0", x)
            x = x + p.conv(f"{name}.1.units.1", lif(p.conv(f"{name}.1.units.0", lif(x))))
        x = mixed("stem.stages.3.0", x) if i == 3 else x
    x = mixed("blocks.0", x)
    return F.linear(lif(x.mean((3, 4))), p.p["head.weight"], p.p["head.bias"])


def levels(x: Tensor, norm: int = 4) -> Tensor:
    """The published integer neuron; its gradient passes between 0 and 4."""
    inside = x.clamp(0, 4)
    return (inside + (inside.round() - inside).detach()) / norm


def e_spikeformer(p: Plain, x: Tensor, heads: int) -> Tensor:
    def row(name: str, x: Tensor, count: int) -> Tensor:
        for i in range(count):
            x = p.conv(f"{name}.units.{i}", levels(x))
        return x

    def attend(name: str, x: Tensor) -> Tensor:
        x = levels(x)
        q, k, v = (levels(p.linear(f"{name}.{part}", x)).flatten(3).unflatten(2, (heads, -1))
                   for part in "qkv")  # fmt: skip
        weights = torch.einsum("tbhdn,tbhdm->tbhnm", q, k) * 2 * q.shape[3] ** -0.5
        out = torch.einsum("tbhnm,tbhdm->tbhdn", weights, v).flatten(2, 3)
        return p.linear(f"{name}.proj", levels(out.unflatten(3, x.shape[3:])))

    def mixed(name: str, x: Tensor) -> Tensor:
        x = x + row(f"{name}.branches.0", x, 3)
        x = x + attend(f"{name}.branches.1.units.0.attn", x)
        y = p.linear(f"{name}.branches.2.units.0", levels(x))
        return x + p.linear(f"{name}.branches.2.units.1", levels(y))

    for i in range(5):
        x = p.conv(f"stem.downs.{i}.units.0", levels(x) if i else x, 1 if i == 4 else 2)
        for j in range((1, 1, 2, 0, 0)[i]):
            x = x + row(f"stem.stages.{i}.{j}.branches.0", x, 3)
            x = x + row(f"stem.stages.{i}.{j}.branches.1", x, 2)
        x = mixed("stem.stages.3.0", x) if i == 3 else x
    x = mixed("blocks.0", x)
    return F.linear(levels(x.mean((3, 4)), 1), p.p["head.weight"], p.p["head.bias"])


SMALL = {"embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0, "T": T, "image_size": 16}
QK: dict[str, Any] = {**SMALL, "num_heads": 8, "depths": (1, 1)}
META: dict[str, Any] = {**SMALL, "widths": (8, 12, 16), "depths": (1, 1), "image_size": 48}
PLAIN: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "spikingformer": (lambda: Spikingformer(depth=2, **SMALL), spikingformer),
    "bestformer": (partial(Bestformer, depth=2, attn_scale=0.5, **SMALL), bestformer),
    "sdt": (partial(SpikeDrivenTransformer, **SMALL), spike_driven),
    "sdt, dvs": (partial(SpikeDrivenTransformer, dvs_mode=True, **SMALL),
                 partial(spike_driven, dvs=True)),
    **{
        layout: (partial(QKFormer, layout=layout, **{**QK, **sizes}),
                 partial(qkformer, layout=layout))
        for layout, sizes in {
            "cifar": {}, "dvs": {"embed_dim": 64, "image_size": 32, "attn_scale": 0.5},
            "imagenet": {"attn_scale": 0.5},
        }.items()
    },
    "meta-spikeformer": (partial(MetaSpikeFormer, attn_scale=1.0, **META), meta_spikeformer),
    "e-spikeformer": (partial(ESpikeFormer, **META), e_spikeformer),
    **{
        f"max, {layout}": (partial(MaxFormer, layout=layout, **{**QK, **sizes}),
                           partial(max_former, layout=layout))
        for layout, sizes in {
            "cifar": {"mixers": (0,)},
            "dvs": {"mixers": (3,), "embed_dim": 64, "image_size": 32, "attn_scale": 0.5},
            "imagenet": {"mixers": (7,), "attn_scale": 0.5},
        }.items()
    },
}  # fmt: skip


def awake(make: Callable[[], nn.Module], awaken: Any, centre: float = 0.35) -> Any:
    torch.manual_seed(3)
    model = make().double()
    x = pictures(model)
    awaken(model, lambda m: m(x), centre=centre, q_k_v=0.8)
    for part in model.modules():
        if isinstance(part, TokenAttention):  # one spike of a head opens its gate
            part.q.norm.bias.data -= 1.5
        if isinstance(part, SpikeDrivenAttention) and part.grid:  # as one that its neighbours see
            part.k.norm.bias.data -= 1.6
    return model.eval()


def pictures(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, *model.image_size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_logits_and_gradients_are_those_of_the_plain_formulation(
    name: str, training: bool, awaken, outputs
) -> None:
    make, plain = PLAIN[name]
    model = awake(make, awaken).train(training)
    start = copy.deepcopy(model.state_dict())
    with outputs(model) as seen:
        logits = model(pictures(model))
    for layer, spikes in seen.items():
        assert name != "e-spikeformer" or set(spikes.unique().tolist()) <= {0, 1, 2, 3, 4}
        spikes = spikes.clamp(max=1)
        assert 0.005 < spikes.mean() < 0.99, f"{layer}: {spikes.mean():.3f}"
    names, parameters = zip(*model.named_parameters(), strict=True)
    weights = torch.randn(logits.shape, dtype=torch.float64)
    ours = torch.autograd.grad((logits * weights).sum(), parameters)
    model.load_state_dict(start)
    x = pictures(model)[None].expand(T, -1, -1, -1, -1)
    expected = plain(Plain(model), x, model.num_heads).transpose(0, 1)
    assert torch.allclose(logits, expected, rtol=0, atol=1e-9)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for key, mine, other in zip(names, ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-7, atol=1e-9), key
        idle = training and key.endswith(("linear.bias", "conv.bias", "second_norm.bias"))
        assert mine.abs().sum() > 1e-9 or idle, key


# -- what units read, gates, choices --------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("change", ["", "heaviside", "iand"])
def test_units_receive_what_they_say_that_they_read(name: str, change: str, awaken) -> None:
    if change == "iand" and name.startswith(("spikingformer", "best", "sdt", "max", "e-", "meta")):
        pytest.skip("it adds no spikes")
    model = awake(PLAIN[name][0], awaken)
    if change:
        kind = "heaviside" if change == "heaviside" else "lif"
        model.stem.set_activation(kind, "iand" if change == "iand" else None)
    units = {n: m for n, m in model.named_modules() if isinstance(m, Unit)}
    seen: dict[str, Tensor] = {}
    for n, unit in units.items():
        unit.register_forward_pre_hook(lambda m, args, n=n: seen.update({n: args[0]}))
    model(pictures(model))
    assert seen.keys() == units.keys()
    real = [n for n, unit in units.items() if unit.reads == "real"]
    behind = [n for n in units if name.startswith("meta") and n.endswith("branches.0.units.2")]
    assert real == [next(iter(units)), *behind]
    for n, unit in units.items():
        limit = {"spikes": 1, "real": None}.get(unit.reads, getattr(unit.reads, "max", None))
        if limit is not None:
            assert set(seen[n].unique().tolist()) <= set(range(limit + 1)), n


def test_a_token_is_scored_by_the_gates_that_its_places_passed(awaken) -> None:
    model = awake(PLAIN["cifar"][0], awaken)
    score = make_score("qk", 32, K, 2)
    gates: list[Tensor] = []
    inner = model.stem.stages[0][0]
    inner.attn.attn_act.register_forward_hook(lambda m, x, out: gates.append(out))
    kept: list[Tensor] = []
    plain = model(pictures(model))
    model.set_patch(PatchSelect(score, 0.25).eval())
    model.patch.register_forward_hook(lambda m, x, out: kept.append(out[0]))
    assert not torch.equal(model(pictures(model)), plain)
    maps = gates[1].sum((0, 3)).view(4, 16, 16)  # of 16 x 16 places, for 8 x 8 tokens
    counts = F.avg_pool2d(maps, 2).flatten(1)
    lost = torch.ones(4, 64, dtype=torch.bool).scatter_(1, kept[0], False)
    for image in range(4):
        assert counts[image][kept[0][image]].min() >= counts[image][lost[image]].max()


@pytest.mark.parametrize(
    "make", [Spikformer, Spikingformer, SpikeDrivenTransformer], ids=lambda m: m.__name__
)
def test_gates_are_asked_of_a_qkformer_alone(make: Any) -> None:
    model = make(depth=1, **SMALL)
    with pytest.raises(ConfigError, match="patch score 'qk' reads gates of the stem"):
        model.set_patch(PatchSelect(make_score("qk", 32, K, 2), 0.5))
    assert model.patch is None


@pytest.mark.parametrize(
    ("make", "option", "said"),
    [
        (Spikingformer, {"residual": "iand"}, "residual"),
        (Spikingformer, {"embed_dim": 36}, "multiple of 8"),
        (Spikingformer, {"image_size": 18}, "SpikingTokenizer stride 4"),
        (Spikingformer, {"attention": "softmax"}, "attention"),
        (QKFormer, {"layout": "mnist"}, "layout"),
        (QKFormer, {"depths": (1, 0)}, "depths=0"),
        (QKFormer, {"depths": ()}, "depths"),
        (QKFormer, {"embed_dim": 30}, "multiple of 8"),
        (QKFormer, {"residual": "xor"}, "residual='xor'"),
        (QKFormer, {"num_heads": 5}, "num_heads=5 must divide"),
        (ESpikeFormer, {"widths": (8, 12)}, "widths"),
        (ESpikeFormer, {"attn_scale": 0.1}, "attn_scale=0.1 is not allowed: left out"),
        (ESpikeFormer, {"image_size": 40}, "MetaStem stride 16"),
        (MaxFormer, {"mixers": (2, 3)}, "mixers"),
        (MaxFormer, {"mixers": (3,)}, "mixers"),
        (MaxFormer, {"residual": "add"}, "residual"),
        (Spikformer, {"stem_convs": 3}, "stem_convs=3 is not allowed: 1, 2 or 4"),
        (QKFormer, {"stem_convs": 2}, "stem_convs=2 is not allowed: 1, for one .* each has 2 or"),
        (MaxFormer, {"stem_convs": True}, "stem_convs=True is not allowed: 1, for one"),
        (Spikformer, {"block_residual": "sum"}, "block_residual='sum'"),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_built_is_refused_by_name(
    make: Any, option: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, TypeError), match=said):
        make(**{**SMALL, **option})


def test_no_token_leaves_a_network_that_reads_neighbours() -> None:
    for model, said in (
        (SpikeDrivenTransformer(dvs_mode=True, **SMALL), "SpikeDrivenTransformer with dvs_mode"),
        (ESpikeFormer(**SMALL), "ESpikeFormer with its convolutions"),
    ):
        with pytest.raises(ConfigError, match=f"{said} reads the neighbours"):
            model.set_patch(PatchSelect(make_score("rate", 32, K, 2), 0.5))


def test_only_the_first_convolution_and_the_head_multiply(awaken) -> None:
    """The audit of a Spike-Driven Transformer finds no product that spikes do not drive."""
    others = ("spikingformer", "cifar", "max, dvs", "e-spikeformer", "meta-spikeformer")
    for name in ("sdt", "bestformer", *others):
        model = awake(PLAIN[name][0], awaken)
        audit = count_operations(model, [pictures(model)], T).purity()
        assert (audit["not_spike_driven"] == {}) is (name not in others), name
        impure = ("cifar", "e-spikeformer", "meta-spikeformer")
        assert audit["pure_after_first"] is (name not in impure)
        kinds = set(audit["impure"].values())
        assert name != "e-spikeformer" or kinds == {"real", "integers"}


def test_a_stem_of_currents_takes_no_rule_for_sums_of_spikes() -> None:
    model = Spikingformer(depth=1, **SMALL)
    model.stem.set_activation("heaviside", "add")
    with pytest.raises(ConfigError, match="this stem adds no spikes"):
        model.stem.set_activation("lif", "or")


@pytest.mark.parametrize("make", [Spikformer, Spikingformer, SpikeDrivenTransformer])
@pytest.mark.parametrize("convs", [1, 2])
def test_a_stem_of_fewer_convolutions_has_the_same_tokens_and_units_that_fold(
    make: Any, convs: int, awaken: Any
) -> None:
    options: dict[str, Any] = {**SMALL, "depth": 1, "stem_convs": convs, "image_size": 32}
    model = awake(partial(make, pools=(True, False, True, True), **options), awaken)
    units = model.stem.units()
    assert [role for role, _ in units][:2] == ["first", "main" if convs == 2 else units[1].role]
    assert len(units) == convs + 1 and model.num_tokens == 16
    assert units[0].unit.reads == "real" and units[1].unit.reads == "spikes"
    x = pictures(model)
    tokens, _ = model.stem_tokens(model.time_first(x))
    assert tokens.shape[2:] == (16, 32) and model(x).std() > 0
    assert torch.allclose(compact(model)(x), model(x), rtol=0, atol=1e-9)
    assert check_model(model).missing == []


@pytest.mark.parametrize("make", [QKFormer, MaxFormer])
@pytest.mark.parametrize("layout", ["cifar", "dvs", "imagenet"])
def test_embeddings_of_one_convolution_have_the_same_tokens_and_units_that_fold(
    make: Any, layout: str, awaken: Any
) -> None:
    """One for each stage, without a shortcut, also where pictures are halved several times."""
    options: dict[str, Any] = {**QK, "layout": layout, "embed_dim": 64, "image_size": 32}
    options |= {"mixers": (3,)} if make is MaxFormer else {}
    model = awake(partial(make, stem_convs=1, **options), awaken)
    roles, units = zip(*model.stem.units(), strict=True)
    whole = make(**options)
    assert roles == ("first", "main") and [u.conv.out_channels for u in units] == [32, 64]
    assert model.num_tokens == whole.num_tokens and model.stem.stride == whole.stem.stride
    assert units[0].reads == "real" and units[1].reads != "real"
    x = pictures(model)
    tokens, _ = model.stem_tokens(model.time_first(x))
    assert tokens.shape[2:] == (whole.num_tokens, 64) and model(x).std() > 0
    assert make is MaxFormer or set(tokens.unique().tolist()) == {0, 1}
    assert torch.allclose(compact(model)(x), model(x), rtol=0, atol=1e-9)
    assert check_model(model).missing == []
    stream = Stream(model)
    steps = torch.cat([stream.push(x) for _ in range(T)], 1)
    assert torch.allclose(steps, model(x), rtol=0, atol=1e-9)
    model.stem.set_activation("heaviside")
    assert model(x).isfinite().all()


# -- attention kinds and residuals of the encoder --------------------------------------------


@pytest.mark.parametrize("residual", ["add", "iand", "or", "ms"])
@pytest.mark.parametrize("kind", ["ssa", "linear", "random", "qk", "sdsa"])
def test_every_attention_runs_in_every_residual(kind: str, residual: str, awaken) -> None:
    options = {"attention": kind, "block_residual": residual, "residual": "or", "depth": 1}
    model = awake(lambda: Spikformer(**{**SMALL, **options}), awaken)
    logits = model(pictures(model))
    assert logits.std() > 0
    found: list[Tensor] = []
    model.blocks[0].register_forward_hook(lambda m, x, out: found.append(out))
    model(pictures(model))
    values = set(found[0].unique().tolist())
    expected = {"add": {0, 1, 2, 3}, "iand": {0, 1}, "or": {0, 1}}.get(residual)
    assert expected is None or values <= expected
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[3] for n in frozen} == ({"q", "k"} if kind == "random" else set())
    if kind == "linear":
        model.blocks[0].attn.linear = False
        assert torch.equal(model(pictures(model)), logits)


# -- published checkpoints -------------------------------------------------------------------


def encoder(theirs: str, ours: str, roles: str, attn: str, mlp: str) -> dict[str, str]:
    """Units of a block in the published code, by our names."""
    names = {f"{theirs}.{attn}.{role}": f"{ours}.attn.{role}" for role in (*roles, "proj")}
    return names | {f"{theirs}.mlp.{mlp}{i}": f"{ours}.mlp.fc{i}" for i in (1, 2)}


def tokenizer(part: str) -> dict[str, str]:
    """Units of the published Spikingformers, by our names."""
    numbers = "01234" if part == "block" else ("", *"1234")
    places = [*(f"stem.stages.{i}" for i in range(4)), "stem.last"]
    names = {f"patch_embed.{part}{n}": ours for n, ours in zip(numbers, places, strict=True)}
    for i in range(2):
        names |= encoder(f"block.{i}", f"blocks.{i}", "qkv", "attn", "mlp")
    return names


def membrane() -> dict[str, str]:
    """Units of the published Spike-Driven Transformers, by our names; # is where a number goes."""
    places = [*(f"stem.stages.{i}" for i in range(3)), "stem.last"]
    numbers = ("", "1", "2", "3")
    names = {f"patch_embed.proj#{n}": ours for n, ours in zip(numbers, places, strict=True)}
    names["patch_embed.rpe"] = "stem.rpe"
    for i in range(2):
        names |= encoder(f"block.{i}", f"blocks.{i}", "qkv", "attn", "fc")
    return names


def stages(layout: str) -> dict[str, str]:
    """Units of the published QKFormers, by our names."""
    names: dict[str, str] = {}
    numbers = {"cifar": (["", "1"], ["3", "4"]), "dvs": (["", "1", "2", "3"], ["", "4"]),
               "imagenet": (["", "1", "2"], ["3", "4"])}[layout]  # fmt: skip
    for s in range(2):
        place = f"stem.embeddings.{s}"
        for i, number in enumerate(numbers[min(s, 1)]):
            names[f"patch_embed{s + 1}.proj{number}"] = f"{place}.stages.{i}"
        names[f"patch_embed{s + 1}.proj_res"] = f"{place}.shortcut"
    mlp, last = ("fc", "attn") if layout == "imagenet" else ("mlp", "ssa")
    names |= encoder("stage1.0", "stem.stages.0.0", "qk", "tssa", mlp)
    return names | encoder("stage2.0", "blocks.0", "qkv", last, mlp)


def maxima(layout: str) -> dict[str, str]:
    """Units of the published Max-Formers, by our names."""
    paths = {
        "cifar": ("proj", "embed1.embed", "embed2.embed"),
        "dvs": ("proj", *(f"max_embed{i}.embed" for i in (1, 2, 3)), "embed1.embed"),
        "imagenet": tuple(f"embed{i}.embed" for i in (1, 2, 3, 4)),
    }
    later, names = ("max_embed1.embed", "embed1.embed", "max_embed2.embed"), dict[str, str]()
    for s, path in enumerate((paths[layout], later)):
        for i, unit in enumerate(path):
            place = "shortcut" if i + 1 == len(path) else f"stages.{i}"
            names[f"patch_embed{s + 1}.{unit}"] = f"stem.embeddings.{s}.{place}"
    if layout != "cifar":
        names["stage1.0.mixer"] = "stem.stages.0.0.attn.proj"
    names |= {f"stage1.0.mlp.fc{i}": f"stem.stages.0.0.mlp.fc{i}" for i in (1, 2)}
    return names | encoder("stage2.0", "blocks.0", "qkv", "attn", "fc")


KINDS = ["block", "proj", "sdt", "cifar", "dvs", "imagenet"]


@pytest.mark.parametrize("kind", [*KINDS, *(f"max, {k}" for k in ("cifar", "dvs", "imagenet"))])
def test_every_live_tensor_of_a_published_checkpoint_finds_its_place(
    kind: str, tmp_path: Path
) -> None:
    tokens = kind in ("block", "proj", "sdt")
    make = PLAIN["spikingformer" if kind in ("block", "proj") else kind][0]
    largest, _, layout = kind.rpartition(", ")
    staged = maxima if largest else stages
    units = membrane() if kind == "sdt" else tokenizer(kind) if tokens else staged(layout)
    model: Any = make()
    state = {n: torch.rand(v.shape).to(v.dtype) for n, v in model.state_dict().items()}
    theirs = {n: state[n] for n in ("head.weight", "head.bias")}
    for name, ours in units.items():
        for leaf, value in ((n.removeprefix(f"{ours}."), v) for n, v in state.items()
                            if n.startswith(f"{ours}.")):  # fmt: skip
            part, _, last = leaf.partition(".")
            axes = (1, 1) if ".mlp." in name else (1,)
            value = value.reshape(*value.shape, *axes) if leaf == "linear.weight" else value
            name, _, number = name.partition("#")
            place = f"{name}_{'bn' if part == 'norm' else 'conv'}{number}.{last}"
            own = "mixer.conv5" if layout == "imagenet" else "mixer.conv"
            place = place.replace("mixer_conv", own).replace("mixer_bn", f"{own}_bn")
            theirs[place] = value
            name = f"{name}#{number}"
    lost = [f"block.{i}.{n}.weight" for i in range(2)
            for n in (["attn.talking_heads"] if kind == "sdt" else ["norm1", "norm2"])]  # fmt: skip
    theirs |= {name: torch.ones(2) for name in lost} if tokens else {}
    found = translate(theirs, model.published)
    assert found.tensors.keys() == state.keys()
    assert found.dropped == (lost if tokens else [])
    assert all(torch.equal(found.tensors[n], v) for n, v in state.items())
    about = {"embed_dim": model.embed_dim, "mlp_ratio": 2.0, "in_channels": 3, "num_classes": K}
    about |= {"depth": 2} if tokens else {"depths": (1, 1), "layout": layout}
    about |= {"mixers": ({"cifar": 0, "dvs": 3, "imagenet": 7}[layout],)} if largest else {}
    assert found.sizes == about
    torch.save({"state_dict": theirs}, tmp_path / "file.pth")
    name = {"sdt": "sdt_cifar_2_256"}.get(kind, ("qkformer_cifar", "spikingformer_cifar")[tokens])
    name = "maxformer_cifar" if largest else name
    options = {"num_heads": model.num_heads, "image_size": model.image_size[0], "T": T}
    said = convert(tmp_path / "file.pth", name, tmp_path / "out", **options)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in said
    again = model_from_ticket(Ticket.load(tmp_path / "out"))
    assert all(torch.equal(again.state_dict()[n], v) for n, v in state.items())


def meta() -> dict[str, str]:
    """Layers of the published E-SpikeFormers, by our names."""
    names = {}
    separable = ("pwconv1", "dwconv", "pwconv2")
    for i, number in enumerate(("1_1", "1_2", "2", "3", "4")):
        for kind, layer in (("conv", "conv"), ("bn", "norm")):
            names[f"downsample{number}.encode_{kind}"] = f"stem.downs.{i}.units.0.{layer}"
    for stage, place in {"1_1": "0.0", "1_2": "1.0", "2_1": "2.0", "2_2": "2.1"}.items():
        ours = f"stem.stages.{place}.branches"
        for i, layer in enumerate(("conv", "norm")):
            for j, name in enumerate(separable):
                names[f"ConvBlock{stage}.0.Conv.{name}.{i}"] = f"{ours}.0.units.{j}.{layer}"
            for j in range(2):
                names[f"ConvBlock{stage}.0.{('conv', 'bn')[i]}{j + 1}"] = (
                    f"{ours}.1.units.{j}.{layer}"
                )
    for block, place in {"block3": "stem.stages.3.0", "block4": "blocks.0"}.items():
        for i, layer in enumerate(("linear", "norm")):
            for j, name in enumerate(separable):
                conv = ("conv", "norm")[i]
                names[f"{block}.0.conv.{name}.{i}"] = f"{place}.branches.0.units.{j}.{conv}"
            for role in ("q", "k", "v", "proj"):
                ours = f"{place}.branches.1.units.0.attn.{role}.{layer}"
                names[f"{block}.0.attn.{role}_conv.{i}"] = ours
            for j in range(2):
                ours = f"{place}.branches.2.units.{j}.{layer}"
                names[f"{block}.0.mlp.fc{j + 1}_{('conv', 'bn')[i]}"] = ours
    return names | {"head": "head"}


def test_a_published_network_of_quarters_gives_its_logits_in_whole_numbers(
    awaken: Any, tmp_path: Path
) -> None:
    model = awake(PLAIN["e-spikeformer"][0], awaken).float().double()
    plain, theirs, state = Plain(model), {}, model.state_dict()
    for name, ours in meta().items():
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            value = state.get(f"{ours}.{leaf}")
            if value is None:
                continue
            if not ours.startswith(("head", "stem.downs.0.")):
                power = {"running_mean": 1, "running_var": 2}.get(leaf, 0)
                power = 1 if leaf == "bias" and not ours.endswith("norm") else power
                value = value / 4**power if power else value
            axes = (1, 1) if ".attn." in name else (1,)
            matrix = ours.endswith("linear") and leaf == "weight"
            value = value.reshape(*value.shape, *axes) if matrix else value
            theirs[f"{name}.{leaf}"] = value
    assert len(theirs) == len(state)
    torch.save({"model": theirs}, tmp_path / "file.pth")
    options = {"num_heads": model.num_heads, "image_size": 48, "T": T}
    convert(tmp_path / "file.pth", "sdt3_imagenet_t", tmp_path / "out", **options)
    again = model_from_ticket(Ticket.load(tmp_path / "out"))
    assert all(torch.equal(again.state_dict()[n].double(), v) for n, v in state.items())
    x = pictures(model)
    expected = e_spikeformer(plain, x[None].expand(T, -1, -1, -1, -1), model.num_heads)
    assert torch.allclose(again.double()(x).transpose(0, 1), expected, rtol=0, atol=1e-9)


def test_convolutions_between_normalisations_are_one_convolution(awaken: Any) -> None:
    """Of spikes alone, the maps' edges included; and the whole network, folded."""
    model = awake(PLAIN["meta-spikeformer"][0], awaken)
    unit = next(m for m in model.modules() if isinstance(m, RepConv))
    rows = (torch.rand(T, B, 3, 4, 16) < 0.3).double()
    folded, seen = unit.folded(), []
    hook = unit.act.register_forward_hook(lambda m, x, out: seen.append(x[0]))
    unit(rows, T)
    hook.remove()
    maps = F.conv2d(rows.flatten(0, 1).permute(0, 3, 1, 2), folded.weight, folded.bias, padding=1)
    current = maps.permute(0, 2, 3, 1).unflatten(0, (T, B))
    assert torch.allclose(seen[0], current, rtol=0, atol=1e-12)
    x = pictures(model)
    assert torch.allclose(compact(model)(x), model(x), rtol=0, atol=1e-9)
    assert not any(isinstance(m, RepConv) for m in compact(model).modules())


_LEAVES = ("weight", "bias")


def reps() -> dict[str, str]:
    """Layers of the published Meta-SpikeFormers, by our names."""
    names = {n: ours.replace("branches.2", "branches.1") for n, ours in meta().items()
             if ".Conv." not in n and ".conv." not in n and ".attn." not in n}  # fmt: skip
    for stage, place in {"1_1": "0.0", "1_2": "1.0", "2_1": "2.0", "2_2": "2.1"}.items():
        units = {"pwconv1": "0.conv", "bn1": "0.norm", "dwconv": "1.conv", "pwconv2": "2.conv",
                 "bn2": "2.norm"}  # fmt: skip
        names |= {f"ConvBlock{stage}.0.Conv.{n}": f"stem.stages.{place}.branches.0.units.{unit}"
                  for n, unit in units.items()}  # fmt: skip
    parts = {"0.body.0": "first", "0.body.1.bn": "first_norm", "0.body.2.0": "depthwise",
             "0.body.2.1": "second", "0.body.2.2": "second_norm", "1": "norm"}  # fmt: skip
    for block, place in {"block3": "stem.stages.3.0", "block4": "blocks.0"}.items():
        for role in ("q", "k", "v", "proj"):
            ours = f"{place}.branches.0.units.0.{role}"
            names |= {f"{block}.0.attn.{role}_conv.{n}": f"{ours}.{p}" for n, p in parts.items()}
    return names


def test_every_tensor_of_a_published_meta_spikeformer_finds_its_place(tmp_path: Path) -> None:
    model: Any = PLAIN["meta-spikeformer"][0]()
    state = {n: torch.rand(v.shape).to(v.dtype) for n, v in model.state_dict().items()}
    theirs = {}
    for name, ours in reps().items():
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if (value := state.get(f"{ours}.{leaf}")) is not None:
                matrix = ours.endswith("linear") and leaf == "weight"
                theirs[f"{name}.{leaf}"] = value[..., None] if matrix else value
    assert len(theirs) == len(state)
    torch.save(theirs, tmp_path / "file.pth")
    options = {"num_heads": model.num_heads, "image_size": 48, "T": T}
    convert(tmp_path / "file.pth", "sdt2_imagenet_8_384", tmp_path / "out", **options)
    again = model_from_ticket(Ticket.load(tmp_path / "out"))
    assert all(torch.equal(again.state_dict()[n], v) for n, v in state.items())
    taught = {f"head_kd.{leaf}": torch.rand_like(theirs[f"head.{leaf}"]) for leaf in _LEAVES}
    found = translate({**theirs, **taught}, model.published)
    assert found.tensors.keys() == state.keys() and not found.dropped
    for leaf in _LEAVES:
        mean = (theirs[f"head.{leaf}"] + taught[f"head_kd.{leaf}"]) / 2
        assert torch.equal(found.tensors[f"head.{leaf}"], mean)
    del taught["head_kd.bias"]
    with pytest.raises(CheckpointError, match=r"two heads of one size; found .*head_kd.bias None"):
        translate({**theirs, **taught}, model.published)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("8_384", 31_814_864), ("8_512", 55_991_248), ("8_768", 124_702_160)],
)
def test_a_head_that_a_teacher_trained_is_as_large_as_the_other(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(f"sdt2_imagenet_{name}")
    assert sum(p.numel() for part in (model, model.head) for p in part.parameters()) == parameters


def test_two_published_heads_become_one_of_their_mean(awaken: Any, tmp_path: Path) -> None:
    model = awake(PLAIN["bestformer"][0], awaken).float()
    state, theirs = model.state_dict(), dict[str, Tensor]()
    for name, ours in tokenizer("block").items():
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            for part in ("linear", "conv", "norm"):
                value = state.get(f"{ours}.{part}.{leaf}")
                if value is not None:
                    axes = (1, 1) if ".mlp." in name else (1,)
                    value = value.reshape(*value.shape, *axes) if part == "linear" else value
                    theirs[f"{name}_{'bn' if part == 'norm' else 'conv'}.{leaf}"] = value
    for i in range(2):
        gains = state[f"blocks.{i}.attn.gains"].copy_(torch.rand(T * 2))
        theirs[f"block.{i}.attn.lambda_attn"] = gains.view(T, 1, 2, 1, 1)
    heads = {f"head{n}.{leaf}": torch.randn(K, *size) for n in ("", 2)
             for leaf, size in (("weight", (32,)), ("bias", ()))}  # fmt: skip
    torch.save({"model": {**theirs, **heads}}, tmp_path / "file.pth")
    convert(tmp_path / "file.pth", "bestformer_cifar", tmp_path / "out", image_size=16)
    again: Any = model_from_ticket(Ticket.load(tmp_path / "out"))
    assert (again.T, again.num_heads, again.embed_dim) == (T, 2, 32)
    assert all(torch.equal(v, state[n]) for n, v in again.state_dict().items() if "head" not in n)
    x = pictures(model).float()
    first, second = again.forward_head(again.forward_features(x), True).chunk(2, -1)
    expected = F.linear(first, heads["head.weight"], heads["head.bias"])
    expected = (expected + F.linear(second, heads["head2.weight"], heads["head2.bias"])) / 2
    assert torch.allclose(again(x), expected, rtol=0, atol=1e-5)
    del heads["head2.bias"]
    with pytest.raises(CheckpointError, match=r"two heads of one size; found .*head2.bias None"):
        translate({**theirs, **heads}, model.published)


def test_a_published_file_is_told_by_its_md5(tmp_path: Path, monkeypatch: Any) -> None:
    model: Any = PLAIN["cifar"][0]()
    theirs = {"head.weight": model.state_dict()["head.weight"]}
    for name, ours in stages("cifar").items():
        for leaf, value in ((n.removeprefix(f"{ours}."), v) for n, v in model.state_dict().items()
                            if n.startswith(f"{ours}.")):  # fmt: skip
            part, _, last = leaf.partition(".")
            theirs[f"{name}_{'bn' if part == 'norm' else 'conv'}.{last}"] = value
    theirs["head.bias"] = model.state_dict()["head.bias"]
    torch.save(theirs, tmp_path / "file.pth")
    options = {"num_heads": 8, "image_size": 16, "T": T}
    said = convert(tmp_path / "file.pth", "qkformer_cifar", tmp_path / "out", **options)
    md5 = hashlib.md5((tmp_path / "file.pth").read_bytes(), usedforsecurity=False).hexdigest()
    assert f"md5       {md5}, of none of the published files" in said
    monkeypatch.setitem(QKFORMER.md5, md5, "QKFormer-4-384")
    said = convert(tmp_path / "file.pth", "qkformer_cifar", tmp_path / "again", **options)
    assert f"md5       {md5}, QKFormer-4-384\n" in said


def test_a_block_of_two_streams_is_reversible(awaken: Any) -> None:
    model = awake(PLAIN["bestformer"][0], awaken)
    block, seen = model.blocks[1], dict[str, Tensor]()
    block.register_forward_hook(lambda m, args, out: seen.update(given=args[0], out=out))
    model(pictures(model))
    a, b = seen["out"].chunk(2, -1)
    b = 2 * (b - block.mlp(block.before_mlp_act(a, T), T)) - a
    a = 2 * (a - block.attn(block.before_attn_act(b, T), T)) - b
    assert torch.allclose(torch.cat((a, b), -1), seen["given"], rtol=0, atol=1e-9)


def test_one_bit_a_weight_is_what_runs_what_is_counted_and_what_is_exported(
    awaken: Any, tmp_path: Path
) -> None:
    """All but the first convolution and the head; also under a mask, and from lists."""
    options = {**SMALL, "depth": 2, "attn_scale": 0.5}
    model = awake(partial(Bestformer, **options), awaken).float()
    balanced = [(f"{n}.weight", m.weight) for n, m in model.named_modules() if hasattr(m, "form")]
    dense = Mask({name: torch.ones_like(value, dtype=torch.bool) for name, value in balanced})
    sparse = Mask.from_scores({n: model.state_dict()[n].abs() for n in dense}, 0.8, "layer")
    for mask in (dense, sparse):
        mask.apply_(model)
        x = pictures(model).float()
        wanted, ledger = model(x), build_ledger(model, [x])
        assert set(ledger["binary_layers"]) == {n.removesuffix(".weight") for n in dense}
        about = {"model": {"name": "bestformer_toy", "args": options}, "search": "random"}
        ticket = Ticket.of(model, mask, about)
        done = export_ticket(ticket, tmp_path / f"{mask.removed}")
        again = load_exported(done.folder, plain=True)
        assert torch.equal(again(x), wanted) and done.check.compact_gap_float64 < 1e-9
        for name, kept in mask.items():
            assert set(again.state_dict()[name][kept].unique().tolist()) == {-1, 1}
            assert not again.state_dict()[name][~kept].any()
        fast = compact(again.double()).use_lists("always")
        assert torch.allclose(fast(x.double()), again(x.double()), rtol=0, atol=1e-9)


TOYS = ("spikformer", "spikingformer", "bestformer", "qkformer", "sdt", "maxformer", "sdt2", "sdt3")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("sdt2", "qkformer") else n for n in TOYS],
)
def test_a_program_for_other_runtimes_is_exact(name: str, awaken: Any, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"image_size": 16, "embed_dim": 16, "T": 2}
    sizes |= {"depths": (1, 1)} if name in ("qkformer", "maxformer") else {}
    sizes |= {"mixers": (3,)} if name == "maxformer" else {}
    sizes |= {"depth": 1} if name in ("spikformer", "spikingformer", "bestformer", "sdt") else {}
    sizes |= {"widths": (4, 8, 8)} if name in ("sdt2", "sdt3") else {}
    model = awake(partial(create_model, f"{name}_toy", **sizes), awaken)
    assert to_pt2(compact(model), tmp_path / "a.pt2") <= 1e-9


def test_feature_maps_are_the_means_over_time_of_the_last_layer_of_each_size(awaken: Any) -> None:
    model = awake(PLAIN["cifar"][0], awaken)
    maps, seen = FeatureMaps(model), list[Tensor]()
    assert maps.feature_info.module_name() == ["stem.stages.0.0", "blocks.0"]
    model.blocks[0].register_forward_hook(lambda m, args, out: seen.append(out))
    first, last = maps(pictures(model))
    assert first.shape == (4, 16, 16, 16) and last.shape == (4, 32, 8, 8)
    assert torch.equal(last.flatten(2), seen[0].mean(0).transpose(1, 2))
    model.set_patch(PatchSelect(make_score("rate", 32, K, 2), 0.5))
    for wrong in (model, nn.Linear(1, 1)):
        with pytest.raises(ConfigError, match="features_only=True is not allowed"):
            FeatureMaps(wrong)


def test_a_step_beyond_those_trained_takes_the_last_gains(awaken: Any) -> None:
    model = awake(PLAIN["bestformer"][0], awaken)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.gains.copy_(torch.rand(T * 2))
    x, stream = pictures(model), Stream(model)
    given = torch.cat([stream.push(x) for _ in range(T + 2)], 1)
    model.T = T + 2
    assert torch.allclose(given, model(x), rtol=0, atol=1e-12)


def test_a_checkpoint_of_another_family_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no name of a published QKFormer"):
        translate({"patch_embed.block0_conv.weight": torch.zeros(4, 3, 3, 3)}, QKFORMER)
    with pytest.raises(CheckpointError, match="no published Spikingformer; missing"):
        translate({"head.weight": torch.zeros(7, 32)}, SPIKINGFORMER)
