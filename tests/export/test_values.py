"""Coded floats come back bit for bit, in fewer bytes where their distribution allows."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.export import codec
from spikeformer_lt.export.codec import HUFFMAN, decode_values, encode_values

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


def older(values: torch.Tensor) -> tuple[int, np.ndarray]:
    """The code of formats 2 and 3: by arithmetic, however many the values are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "SMALL", len(values))
        found = encode_values(values)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_many_values_take_a_code_that_is_as_short_and_read_fast(kind: torch.dtype) -> None:
    values = (torch.randn(70_000, generator=torch.Generator().manual_seed(0)) * 0.02).to(kind)
    found, (depth, before) = encode_values(values), older(values[:20_000])
    assert found is not None and found[0] == HUFFMAN > depth
    assert len(found[1]) / 70_000 < 1.03 * len(before) / 20_000
    for code, data, wanted in ((*found, values), (depth, before, values[:20_000])):
        again = decode_values(data, code, len(wanted), kind)
        assert again is not None and raw(again) == raw(wanted)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_exponents_take_the_huffman_code(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "SMALL", 0)
    wild = torch.exp(10 * torch.randn(3000, generator=torch.Generator().manual_seed(1))).to(kind)
    alike, two = torch.ones(3000, dtype=kind), torch.tensor([1.0, -3.0] * 1500).to(kind)
    rare = torch.cat([2.0 ** torch.arange(-14.0, 14).repeat_interleave(1 << 3), alike]).to(kind)
    for values in (wild, alike, two, rare, wild[:2001]):
        found = encode_values(values)
        assert found is not None and found[0] == HUFFMAN
        again = decode_values(found[1], HUFFMAN, len(values), kind)
        assert again is not None and raw(again) == raw(values)


def test_the_plain_loop_reads_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "SMALL", 0)
    values = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    found = encode_values(values)
    assert found is not None
    monkeypatch.setattr(codec, "compiled", lambda loop: loop)
    again = decode_values(found[1], HUFFMAN, 3000, torch.float32)
    assert again is not None and torch.equal(again, values)


@pytest.mark.golden
def test_the_huffman_bytes_never_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "SMALL", 0)
    # torch's own root rounds as the processor does.
    found = encode_values(torch.tensor([math.sqrt(n) - 20 for n in range(1, 3000)]))
    assert found is not None
    assert hashlib.sha256(found[1].tobytes()).hexdigest()[:16] == "bce8d8a486433c3e"


@given(st.integers(0, 2**32 - 1), st.integers(1, 14), st.sampled_from(KINDS))
def test_foreign_bytes_of_any_depth_are_other_values(
    seed: int, depth: int, kind: torch.dtype
) -> None:
    rest = -(-60 * (8 * kind.itemsize - depth) // 8)
    data = np.random.default_rng(seed).integers(0, 256, rest + seed % 40, np.uint8)
    room = np.full(64, 7, np.float32)  # of which the last four belong to somebody else
    found = decode_values(data, depth, 60, kind, room[:60])
    assert found is not None and found.shape == (60,) and (room[60:] == 7).all()
    assert np.may_share_memory(room, found.view(torch.uint8).numpy()) == (kind == torch.float32)
    low = np.unpackbits(data[-rest:])[: 60 * (8 * kind.itemsize - depth)].reshape(60, -1)
    whole = np.frombuffer(raw(found), f"<u{kind.itemsize}").astype(f">u{kind.itemsize}")
    bits = np.unpackbits(whole.view(np.uint8)).reshape(60, -1)
    assert np.array_equal(bits[:, depth:], low)


@given(st.integers(0, 2**32 - 1), st.integers(0, 3000))
def test_foreign_bytes_give_other_values_or_none(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, size, np.uint8)
    data[:256] = rng.choice([0, 1, 2, 8, 12, 255], len(data[:256]))
    if seed % 2:
        data[:256] = 8  # a whole code, of bytes that are none
    found = decode_values(data, HUFFMAN, 500, torch.float32)
    assert found is None or found.shape == (500,)


@pytest.mark.parametrize(("depth", "size"), [(0, 99), (15, 99), (16, 99), (-3, 99), (9, 10)])
def test_bytes_that_cannot_be_the_values_give_nothing(depth: int, size: int) -> None:
    assert decode_values(np.zeros(size, np.uint8), depth, 8, torch.float32) is None
