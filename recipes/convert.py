"""Turn a published Spikformer checkpoint into a folder of ours: model.safetensors and config.json.

python recipes/convert.py --source checkpoint.pth.tar --model spikformer_cifar --out converted/
python recipes/convert.py --source dvs.pth --model spikformer_dvs --T 10 --out converted/

Nothing in a pickle is run. Widths, depth and classes are read from the tensors; what no tensor
tells (T, heads, image size, scale) is the named model's own unless given.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spikeformer_lt.config import check, run_recipe

UNTOLD = ("T", "num_heads", "image_size", "attn_scale")


@dataclass(frozen=True)
class Convert:
    """Turn a published Spikformer checkpoint into a folder of ours."""

    source: str = ""
    """The checkpoint: .pth, .pth.tar or .safetensors."""
    model: str = "spikformer_cifar"
    """The registered model that it is a checkpoint of."""
    out: str = ""
    """Folder to write model.safetensors and config.json into."""
    ema: bool = False
    """Take the averaged weights (state_dict_ema) of a training checkpoint."""
    T: int | None = None
    """Time steps; None is the named model's own."""
    num_heads: int | None = None
    """Attention heads; None is the named model's own."""
    image_size: int | None = None
    """Side of the images, in pixels; None is the named model's own."""
    attn_scale: float | None = None
    """Factor of the attention sums; None is the named model's own."""


def main(cfg: Convert) -> None:
    """Read, rename, check against the model, write, and say what was done."""
    check(bool(cfg.source), "source", cfg.source, "the file of a published checkpoint")
    check(bool(cfg.out), "out", cfg.out, "a folder for the converted model")
    out = Path(cfg.out)
    taken = [n for n in ("model.safetensors", "config.json") if (out / n).exists()]
    check(not taken, "out", cfg.out, f"a new folder; it already holds {', '.join(taken)}")

    import torch

    from spikeformer_lt import create_model
    from spikeformer_lt.disk import sha256_of, write_atomic, write_tensors
    from spikeformer_lt.models.spikformer_convert import load_translated, read_original

    with torch.device("meta"):
        named: Any = create_model(cfg.model)
    published = hasattr(named, "translate")
    check(published, "model", cfg.model, "a model with published checkpoints, a Spikformer")
    tensors = read_original(cfg.source, cfg.ema)
    found = named.translate(tensors)
    chosen = {n: v for n in UNTOLD if (v := asdict(cfg)[n]) is not None}
    heads, dim = chosen.get("num_heads", named.num_heads), found.sizes["embed_dim"]
    rule = f"a divisor of the file's embed_dim={dim}; no tensor tells it, so give --num-heads"
    check(heads > 0 and dim % heads == 0, "num_heads", heads, rule)
    args = {**found.sizes, **chosen}
    model: Any = create_model(cfg.model, **args)
    load_translated(model, found.tensors)

    about = {
        "model": {"name": cfg.model, "args": args},
        "source": {"file": Path(cfg.source).name, "sha256": sha256_of(cfg.source)},
    }
    write_tensors(out / "model.safetensors", model.state_dict(), {"kind": "model", **about})
    write_atomic(out / "config.json", (json.dumps(about, indent=2) + "\n").encode())

    parameters = sum(p.numel() for p in model.parameters())
    own = [f"T={model.T}", f"num_heads={model.num_heads}", f"image_size={model.image_size}"]
    own += [f"attn_scale={model.blocks[0].attn.scale}"]
    print(f"read      {len(tensors)} tensors of {cfg.source}")
    print(f"told      {', '.join(f'{n}={v}' for n, v in found.sizes.items())}")
    print(f"not told  {', '.join(own)}: {', '.join(chosen) or 'none'} from the options")
    dead = f": {', '.join(found.dropped[:5])}" if found.dropped else ""
    print(f"dropped   {len(found.dropped)} tensors that the published code never reads{dead}")
    print(f"wrote     {parameters:,} parameters to {out / 'model.safetensors'}")


if __name__ == "__main__":
    run_recipe(main, Convert)
