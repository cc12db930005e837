"""The coder gives back every bit, on any machine the same bytes, near the entropy."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.export import codec
from spikeformer_lt.export.codec import (
    decode_bits,
    decode_gaps,
    decode_values,
    encode_bits,
    encode_gaps,
    encode_values,
    spread_values,
)


@given(
    st.lists(st.booleans(), max_size=300),
    st.integers(min_value=1, max_value=9),
    st.integers(min_value=1, max_value=5),
)
def test_every_stream_comes_back(bits: list[bool], stride: int, contexts: int) -> None:
    given_ = np.array(bits, np.uint8)
    data = encode_bits(given_, stride, contexts)
    assert np.array_equal(decode_bits(data, len(bits), stride, contexts), given_)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40), st.integers(0, 600))
def test_every_mask_comes_back_from_its_gaps(gaps: list[int], tail: int) -> None:
    bits = np.concatenate([np.r_[np.zeros(gap, np.uint8), 1] for gap in gaps] + [np.zeros(tail)])
    bits = bits.astype(np.uint8)
    found = decode_gaps(encode_gaps(bits), bits.size)
    assert found is not None and np.array_equal(found, bits)
    assert decode_gaps(encode_gaps(bits), bits.size - tail - 1) is None


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_gaps_are_hardly_longer(rate: float) -> None:
    bits = (np.random.default_rng(0).random(200_000) < rate).astype(np.uint8)
    assert encode_gaps(bits).size < 1.02 * encode_bits(bits).size + 264


@given(st.integers(0, 2**32 - 1), st.integers(0, 600), st.integers(0, 300))
def test_foreign_bytes_are_no_gaps_or_others(seed: int, size: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, size, np.uint8)
    data[:8] = np.array([number], "<u8").view(np.uint8)[: len(data[:8])]
    data[8:264] = 8  # a whole code
    found = decode_gaps(data, 1000)
    assert found is None or found.shape == (1000,)


def test_values_are_spread_bit_for_bit() -> None:
    bits = (np.random.default_rng(4).random(1000) < 0.3).astype(np.uint8)
    values = np.random.default_rng(5).standard_normal(bits.sum()).astype(np.float32)
    values[3] = np.nan
    wanted = np.zeros(1000, np.float32)
    wanted[bits == 1] = values
    found = np.empty(1000, np.float32)
    spread_values(bits, values, found)
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("rate", [0.0, 0.001, 0.02, 0.1, 0.5, 0.9, 1.0])
def test_the_length_is_the_entropy_plus_what_is_promised(rate: float) -> None:
    bits = (np.random.default_rng(0).random(50_000) < rate).astype(np.uint8)
    p = bits.mean()
    entropy = 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    bound = bits.size * entropy + math.log2(bits.size) / 2 + 8
    coded = 8 * encode_bits(bits).size
    assert coded <= bound + 32 + 2e-4 * bits.size
    assert coded >= bits.size * entropy - 1


def test_contexts_pay_where_filters_differ() -> None:
    bits = np.zeros((8, 1000), np.uint8)
    bits[::2] = 1
    flat = bits.reshape(-1)
    assert encode_bits(flat, 1000, 8).size < 30 < 900 < encode_bits(flat).size


def test_numbers_cost_the_entropy_of_their_distribution() -> None:
    numbers = np.random.default_rng(3).choice([3, 200, 201, 255], 4000, p=[0.7, 0.1, 0.1, 0.1])
    bits = np.unpackbits(numbers.astype(np.uint8))
    data = encode_bits(bits, depth=8)
    entropy = 0.7 * math.log2(1 / 0.7) + 0.3 * math.log2(10)
    assert 4000 * entropy * 0.95 < 8 * data.size < 1.06 * 4000 * entropy
    assert 2 * data.size < encode_bits(bits).size


def test_the_plain_loops_write_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = (np.random.default_rng(1).random(3000) < 0.2).astype(np.uint8)
    fast = encode_bits(bits, 30, 7)
    deep = encode_bits(bits, depth=10)
    values = torch.randn(300, generator=torch.Generator().manual_seed(0))
    coded = encode_values(values)
    monkeypatch.setattr(codec, "compiled", lambda loop: loop)
    assert np.array_equal(encode_bits(bits, depth=10), deep)
    assert coded is not None
    assert torch.equal(decode_values(coded[1], coded[0], 300, torch.float32), values)  # type: ignore[arg-type]
    assert np.array_equal(encode_bits(bits, 30, 7), fast)
    assert np.array_equal(decode_bits(fast, 3000, 30, 7), bits)
    again = decode_gaps(encode_gaps(bits), 3000)
    assert again is not None and np.array_equal(again, bits)


def test_the_worst_stream_fits_its_buffer() -> None:
    # 255 zeros teach the counter that a one costs most, again and again.
    bits = np.tile(np.r_[np.zeros(255, np.uint8), np.uint8(1)], 400)
    assert np.array_equal(decode_bits(encode_bits(bits), bits.size), bits)
    for n in (0, 1, 2, 7):
        ones = np.ones(n, np.uint8)
        assert np.array_equal(decode_bits(encode_bits(ones), n), ones)


@pytest.mark.golden
def test_the_bytes_never_change() -> None:
    bits = np.array([int(c) for c in bin(3**200)[2:]], np.uint8)
    assert hashlib.sha256(encode_gaps(bits).tobytes()).hexdigest()[:16] == "2e92cfd62396e5c9"
    digest = hashlib.sha256(encode_bits(bits, 4, 3).tobytes()).hexdigest()
    assert digest[:16] == "6b2f9908f5728095"


def test_other_bytes_give_other_bits_and_no_error() -> None:
    rng = np.random.default_rng(2)
    for size in (0, 1, 5, 200):
        found = decode_bits(rng.integers(0, 256, size, dtype=np.uint8), 500, 3, 4)
        assert found.shape == (500,) and set(found.tolist()) <= {0, 1}
