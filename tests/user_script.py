"""What a user of the library writes, in full: every line is type-checked and run by the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import spikeformer_lt as lt


def small_net() -> nn.Module:
    """A network that knows nothing of this library."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10))


def main(folder: Path) -> float:
    """Train, compare, export, predict; find a ticket in another network; return the accuracy."""
    small = {
        "data.limit-train": 64,
        "data.limit-test": 40,
        "data.image-size": 16,
        "train.cpu": True,
    }
    toy = {**small, "model.embed-dim": 16}
    run: lt.Run = lt.train("multisp", "spikformer_toy", "digits", T=2, epochs=1, options=toy,
                           out=folder / "multisp")  # fmt: skip
    dense = lt.train(model="spikformer_toy", data="digits", T=2, epochs=1, seed=1, options=toy,
                     out=folder / "dense")  # fmt: skip
    print(run, run.card)
    accuracy: float = run.evaluate("test").accuracy
    print(run.compare(dense).rows[0], lt.compare(folder / "dense", run).differences)
    print(run.export(folder / "packed").summary())
    net = lt.from_pretrained(folder / "packed")
    found: list[lt.Prediction] = net.predict(np.zeros((2, 16, 16, 3), np.uint8))
    print([one.label for one in found], run.predict(np.zeros((2, 16, 16, 3), np.uint8))[0].name)

    mine = small_net()
    ticket: lt.Ticket = lt.find("snip", mine, "digits", sparsity=0.9, out=folder / "mine",
                                options={**small, "snip.images": 32})  # fmt: skip
    mask: lt.Mask = ticket.mask
    print(f"{mask.sparsity:.2f}", lt.adapt(mine, images=torch.zeros(2, 3, 16, 16)).found)
    model: nn.Module = lt.create_model("spikformer_digits", pretrained=True)
    print(sum(p.numel() for p in model.parameters()), run.report["seed"], run.config["train"])
    return accuracy


if __name__ == "__main__":
    main(Path(sys.argv[1]))
