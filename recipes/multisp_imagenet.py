"""Train a spiking transformer into a MultiSp ticket on ImageNet, on several GPUs.

torchrun --nproc_per_node 8 recipes/multisp_imagenet.py --data.root /data --train.workers 12
python recipes/multisp_imagenet.py --data.root /data --dry-run       # what it would be, in seconds

Defaults are Spikformer's for ImageNet: 8-512 on 224 pixels, T 4, 300 epochs and 10 more at the last
learning rate, DeiT's augmentation, mixup and CutMix, 36 pictures in each of 8 processes, bfloat16.
"""

from dataclasses import dataclass, field

from spikeformer_lt.cli import ImageRecipe, find, small
from spikeformer_lt.config import run_recipe
from spikeformer_lt.tickets import MultiSpConfig
from spikeformer_lt.training import DataConfig, ModelConfig, OptimConfig, TrainConfig

SMALL = small("multisp")
PAPER = OptimConfig(
    lr=5e-4, weight_decay=0.05, min_lr=1e-5, warmup_epochs=20, warmup_lr=1e-5, cooldown_epochs=10,
    clip_grad=0.0, of_epochs=310,
)  # fmt: skip


@dataclass(frozen=True)
class MultiSpImageNet(ImageRecipe):
    """MultiSp on ImageNet: patch, ConvPEP-weight and ConvPEP-activation sparsity."""

    data: DataConfig = field(
        default_factory=lambda: DataConfig(name="imagenet", mixup=0.8, cutmix=1.0, smoothing=0.1)
    )
    model: ModelConfig = field(default_factory=lambda: ModelConfig("spikformer_imagenet_8_512"))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(batch_size=36, optim=PAPER, mixed_precision="bf16")
    )
    multisp: MultiSpConfig = field(
        default_factory=lambda: MultiSpConfig(epochs=310, stem_epochs=100)
    )


def main(cfg: MultiSpImageNet) -> None:
    """Search, save the ticket, test once, write the report."""
    find(cfg, "multisp", SMALL)


if __name__ == "__main__":
    run_recipe(main, MultiSpImageNet)
