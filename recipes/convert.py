"""Turn the checkpoint of a published transformer into a ticket, which evaluates and exports.

python recipes/convert.py --source checkpoint.pth.tar --model spikformer_cifar --out converted/
python recipes/convert.py --source dvs.pth --model spikformer_dvs --T 10 --out converted/
python recipes/evaluate.py --run converted/ --data.name cifar10

Nothing in a pickle is run. Widths, depth and classes are read from the tensors; what no tensor
tells (T, heads, image size, scale) is the named model's own unless given.
"""

from dataclasses import asdict, dataclass

from spikeformer_lt.config import run_recipe

UNTOLD = ("T", "num_heads", "image_size", "attn_scale")


@dataclass(frozen=True)
class Convert:
    """Turn the checkpoint of a published transformer into a folder of ours."""

    NEEDS = ("source", "out")
    source: str = ""
    """The checkpoint: .pth, .pth.tar or .safetensors."""
    model: str = "spikformer_cifar"
    """The model that it is a checkpoint of, of `spikeformer-lt ls models`."""
    out: str = ""
    """New folder for the ticket, which removes no weight, and its config.json."""
    overwrite: bool = False
    """Replace a folder that an earlier call wrote, and no other."""
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
    from spikeformer_lt.models.spikformer_convert import convert

    chosen = {name: value for name in UNTOLD if (value := asdict(cfg)[name]) is not None}
    print(convert(cfg.source, cfg.model, cfg.out, cfg.ema, cfg.overwrite, **chosen))


if __name__ == "__main__":
    run_recipe(main, Convert)
