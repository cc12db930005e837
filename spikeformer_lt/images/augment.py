"""Training augmentation of one image, and mixup, CutMix and label smoothing of one batch."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor

from spikeformer_lt.config import check, check_fields
from spikeformer_lt.errors import ConfigError, near, one_of, shown
from spikeformer_lt.rng import isolated_rng

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "random")
# The operations that Spikformer's authors left on in their copy of timm's list (cifar10/aa_snn.py).
_SPIKFORMER = ["Equalize", "Rotate", "ShearX", "TranslateXRel", "TranslateYRel"]
_ORIENTATION = 0x0112  # EXIF's number of that entry
_OPS = {"timm": None, "spikformer": _SPIKFORMER}


@dataclass(frozen=True)
class Augment:
    """What happens to a training image, in this order; all off by default.

    Attributes:
        resized_crop: least part of a picture's area in a random crop, of ratio 3/4 to 4/3, that is
            scaled to the network's size; 0 is off. Files of pictures are cropped before they are
            decoded, and JPEGs decoded at the smallest scale that leaves the pixels asked for.
        repeats: times that a picture is in an epoch, each time augmented anew; an epoch has as many
            steps as without.
        crop_padding: pixels of black put around, then a crop of the old size at a random place.
        hflip: probability of a left-right flip.
        auto_augment: RandAugment in timm's notation, e.g. "rand-m9-n1-mstd0.4-inc1", or "".
        auto_augment_ops: operations that it chooses from: "timm" (all 15) or "spikformer" (the
            5 that Spikformer's code uses).
        interpolation: of its rotations and shears: nearest, bilinear, bicubic or random.
        color_jitter: strength of brightness, contrast and saturation changes; 0 is off. Not
            together with `auto_augment`, which timm would let win silently.
        erasing: probability of a rectangle set to the mean colour, after normalisation.
        cutout: side of a square set to the mean colour, its middle anywhere in the image; 0 is off.

    Source: RandAugment, arXiv:1909.13719; random erasing, arXiv:1708.04896; Cutout, 1708.04552;
    random resized crops, arXiv:1409.4842, 6; repeated augmentation, arXiv:1901.09335.
    """

    presets: ClassVar[dict[str, Any]] = {}
    """By name, as `standard` gives them. A plug-in may add one: this class with other values, or
    any class with the methods `check`, `is_identity` and `build`."""

    resized_crop: float = 0.0
    repeats: int = 1
    crop_padding: int = 0
    hflip: float = 0.0
    auto_augment: str = ""
    auto_augment_ops: str = "timm"
    interpolation: str = "bicubic"
    color_jitter: float = 0.0
    erasing: float = 0.0
    cutout: int = 0

    @classmethod
    def standard(cls, name: str) -> Self:
        """Return a preset: "spikformer_cifar", "crop4_flip", "crop8_flip", "digits" or "none".

        Source: "spikformer_cifar" is cifar10.yml of Spikformer (arXiv:2209.15425), whose random
        resized crop has scale and ratio 1 and is left out. "crop4_flip" (SVHN, Fashion-MNIST),
        "crop4_flip_cutout" (CIFAR) and "crop8_flip" (Tiny-ImageNet) are those of the code of
        arXiv:2207.01382. "imagenet" is that of DeiT (arXiv:2012.12877, table 9), and
        "imagenet_repeats" takes each picture three times. "digits" shifts only: a flipped digit is
        another sign.
        """
        if name not in cls.presets:
            hint = f"{near(name, cls.presets) or ';'} allowed: {', '.join(sorted(cls.presets))}"
            raise ConfigError(f"augment={shown(name)} is not a preset{hint}")
        return cast("Self", cls.presets[name])

    def check(self) -> None:
        """Refuse values out of range by a ConfigError."""
        for field in ("resized_crop", "hflip", "erasing", "color_jitter"):
            value = getattr(self, field)
            check(0 <= value <= 1, field, value, "a probability or strength, 0 to 1")
        pad = self.crop_padding
        check(isinstance(pad, int) and pad >= 0, "crop_padding", pad, "0 pixels or more")
        check(self.repeats >= 1, "repeats", self.repeats, "1 or more")
        check(self.cutout >= 0, "cutout", self.cutout, "0 pixels or more")
        one_of("interpolation", self.interpolation, _INTERPOLATIONS)
        one_of("auto_augment_ops", self.auto_augment_ops, _OPS)
        name = self.auto_augment
        rule = 'RandAugment in timm\'s notation, e.g. "rand-m9-n1-mstd0.4-inc1", or "" for none'
        check(not name or name.startswith("rand-"), "auto_augment", name, rule)
        if name and self.color_jitter:
            raise ConfigError(
                f"color_jitter={self.color_jitter} is not allowed with auto_augment, which changes "
                "colours itself (timm ignores the jitter then); set one of the two to off"
            )

    def is_identity(self) -> bool:
        """Return whether nothing random is on."""
        on = (self.crop_padding, self.hflip, self.auto_augment, self.color_jitter, self.erasing)
        return not any((*on, self.cutout, self.resized_crop))

    def build(self, mean: Sequence[float], std: Sequence[float], image_size: int) -> TrainTransform:
        """Return the transform of one image of `image_size` pixels a side; `mean` is of [0, 1]."""
        return TrainTransform(self, mean, std, image_size)


_IMAGENET = Augment(resized_crop=0.08, hflip=0.5, auto_augment="rand-m9-mstd0.5-inc1", erasing=0.25)
Augment.presets |= {
    "none": Augment(),
    "imagenet": _IMAGENET,
    "imagenet_repeats": replace(_IMAGENET, repeats=3),
    "digits": Augment(crop_padding=2),
    "crop4": Augment(crop_padding=4),
    "crop4_flip": Augment(crop_padding=4, hflip=0.5),
    "crop4_flip_cutout": Augment(crop_padding=4, hflip=0.5, cutout=16),
    "crop8_flip": Augment(crop_padding=8, hflip=0.5),
    "spikformer_cifar": Augment(
        hflip=0.5, auto_augment="rand-m9-n1-mstd0.4-inc1", auto_augment_ops="spikformer",
        erasing=0.25,
    ),
}  # fmt: skip


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 (0 to 255) or float (0 to 1) images [..., C, H, W] as normalised float32."""
    scaled = images.to(torch.float32, copy=True)
    if images.dtype == torch.uint8:
        scaled.div_(255)
    return scaled.sub_(_column(tuple(mean))).div_(_column(tuple(std)))


@functools.cache
def _column(values: tuple[float, ...]) -> Tensor:
    """Return [C, 1, 1]; made once, because that takes as long as normalising a small image."""
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


class TrainTransform:
    """One image, uint8 [C, H, W], to an augmented, normalised float32 one; see `Augment.build`.

    Draws from the global generators of Python, NumPy and torch, as timm's operations do: seed all
    three around a call.
    """

    def __init__(
        self, augment: Augment, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> None:
        augment.check()
        self.augment, self.mean, self.std = augment, tuple(mean), tuple(std)
        self.size = image_size
        self.opens = augment.resized_crop > 0
        """Whether it takes pictures of PIL that are not decoded yet."""
        for name in ("auto_augment", "color_jitter", "resized_crop"):
            value, channels = getattr(augment, name), len(self.mean)
            check(not value or channels == 3, name, value, f"needs 3 channels, not {channels}")
        self._on_pil: list[Callable[[Any], Any]] = []
        if augment.auto_augment:
            self._on_pil.append(self._rand_augment(image_size))
        if augment.color_jitter:
            from torchvision.transforms import ColorJitter

            self._on_pil.append(ColorJitter(*[augment.color_jitter] * 3))
        self._erase: Callable[[Tensor], Tensor] | None = None
        if augment.erasing:
            from timm.data.random_erasing import RandomErasing

            self._erase = RandomErasing(augment.erasing, mode="const", device="cpu")

    def __call__(self, image: Any) -> Tensor:
        """Return `image` augmented and normalised; `image` itself is not changed."""
        if self.augment.resized_crop:
            image = self._resized_crop(image)
        top, left, mirrored = self._shift(random)
        if pad := self.augment.crop_padding:
            padded = torch.nn.functional.pad(planes := _planes(image), (pad, pad, pad, pad))
            image = padded[:, top : top + planes.shape[1], left : left + planes.shape[2]]
        if mirrored:
            image = _mirrored(image)
        if self._on_pil:
            image = _picture(image)
            for step in self._on_pil:
                image = step(image)
        out = normalize(_planes(image), self.mean, self.std)
        if side := self.augment.cutout:  # `out` is a new tensor
            height, width = out.shape[-2:]
            top, left = random.randrange(height) - side // 2, random.randrange(width) - side // 2
            out[:, max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)] = 0
        return out if self._erase is None else self._erase(out)

    @property
    def shifts_alone(self) -> bool:
        """Whether crops and flips of pixels are all that it does, which `shifted` does at once."""
        shifts = Augment(crop_padding=self.augment.crop_padding, hflip=self.augment.hflip)
        return shifts == replace(self.augment, repeats=1)

    def shifted(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return images uint8 [N, C, H, W] cropped, flipped and normalised at once.

        Bit for bit what each alone becomes with Python's generator at its seed; twice as fast.
        """
        pad, draw = self.augment.crop_padding, random.Random()
        height, width = images.shape[-2:]
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        out = torch.empty_like(images)
        for image, to, seed in zip(padded, out.numpy(), seeds, strict=True):
            draw.seed(seed)
            top, left, mirrored = self._shift(draw)
            cut = image[:, top : top + height, left : left + width]
            to[...] = cut[..., ::-1] if mirrored else cut
        return normalize(out, self.mean, self.std)

    def _shift(self, draw: Any) -> tuple[int, int, bool]:
        """Draw row and column of the crop in the padded image, and whether it is flipped."""
        pad, flips = self.augment.crop_padding, self.augment.hflip
        top, left = (pad - draw.randint(-pad, pad) for _ in range(2)) if pad else (0, 0)
        return top, left, flips > 0 and draw.random() < flips

    def _resized_crop(self, image: Any) -> Any:
        from PIL import Image, ImageOps

        from spikeformer_lt.images.folders import refuse_deep

        image = _picture(image)
        refuse_deep(image)
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        left, top, width, height = _random_box(image.size, self.augment.resized_crop)
        whole, needed = image.size, (self.size / width, self.size / height)
        # Of a JPEG only as many pixels are decoded as the crop needs.
        image.draft("RGB", tuple(math.ceil(n * by) for n, by in zip(whole, needed, strict=True)))
        across, down = image.size[0] / whole[0], image.size[1] / whole[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        size, way = (self.size, self.size), Image.Resampling.BICUBIC
        picture = image if image.mode == "RGB" else image.convert("RGB")
        return picture.resize(size, way, box=box)

    def _rand_augment(self, image_size: int) -> Callable[[Any], Any]:
        from timm.data.auto_augment import rand_augment_transform
        from timm.data.transforms import str_to_pil_interp

        augment, where = self.augment, f"auto_augment={shown(self.augment.auto_augment)}"
        # The numbers below are those of timm's own create_transform.
        hparams: dict[str, Any] = {
            "translate_const": int(image_size * 0.45),
            "img_mean": tuple(min(255, round(255 * value)) for value in self.mean),
        }
        if augment.interpolation != "random":
            hparams["interpolation"] = str_to_pil_interp(augment.interpolation)
        try:
            ops = _OPS[augment.auto_augment_ops]
            made = rand_augment_transform(augment.auto_augment, hparams, ops)
        except (AssertionError, ValueError, KeyError) as fault:
            raise ConfigError(f"{where} is not understood by timm: {fault}") from fault
        for op in made.ops:
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
        return cast("Callable[[Any], Any]", made)


def _picture(image: Any) -> Any:
    """A picture of PIL, which an image uint8 [3, H, W] becomes."""
    from PIL import Image

    if not isinstance(image, Tensor):
        return image
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def _planes(image: Any) -> Tensor:
    """A tensor uint8 [C, H, W], which a picture of PIL becomes."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def _mirrored(image: Any) -> Any:
    """The same, left and right exchanged."""
    if isinstance(image, Tensor):
        return image.flip(-1)
    from PIL import ImageOps

    return ImageOps.mirror(image)


def _random_box(size: tuple[int, int], least: float) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop, drawn as torchvision's RandomResizedCrop draws it."""
    width, height = size
    for _ in range(10):
        area = width * height * random.uniform(least, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = random.randint(0, width - across)
            return left, random.randint(0, height - down), across, down
    across, down = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (width - across) // 2, (height - down) // 2, across, down


def _posterize(picture: Any, bits: int, **options: Any) -> Any:
    """Keep the highest `bits` of each pixel, one at least: timm asks for none, Pillow refuses."""
    from timm.data.auto_augment import posterize

    return posterize(picture, max(1, bits), **options)


@dataclass(frozen=True)
class Mixing:
    """How the images of a batch are blended and their labels softened; off by default.

    Attributes:
        mixup: alpha of the Beta distribution of mixup's weight; 0 is off.
        cutmix: alpha of CutMix's; 0 is off.
        prob: probability that a batch is mixed at all.
        switch_prob: probability of CutMix instead of mixup where both are on.
        smoothing: part of each label that is spread over all classes, in [0, 1).
        until: fraction of a training after which nothing is mixed any more; labels stay smooth.

    Source: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899; run by timm.data.Mixup, which pairs
    sample i of a batch with sample B-1-i.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.0
    until: float = 1.0

    @classmethod
    def standard(cls, augment: str) -> Mixing:
        """Return what goes with a preset of `Augment` or `EventAugment`; off for most.

        Source: "spikformer_cifar": Spikformer's cifar10.yml, off after 200 of 300 epochs;
        "spikformer_dvs": its cifar10dvs/train.py, half of the batches of 75 of 106 epochs.
        """
        return {
            "spikformer_cifar": cls(mixup=0.5, smoothing=0.1, until=2 / 3),
            "spikformer_dvs": cls(mixup=0.5, smoothing=0.1, prob=0.5, until=75 / 106),
            "wide_dvs": cls(mixup=0.5, smoothing=0.1, prob=0.5, until=75 / 106),
        }.get(augment, cls())

    def __post_init__(self) -> None:
        part, alpha = "[0, 1]", "[0, inf)"
        check_fields(self, mixup=alpha, cutmix=alpha, prob=part, switch_prob=part, until=part)
        check_fields(self, smoothing="[0, 1)")

    def check(self, batch_size: int | None = None) -> None:
        """Refuse a batch of one process that cannot be paired, by a ConfigError."""
        if batch_size is not None and batch_size % 2 and self._mixes():
            raise ConfigError(
                f"batch_size={batch_size} is not allowed with mixup or cutmix, which pair the "
                f"samples of a batch; use an even number, such as {batch_size + 1}"
            )

    def apply(
        self, images: Tensor, labels: Tensor, num_classes: int, seed: int, *, mix: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and soft targets; the arguments are not changed.

        Args:
            images: float [B, C, H, W], or frames [B, T, C, H, W], mixed alike at all T.
            labels: int64 [B], of K classes; targets are float32 [B, K] and sum to 1.
            num_classes: K.
            seed: decides weight and box, and nothing else does.
            mix: False only smooths, as in the last epochs of a run.

        Raises:
            ConfigError: as `check`.
        """
        self.check(len(images) if mix else None)
        if not (mix and self._mixes()):
            off = self.smoothing / num_classes
            targets = torch.full((len(labels), num_classes), off, device=labels.device)
            return images, targets.scatter_(1, labels[:, None], 1 - self.smoothing + off)
        from timm.data.mixup import Mixup

        mixer = Mixup(
            self.mixup, self.cutmix, prob=self.prob, switch_prob=self.switch_prob,
            label_smoothing=self.smoothing, num_classes=num_classes,
        )  # fmt: skip
        with isolated_rng(seed):
            # CutMix cuts dimensions 2 and 3: they must be height and width.
            mixed, targets = mixer(images.clone().flatten(1, -3), labels)
        return mixed.view_as(images), targets

    def _mixes(self) -> bool:
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)
