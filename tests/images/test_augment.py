from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.events import EventAugment
from spikeformer_lt.images import Augment, normalize, train_loader
from spikeformer_lt.images import augment as augment_module
from spikeformer_lt.rng import isolated_rng

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def image(seed=0, size=32, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (channels, size, size), generator=generator, dtype=torch.uint8)


def smooth(size=32):
    """Return an image with few repeated values, on which every operation shows."""
    ramp = torch.arange(size * size).view(size, size) * 255 // (size * size - 1)
    return torch.stack([ramp, ramp.T, 255 - ramp]).to(torch.uint8)


def drawn(transform, picture, seed):
    with isolated_rng(seed):
        return transform(picture)


def test_normalising_is_torchvisions_to_the_bit():
    from torchvision.transforms.v2.functional import normalize as theirs

    picture = image()
    assert torch.equal(normalize(picture, MEAN, STD), theirs(picture / 255, list(MEAN), list(STD)))
    batch = torch.stack([image(i) for i in range(3)])
    assert torch.equal(normalize(batch, MEAN, STD)[1], normalize(batch[1], MEAN, STD))


def test_normalising_takes_float_pixels_as_they_are_and_changes_no_argument():
    picture = image() / 255
    before = picture.clone()
    assert torch.equal(normalize(picture, MEAN, STD), normalize(image(), MEAN, STD))
    assert torch.equal(picture, before)


def test_with_everything_off_only_normalising_is_left():
    transform = Augment().build(MEAN, STD, 32)
    assert Augment().is_identity()
    assert torch.equal(transform(image()), normalize(image(), MEAN, STD))


@pytest.mark.parametrize("seed", range(40))
def test_rand_augment_and_erasing_are_timms_to_the_bit(seed):
    from PIL import Image
    from timm.data import create_transform

    recipe = "rand-m9-n1-mstd0.4-inc1"
    _, operate, finish = create_transform(
        32,
        is_training=True,
        auto_augment=recipe,
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="const",
        mean=MEAN,
        std=STD,
        separate=True,
    )
    picture = smooth()
    ours = Augment(auto_augment=recipe, erasing=0.25).build(MEAN, STD, 32)
    with isolated_rng(seed):
        theirs = finish(operate(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())))
    assert torch.equal(drawn(ours, picture, seed), theirs)


def test_no_magnitude_and_no_draw_breaks_an_operation():
    transform = Augment(auto_augment="rand-m10-n2-mstd2-inc1").build(MEAN, STD, 16)
    picture = smooth(16)
    with isolated_rng(0):  # one draw in a hundred asks to keep no bit of a pixel
        assert all(transform(picture).isfinite().all() for _ in range(1000))


