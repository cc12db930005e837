"""The dense compact network of an earlier checkout, for `sparsity_clock.py --before FOLDER`.

It answers lines of its standard input: a JSON object of `model`, `residual`, `file` (safetensors:
the weights, `images` of one batch), `threads` and `clock` makes the network, an empty line runs it
once. The answer to the first is its logits in float64, to the second the milliseconds.
"""

from __future__ import annotations

import json
import sys
import time
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


def main() -> None:
    """Answer until the input ends."""
    if not Path(spikeformer_lt.__file__).resolve().is_relative_to(Path.cwd().resolve()):
        sys.exit(f"{spikeformer_lt.__file__} is not of the checkout {Path.cwd()}")
    keep_heap()
    net, x, now = None, None, time.perf_counter
    for line in sys.stdin:
        if line.strip():
            asked = json.loads(line)
            weights = load_file(asked["file"])
            x = weights.pop("images")
            torch.set_num_threads(asked["threads"])
            now = time.process_time if asked["clock"] == "cpu" else time.perf_counter
            model = network(asked, weights)
            net = compact(model)
            answer = compact(model.double())(x[:1].double()).flatten().tolist()
        else:
            start = now()
            net(x)
            answer = 1e3 * (now() - start)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
