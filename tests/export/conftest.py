"""Tickets whose every layer fires, small enough to pack thousands of times."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeformer_lt import Mask, Ticket, create_model
from spikeformer_lt.bundle import staged
from spikeformer_lt.export import file
from spikeformer_lt.layers.patches import PatchSelect, make_score
from spikeformer_lt.layers.subnet import SubnetConv2d, collapse, get_masks, rankings, set_masks

_path = Path(__file__).resolve().parents[1] / "layers" / "conftest.py"
_spec = importlib.util.spec_from_file_location("layers_conftest", _path)
assert _spec is not None and _spec.loader is not None
_layers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_layers)
awaken, outputs = _layers.awaken, _layers.outputs

SMALL = {"image_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2.0, "T": 3}
PATCHES = {"score": "rate", "sparsity": 0.3, "space": "token", "rescale": False, "ties": "hash"}


def pictures(model: Any, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, model.T) if model.in_channels == 2 else (batch,)
    return torch.rand(*shape, model.in_channels, *model.image_size, generator=generator)


def make_net(
    sparsity: float = 0.5,
    activation: str = "lif",
    residual: str = "add",
    patches: float = 0.3,
    score: str = "rate",
    **options: Any,
) -> tuple[Any, Mask, Ticket]:
    """A MultiSp network in eval mode, its mask and its ticket."""
    torch.manual_seed(3)
    args = {**SMALL, "attn_scale": 0.25, **options}
    model: Any = create_model("spikformer_toy", **args)
    model.conv_pep.set_activation(activation, residual)
    for i, (_, unit) in enumerate(model.conv_pep.units()):
        unit.conv = SubnetConv2d(unit.conv, "weights", binary=i > 0, per_filter=i == 2)
    set_masks(model, Mask.from_scores(rankings(model), sparsity, scope="layer"))
    if patches:
        kind = make_score(score, model.embed_dim, model.num_classes, model.num_heads)
        model.patch = PatchSelect(kind, patches)
    _layers._awaken(model, lambda m: m(pictures(m)))
    mask = get_masks(model)
    collapse(model).eval()
    chosen = {**PATCHES, "score": score, "sparsity": patches}
    config = {"activation": {"kind": activation, "residual": residual}, "patches": chosen}
    provenance = {
        "search": "multisp",
        "config": config,
        "model": {"name": "spikformer_toy", "args": args},
        "run_id": "toy-1",
    }
    return model, mask, Ticket.of(model, mask, provenance)


CNNS: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg": ("spiking_vgg_toy", {"image_size": 16, "T": 3}),
    "vgg of events": (
        "spiking_vgg16",
        {"layers": (8, "M", 12), "in_channels": 2, "image_size": 15, "T": 3, "hidden": 9},
    ),
    "resnet": ("spiking_resnet_toy", {"image_size": 16, "T": 3, "hidden": 9}),
    "resnet of events": ("spiking_resnet_toy", {"image_size": 16, "T": 3, "in_channels": 2}),
}


def make_cnn(name: str) -> Any:
    """A CNN in eval mode whose every layer fires."""
    torch.manual_seed(3)
    kind, sizes = CNNS[name]
    model: Any = create_model(kind, **sizes)
    torch.nn.init.normal_(model.head.weight, std=0.5)
    _layers._awaken(model, lambda m: m(pictures(m, 8)))
    return model.eval()


@pytest.fixture
def write_packed() -> Callable[..., None]:
    """Give the function that writes an export without a check."""

    def write(folder: Path, ticket: Ticket, *args: Any, **options: Any) -> None:
        with staged(folder, file.EXPORT) as stage:
            file.write_packed(stage, ticket, *args, **options)

    return write


@pytest.fixture
def cnn() -> Callable[[str], Any]:
    """Give the function that makes a CNN by a name of `CNNS`."""
    return make_cnn


@pytest.fixture
def net() -> Callable[..., tuple[Any, Mask, Ticket]]:
    """Give the function that makes a network, its mask and its ticket."""
    return make_net


@pytest.fixture
def ticket() -> Ticket:
    """A MultiSp ticket."""
    return make_net()[2]


@pytest.fixture
def images() -> Callable[..., torch.Tensor]:
    """Give the function that makes inputs for a network."""
    return pictures