def test_the_spikformer_preset_uses_the_five_operations_of_its_authors():
    augment = Augment.standard("spikformer_cifar")
    transform = augment.build(MEAN, STD, 32)
    operations = transform._on_pil[0].ops
    assert [op.name for op in operations] == [
        "Equalize", "Rotate", "ShearX", "TranslateXRel", "TranslateYRel"
    ]  # fmt: skip
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in operations} == {(0.5, 9, 0.4)}
    assert (augment.hflip, augment.erasing, augment.crop_padding) == (0.5, 0.25, 0)


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([1, 3]))
def test_a_shift_is_a_crop_of_the_padded_image(seed, padding, channels):
    picture = image(seed, size=4, channels=channels)
    flat = [0.0] * channels, [1.0] * channels
    got = drawn(Augment(crop_padding=padding).build(*flat, 4), picture, seed)
    padded = torch.nn.functional.pad(picture, [padding] * 4)
    crops = padded.unfold(1, 4, 1).unfold(2, 4, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert any(torch.equal(got, normalize(crop, *flat)) for crop in crops)


def test_shifts_reach_every_place_and_none_is_preferred():
    transform = Augment(crop_padding=1).build([0.0], [1.0], 3)
    picture = torch.tensor([[[0, 0, 0], [0, 255, 0], [0, 0, 0]]], dtype=torch.uint8)
    with isolated_rng(0):
        total = sum(transform(picture) for _ in range(1800))
    assert total.sum() == 1800
    assert (total - 200).abs().max() < 60  # 4 standard deviations of a count of 200


def test_flips_happen_with_their_probability():
    picture, flat = image(size=4), ((0.0,) * 3, (1.0,) * 3)
    always, never = Augment(hflip=1.0).build(*flat, 4), Augment(erasing=1.0).build(*flat, 4)
    assert torch.equal(always(picture), normalize(picture.flip(-1), *flat))
    half = Augment(hflip=0.5).build(*flat, 4)
    with isolated_rng(0):
        flipped = sum(bool((half(picture) == always(picture)).all()) for _ in range(400))
    assert 160 < flipped < 240
    assert not torch.equal(never(picture), always(picture))


def test_erased_pixels_are_the_mean_colour_and_the_rest_is_untouched():
    picture, hit = image(size=16) // 2 + 128, 0
    plain = normalize(picture, MEAN, STD)
    transform = Augment(erasing=0.25).build(MEAN, STD, 16)
    with isolated_rng(0):
        for _ in range(400):
            out = transform(picture)
            erased = out != plain
            assert (out[erased] == 0).all()
            hit += bool(erased.any())
    assert 65 < hit < 135


def test_colour_jitter_changes_colours_and_keeps_shape():
    out = drawn(Augment(color_jitter=0.4).build(MEAN, STD, 32), smooth(), 1)
    assert out.shape == (3, 32, 32)
    assert not torch.equal(out, normalize(smooth(), MEAN, STD))


@pytest.mark.parametrize("name", ["spikformer_cifar", "digits", "none"])
def test_the_image_given_is_not_changed(name):
    picture, before = smooth(), smooth()
    transform = Augment.standard(name).build(MEAN, STD, 32)
    for seed in range(20):
        drawn(transform, picture, seed)
    assert torch.equal(picture, before)


def test_digits_are_shifted_only():
    assert Augment.standard("digits") == Augment(crop_padding=2)


def test_crops_and_flips_are_those_of_the_published_code():
    assert Augment.standard("crop4_flip") == Augment(crop_padding=4, hflip=0.5)
    assert Augment.standard("crop8_flip") == Augment(crop_padding=8, hflip=0.5)


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'spikformer_cifar'"):
        Augment.standard("spikeformer_cifar")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"hflip": 1.5}, "hflip=1.5 is not allowed: a probability"),
        ({"erasing": -0.1}, "erasing=-0.1"),
        ({"erasing": float("nan")}, "erasing=nan"),
        ({"crop_padding": -1}, "crop_padding=-1"),
        ({"crop_padding": 1.5}, "crop_padding=1.5"),
        ({"color_jitter": 2.0}, "color_jitter=2.0"),
        ({"interpolation": "bicubik"}, "did you mean 'bicubic'"),
        ({"auto_augment_ops": "all"}, "timm or spikformer"),
        ({"auto_augment": "augmix-m3"}, "RandAugment in timm's notation"),
        ({"auto_augment": "rand-m9", "color_jitter": 0.4}, "not allowed with auto_augment"),
        ({"auto_augment": "rand-zz9"}, "not understood by timm"),
    ],
)
def test_a_value_out_of_range_is_refused_by_field(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Augment(**fields).build(MEAN, STD, 32)


@pytest.mark.parametrize(
    "fields", [{"auto_augment": "rand-m9"}, {"color_jitter": 0.4}, {"resized_crop": 0.5}]
)
def test_operations_of_colours_need_three_channels(fields):
    with pytest.raises(ConfigError, match="needs 3 channels, not 1"):
        Augment(**fields).build((0.5,), (0.5,), 32)


def test_shifts_flips_and_no_augmentation_need_neither_timm_nor_pil():
    script = """
import sys, torch
from spikeformer_lt.images import ArrayImages, Augment, eval_loader, train_loader
data = ArrayImages("x", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4).long(),
                   num_classes=1, mean=[0] * 3, std=[1] * 3)
list(train_loader(data, Augment(crop_padding=2, hflip=0.5), 2, seed=0, epoch=0))
list(eval_loader(data, 2))
print([name for name in ("timm", "PIL", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_cutout_sets_one_square_to_the_mean_and_touches_nothing_else():
    plain = normalize(image(), MEAN, STD)
    cut = Augment(cutout=16).build(MEAN, STD, 32)
    sizes = set()
    for seed in range(30):
        out = drawn(cut, image(), seed)
        gone = (out == 0).all(0)
        rows, columns = gone.any(1).nonzero().flatten(), gone.any(0).nonzero().flatten()
        square = torch.zeros_like(gone)
        square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        assert torch.equal(gone, square)
        assert torch.equal(out[:, ~square], plain[:, ~square])
        sizes.add((len(rows), len(columns)))
    assert max(sizes) == (16, 16) and min(min(size) for size in sizes) < 16  # cut at the border
    assert Augment.standard("crop4_flip_cutout") == Augment(crop_padding=4, hflip=0.5, cutout=16)
    assert not Augment(cutout=16).is_identity()
    with pytest.raises(ConfigError, match="cutout=-1"):
        Augment(cutout=-1).check()


def test_a_resized_crop_is_of_the_picture_whether_jpeg_tensor_or_turned(tmp_path):
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:192, None], ramp[None], np.uint8(9)), -1)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    turned = Image.fromarray(pixels).getexif()
    turned[0x0112] = 6  # to be shown turned by a quarter
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "b.jpg", quality=95, exif=turned)
    transform = Augment(resized_crop=0.08).build((0.0,) * 3, (1.0,) * 3, 32)
    for seed in range(20):
        found = []
        for image in (
            torch.from_numpy(pixels).permute(2, 0, 1),
            Image.open(tmp_path / "a.jpg"),
            Image.open(tmp_path / "b.jpg"),
        ):
            random.seed(seed)
            found.append(transform(image))
        plain, jpeg, upright = found
        assert plain.shape == (3, 32, 32)
        # Rows rise with the first channel, columns with the second, over 8 % of the area or more.
        rise = [255 * (plain[c, -1, -1] - plain[c, 0, 0]) * 33 / 31 for c in (0, 1)]
        assert 0.07 <= float(rise[0] * rise[1]) / (192 * 256) <= 1.02
        assert 255 * (plain - jpeg).abs().max() < 6 and 255 * (plain - upright).abs().max() < 6


def test_boxes_are_drawn_as_torchvision_draws_them():
    from torchvision.transforms import RandomResizedCrop

    random.seed(0)
    torch.manual_seed(0)
    image = torch.empty(3, 300, 500)
    theirs = [RandomResizedCrop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)]
    ours = [augment_module._random_box((500, 300), 0.08) for _ in range(4000)]
    swapped = [(left, top, width, height) for top, left, height, width in theirs]
    for column, other in zip(zip(*ours, strict=True), zip(*swapped, strict=True), strict=True):
        mine, them = np.array(column), np.array(other)
        assert abs(mine.mean() - them.mean()) < 4 * them.std() * (2 / 4000) ** 0.5
        assert abs(mine.std() / them.std() - 1) < 0.06


def test_an_augmentation_of_a_plug_in_has_a_name_like_ours(random_images, monkeypatch):
    class Darker:
        """Half of the brightness, with a chance of one half."""

        def check(self):
            """Nothing can be wrong."""

        def is_identity(self):
            return False

        def build(self, mean, std, image_size):
            return lambda image: normalize(image // random.choice((1, 2)), mean, std)

    monkeypatch.setitem(Augment.presets, "darker", Darker())
    images, _, _ = next(iter(train_loader(random_images(20), Augment.standard("darker"), 20, 1, 0)))
    plain, _, _ = next(iter(train_loader(random_images(20), Augment(), 20, 1, 0)))
    same = (images == plain).flatten(1).all(1)
    assert same.any() and not same.all()
    assert "darker" not in EventAugment.presets
    with pytest.raises(ConfigError, match=r"allowed: .*darker"):
        Augment.standard("dark")
