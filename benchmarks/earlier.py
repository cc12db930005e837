"""The dense network of an earlier checkout, for `--before FOLDER` of other benchmarks.

It answers lines of its standard input: a JSON object of `model`, `file` (safetensors: the weights,
`images` of one batch), `threads` and `clock` makes the network, an empty line runs it once. With
`residual` that is the compact network, with `sizes` a training step under the masks in the file.
The answer to the first is its logits, or the loss, in float64, to the second the milliseconds.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import spikeformer_lt

# isort: split
import torch
from safetensors.torch import load_file

try:
    from spikeformer_lt.export.inference import compact
    from spikeformer_lt.runtime import keep_heap
except ImportError:  # as before its folders were merged
    from spikeformer_lt.export.compact import compact
    from spikeformer_lt.training.heap import keep_heap


def network(asked: dict[str, Any], weights: dict[str, torch.Tensor]) -> Any:
    """A network in eval mode, whose stream stays spikes unless the residual is "add"."""
    options = {"residual": asked["residual"]} if asked["model"].startswith("spikformer") else {}
    model = spikeformer_lt.create_model(asked["model"], num_classes=10, T=4, **options)
    model.load_state_dict(weights)
    if asked["residual"] != "add":
        kind: Any = type(model.blocks[0])

        def forward(self: Any, tokens: torch.Tensor, T: int) -> torch.Tensor:
            tokens = tokens * (1 - self.attn(tokens, T))
            return tokens * (1 - self.mlp(tokens, T))

        for block in model.blocks:
            block.__class__ = type("GatedBlock", (kind,), {"forward": forward})
    return model.eval()


def trained(asked: dict[str, Any], weights: dict[str, torch.Tensor]) -> tuple[Any, float]:
    """A training step whose masks hold gradients and weights, and the loss in float64 before it."""
    masks = {n.removeprefix("mask "): weights.pop(n) for n in [*weights] if n.startswith("mask ")}
    x, y = weights.pop("images"), weights.pop("labels")
    model = spikeformer_lt.create_model(asked["model"], num_classes=10, **asked["sizes"])
    model.load_state_dict(weights)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    masked = [(own, masks[n]) for n, own in model.named_parameters() if n in masks]
    kept = {own: mask.to(own.dtype) for own, mask in masked}

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x).mean(1), y).backward()
        for own, mask in kept.items():
            own.grad.mul_(mask)
        optimizer.step()
        with torch.no_grad():
            for own, mask in kept.items():
                own.mul_(mask)

    exact = copy.deepcopy(model).double()
    loss = torch.nn.functional.cross_entropy(exact(x[:2].double()).mean(1), y[:2])
    return step, float(loss.detach())


def main() -> None:
    """Answer until the input ends."""
    if not Path(spikeformer_lt.__file__).resolve().is_relative_to(Path.cwd().resolve()):
        sys.exit(f"{spikeformer_lt.__file__} is not of the checkout {Path.cwd()}")
    keep_heap()
    run, now = None, time.perf_counter
    for line in sys.stdin:
        if line.strip():
            asked = json.loads(line)
            weights = load_file(asked["file"])
            torch.set_num_threads(asked["threads"])
            now = time.process_time if asked["clock"] == "cpu" else time.perf_counter
            if "sizes" in asked:
                run, answer = trained(asked, weights)
            else:
                x = weights.pop("images")
                model = network(asked, weights)
                run = partial(compact(model), x)
                answer = compact(model.double())(x[:1].double()).flatten().tolist()
        else:
            start = now()
            run()
            answer = 1e3 * (now() - start)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
