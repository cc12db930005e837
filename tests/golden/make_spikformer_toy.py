"""Make spikformer_toy.json: logits and gradients of four small Spikformers, in float64.

python tests/golden/make_spikformer_toy.py

Weights and inputs come from a hash of their names, not from a generator whose stream a release of
torch or NumPy may change. Written anew only when the network is meant to compute something else.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spikeformer_lt.layers.patches import PatchSelect, make_score
from spikeformer_lt.layers.subnet import SubnetConv2d, rankings, set_masks
from spikeformer_lt.mask import Mask
from spikeformer_lt.models.spikformer import Spikformer

PATH = Path(__file__).with_name("spikformer_toy.json")
TOLERANCE = 1e-9
BATCH = 3
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "num_classes": 5}
CASES: dict[str, dict[str, Any]] = {
    "static image": {"model": {"T": 4, "image_size": 16}},
    "event frames": {
        "model": {"T": 3, "image_size": 32, "in_channels": 2, "qkv_bias": False}
        | {"pools": (True, True, True, False), "tau": 1.5, "surrogate": "atan"},
        "frames": True,
        "shift": -0.5,
        "products": -0.45,
    },
    "multisp": {
        "model": {"T": 4, "image_size": 16, "activation": "heaviside", "residual": "or"},
        "patches": 0.314,
        "weights": 0.5,
        "products": -0.3,
    },
    "sign, pooled first": {
        "model": {"T": 2, "image_size": 16, "activation": "sign", "residual": "iand"}
        | {"pool_before_act": True, "linear_bias": False},
        "shift": -2.1,
        "products": -0.35,
    },
}


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Numbers in [low, high) by SplitMix64 of (name, position)."""
    count = max(1, torch.Size(shape).numel())
    x = torch.arange(count) * -7046029254386353131 + zlib.crc32(name.encode()) * 0x10001
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    unit = ((x >> 11) & ((1 << 53) - 1)).double() / 2.0**53
    return (low + (high - low) * unit).view(shape)


def build(case: dict[str, Any]) -> tuple[Spikformer, Tensor]:
    """The network of a case, every layer of it firing, and its input."""
    model = Spikformer(**{**SMALL, "attn_scale": 0.25, **case["model"]}).double()
    side, channels = model.image_size[0], model.in_channels
    steps = (model.T,) if case.get("frames") else ()
    x = uniform("input", (BATCH, *steps, channels, side, side), 0, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            bound = (3.0 / parameter[0].numel()) ** 0.5
            parameter.copy_(uniform(name, tuple(parameter.shape), -bound, bound))
        for name, norm in model.named_modules():
            if isinstance(norm, _BatchNorm):
                products = name.endswith(("q.norm", "k.norm", "v.norm"))
                stem = name.startswith("conv_pep")
                low = 0.8 + case.get("products", 0) if products else 0.2
                low += case.get("shift", 0) if stem else 0
                size = (norm.num_features,)
                norm.weight.copy_(uniform(f"{name} gain", size, 1.2, 1.6))
                norm.bias.copy_(uniform(f"{name} shift", size, low, low + 0.3))
                norm.momentum = 1.0
        if case.get("weights"):
            for i, (_, unit) in enumerate(model.conv_pep.units()):
                unit.conv = SubnetConv2d(unit.conv, "scores")
                shape = tuple(unit.conv.weight.shape)
                unit.conv.scores.copy_(uniform(f"scores {i}", shape, -1, 1))
            set_masks(model, Mask.from_scores(rankings(model), case["weights"], scope="layer"))
        if case.get("patches"):
            model.patch = PatchSelect(make_score("rate", 32, 5, 4), case["patches"])
        model.train()(x)  # one batch sets the running statistics
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.1
    return model.eval(), x


def compute(case: dict[str, Any]) -> dict[str, Any]:
    """Logits and firing rates in evaluation, loss and gradients of a training step."""
    model, x = build(case)
    rates: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, args, out, name=name: rates.update({name: (out > 0).double().mean().item()})
        )
        for name, module in model.named_modules()
        if name.split(".")[-1] in ("act", "attn_act")
    ]
    with torch.no_grad():
        logits = model(x)
    for hook in hooks:
        hook.remove()
    loss = nn.functional.cross_entropy(model.train()(x.flip(0)).mean(1), torch.arange(BATCH))
    loss.backward()
    gradients = {
        name: parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.ndim > 1
    }
    return {
        "logits": logits.tolist(),
        "firing_rates": rates,
        "loss": loss.item(),
        "gradient_norms": gradients,
    }


def main() -> None:
    """Write the file."""
    about = {
        "about": "float64 logits [B, T, K], firing rates, training loss and gradient norms",
        "command": "python tests/golden/make_spikformer_toy.py",
        "torch": torch.__version__.partition("+")[0],
        "tolerance": TOLERANCE,
    }
    content = {**about, "cases": {name: compute(case) for name, case in CASES.items()}}
    PATH.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
