"""Images made up for a test, and batches in the exact form of the published ones."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from spikeformer_lt.images import ArrayImages


def random_images(count, *, size=8, channels=3, classes=4, seed=0, name="made up"):
    generator = torch.Generator().manual_seed(seed)
    return ArrayImages(
        name,
        torch.randint(256, (count, channels, size, size), generator=generator, dtype=torch.uint8),
        torch.arange(count) % classes,
        num_classes=classes,
        mean=[0.4, 0.5, 0.6][:channels],
        std=[0.2, 0.25, 0.3][:channels],
    )


def python2_batch(data: np.ndarray, labels: list[int], label_key: str = "labels") -> bytes:
    """Return what Python 2's cPickle, protocol 2, wrote for a batch of CIFAR."""

    def text(value: bytes) -> bytes:
        short = len(value) < 256
        return (
            b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
        ) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"J" + struct.pack("<i", value)

    rows, width = data.shape
    dtype = (
        b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + number(rows)
        + number(width)
        + b"\x86"
        + dtype
        + b"\x89"
        + text(data.tobytes())
        + b"tb"
    )
    names = b"](" + b"".join(text(b"image_%d.png" % i) for i in range(rows)) + b"e"
    pairs = [
        (b"batch_label", text(b"training batch 1 of 5")),
        (label_key.encode(), b"](" + b"".join(map(number, labels)) + b"e"),
        (b"data", array),
        (b"filenames", names),
    ]
    return b"\x80\x02}(" + b"".join(text(key) + value for key, value in pairs) + b"u."


@pytest.fixture(name="random_images")
def _random_images():
    return random_images


@pytest.fixture(name="python2_batch")
def _python2_batch():
    return python2_batch
