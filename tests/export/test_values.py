"""Coded floats come back bit for bit, in fewer bytes where their distribution allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.export.file import decode_values, encode_values

KINDS = [torch.float32, torch.float16, torch.bfloat16]


def raw(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes() if values.numel() else b""


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from(KINDS))
def test_any_bits_come_back(seed: int, count: int, kind: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (3, kind.itemsize), np.uint8)  # NaN, infinities and denormals too
    values = torch.from_numpy(few[rng.integers(0, 3, count)].copy()).view(kind).view(-1)
    found = encode_values(values)
    if found is not None:
        depth, data = found
        again = decode_values(data, depth, count, kind)
        assert again is not None and again.dtype == kind and raw(again) == raw(values)
    else:
        assert count < 40


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("centre", [0.0, 1.0])
def test_a_bell_curve_costs_its_entropy_and_little_more(kind: torch.dtype, centre: float) -> None:
    values = (centre + 0.1 * torch.randn(512, generator=torch.Generator().manual_seed(0))).to(kind)
    found = encode_values(values)
    assert found is not None
    # Differential entropy of the curve, and of the spacing of floats: sum of log2 of its width.
    spacing = torch.finfo(kind).eps * 2.0 ** values.double().abs().log2().floor()
    density = 0.5 * np.log2(2 * np.pi * 0.1**2) + 0.5 * ((values.double() - centre) / 0.1) ** 2 / (
        np.log(2)
    )
    bits = float((density - spacing.log2()).sum())
    assert bits - 60 < 8 * len(found[1]) < min(bits + 0.8 * 512, 8 * values.nbytes * 0.95)


def test_noise_stays_as_it_is() -> None:
    bits = np.random.default_rng(0).integers(0, 2**16, 500, np.uint16).view(np.int16)
    assert encode_values(torch.from_numpy(bits).view(torch.bfloat16)) is None
    assert encode_values(torch.empty(0)) is None


def test_large_tensors_take_one_depth() -> None:
    values = torch.randn(70_000, generator=torch.Generator().manual_seed(0)) * 0.02
    found = encode_values(values)
    assert found is not None and found[0] == 9 and len(found[1]) < 0.84 * values.nbytes
    again = decode_values(found[1], 9, len(values), torch.float32)
    assert again is not None and torch.equal(again, values)


@pytest.mark.parametrize(("depth", "size"), [(0, 99), (15, 99), (-3, 99), (9, 10)])
def test_bytes_that_cannot_be_the_values_give_nothing(depth: int, size: int) -> None:
    assert decode_values(np.zeros(size, np.uint8), depth, 8, torch.float32) is None
