"""Codes of an export; the same bytes on every machine, because all counts are integers.

n bits, k of them set, cost n H(k/n) + log2(n)/2 bits and a byte a context: arithmetic coding,
Rissanen & Langdon 1979, with the estimator of Krichevsky & Trofimov 1981. Many floats take a
Huffman code (1952) of their exponents, and their mask one of its gaps: hardly longer, and read
ten to twenty times faster.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALL = 1 << 12  # values; more of them take the Huffman code
DEEPEST = 14  # leading bits of a value that are coded by arithmetic
HUFFMAN = 15  # stands for a depth
LONGEST = 12  # bits of a Huffman code
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EXPONENTS = {torch.float32: 8, torch.bfloat16: 8, torch.float16: 5}  # bits of each dtype
Bytes = NDArray[np.uint8]


def encode_bits(bits: Bytes, stride: int = 1, contexts: int = 1, depth: int = 0) -> Bytes:
    """Code zeros and ones, [n] uint8, in at most ``17 * n / 8 + 2`` bytes; n is not among them.

    Bit i is counted in context ``(i // stride) % contexts``. With a `depth` the bits are numbers of
    `depth` bits, highest first, and each is counted in a context of those before it in its number.
    """
    out = np.empty(17 * bits.size // 8 + 2, np.uint8)
    size = compiled(_encode)(bits, out, stride, contexts, depth)
    return out[:size].copy()


def decode_bits(data: Bytes, count: int, stride: int = 1, contexts: int = 1) -> Bytes:
    """Decode `count` bits of `encode_bits` without a depth; foreign data give other bits."""
    bits = np.empty(count, np.uint8)
    compiled(_decode_runs)(bits, data, stride if contexts > 1 else count, contexts)
    return bits


def spread_values(kept: Bytes, values: Any, found: Any) -> None:
    """Put float32 [k] where `kept` [n], of zeros and k ones, is one in `found` [n]; 0 elsewhere."""
    whole = np.append(values, np.float32(0)).view(np.uint32)
    compiled(_spread)(kept, whole, found.view(np.uint32))


def encode_values(values: Tensor) -> tuple[int, Bytes] | None:
    """Code float32, float16 or bfloat16 [n] without loss.

    Many values take a Huffman code of their exponents, few a code by arithmetic of their first
    `depth` bits; the rest is nearly random and stays as it is. Given are the depth, or `HUFFMAN`,
    and the bytes; None if plain values are as short.
    """
    size = values.element_size()
    whole = values.contiguous().view(torch.int32 if size == 4 else torch.int16).numpy()
    if len(values) > SMALL:
        coded = _encode_exponents(whole.astype(f"<i{size}").view(f"<u{size}"))
        return (HUFFMAN, coded) if len(coded) < values.nbytes else None
    ordered = whole.astype(f">i{size}").view(np.uint8).reshape(len(values), size)
    bits: Bytes = np.unpackbits(ordered, axis=1)  # [n, width], sign first
    width, first = 8 * size, 1 + EXPONENTS[values.dtype]
    best: tuple[int, Bytes] | None = None
    for depth in range(first, DEEPEST + 1):
        coded = encode_bits(bits[:, :depth].reshape(-1), depth=depth)
        total = len(coded) + -(-len(bits) * (width - depth) // 8)
        if total < (values.nbytes if best is None else len(best[1])):
            best = depth, np.concatenate([coded, np.packbits(bits[:, depth:])])
    return best


def decode_values(
    data: Bytes, depth: int, count: int, dtype: torch.dtype, room: Any = None
) -> Tensor | None:
    """Decode `count` values of `encode_values`, into `room` if they are float32 and it is given.

    None if length or depth are impossible.
    """
    size = dtype.itemsize
    whole = np.empty(count, f"u{size}") if room is None or size < 4 else room.view(np.uint32)
    rest = -(-count * (8 * size - depth) // 8)
    if depth == HUFFMAN:
        sound = _decode_exponents(data, whole)
    elif sound := 0 < depth <= DEEPEST and len(data) >= rest:
        cut = len(data) - rest
        compiled(_decode_numbers)(data[:cut], data[cut:], depth, 8 * size, whole)
    return torch.from_numpy(whole.view(f"i{size}")).view(dtype) if sound else None


def encode_gaps(bits: Bytes) -> Bytes:
    """Code zeros and ones, [n] uint8 with a one, by a Huffman code of the zeros before each one."""
    gaps = np.diff(np.flatnonzero(bits), prepend=-1) - 1
    symbols = np.full(len(gaps) + (gaps // 255).sum(), 255, np.uint8)  # 255 zeros and no one
    symbols[np.cumsum(gaps // 255 + 1) - 1] = gaps % 255
    number = np.array([len(symbols)], "<u8").view(np.uint8)
    return np.concatenate([number, *_huffman(symbols)])


def decode_gaps(data: Bytes, count: int) -> Bytes | None:
    """Decode `count` bits of `encode_gaps`; None if the bytes cannot be such a code."""
    number = int.from_bytes(data[:8].tobytes(), "little")
    symbols = _unhuffman(data[8:264], data[264:], number) if number <= count else None
    bits = np.zeros(count, np.uint8)
    if symbols is None or not compiled(_set_after)(symbols[:number], bits):
        return None
    return bits


def _encode_exponents(whole: NDArray[Any]) -> Bytes:
    """Code unsigned [n]: lengths of codes, planes of all bytes but the exponents', the codes."""
    size = whole.itemsize
    turned = (whole << 1) | (whole >> (8 * size - 1))  # the sign last, the exponent first
    planes = turned.view(np.uint8).reshape(-1, size).T
    lengths, codes = _huffman(planes[-1])
    return np.concatenate([lengths, planes[:-1].reshape(-1), codes])


def _decode_exponents(data: Bytes, out: Any) -> bool:
    """Decode unsigned [n] of `_encode_exponents`; false if the bytes cannot be such a code."""
    begin = 256 + out.size * (out.itemsize - 1)
    top = _unhuffman(data[:256], data[begin:], out.size) if len(data) >= begin else None
    if top is not None:
        compiled(_join)(data[256:begin], top, out)
    return top is not None


def _huffman(symbols: Bytes) -> tuple[Bytes, Bytes]:
    """Lengths of the codes of 256 symbols, and the codes of these symbols one after another."""
    lengths = _code_lengths(np.bincount(symbols, minlength=256))
    order, wide = _canonical(lengths)
    codes = np.zeros(256, np.uint16)  # left-aligned in 16 bits
    spans = 1 << (LONGEST - wide.astype(np.int64))
    codes[order] = (np.cumsum(spans) - spans) << (16 - LONGEST)
    bits = np.unpackbits(codes.astype(">u2").view(np.uint8).reshape(256, 2), axis=1)
    used = np.arange(16) < lengths[:, None]
    return lengths, np.packbits(bits[symbols][used[symbols]])


def _unhuffman(lengths: Bytes, data: Bytes, count: int) -> Bytes | None:
    """Decode `count` symbols of `_huffman`, and four more; None if `lengths` are of no code."""
    if len(lengths) < 256 or lengths.max() > LONGEST:
        return None
    order, wide = _canonical(lengths)
    spans = 1 << (LONGEST - wide.astype(np.int64))
    if spans.sum() != 1 << LONGEST:
        return None
    first, step = (np.repeat(what, spans).astype(np.int64) for what in (order, wide))
    words = np.zeros(-(-len(data) // 4), ">u4")
    words.view(np.uint8)[: len(data)] = data
    top = np.empty(count + 4, np.uint8)
    compiled(_decode_symbols)(words.astype(np.int64), first, step, top)
    return top


def _code_lengths(counts: NDArray[Any]) -> Bytes:
    """Length of the Huffman code of each of 256 symbols, at most `LONGEST`; 0 if it is absent."""
    while True:
        heap = [(int(count), [symbol]) for symbol, count in enumerate(counts) if count]
        lengths = np.zeros(256, np.uint8)
        if len(heap) == 1:  # a code needs two
            heap.append((0, [heap[0][1][0] ^ 1]))
        heapq.heapify(heap)
        while len(heap) > 1:
            (one, left), (other, right) = heapq.heappop(heap), heapq.heappop(heap)
            lengths[left + right] += 1
            heapq.heappush(heap, (one + other, left + right))
        if lengths.max() <= LONGEST:
            return lengths
        counts = (counts + 1) // 2  # flatter, none of them zero


def _canonical(lengths: Bytes) -> tuple[Bytes, Bytes]:
    """Symbols in the order of their codes, shortest first, and the lengths of these."""
    symbols = np.argsort(lengths, kind="stable")
    symbols = symbols[lengths[symbols] > 0]
    return symbols.astype(np.uint8), lengths[symbols]


def _decode_symbols(words: Any, first: Any, step: Any, top: Bytes) -> None:
    """Fill `top` with the symbols that `words` of 32 bits code; the last four are any.

    ``first`` and ``step`` are the first symbol of what 12 bits begin with, and the bits it takes.
    """
    table = np.zeros(first.size, np.int64)  # up to four symbols, their number, and their bits
    for window in range(first.size):
        entry, number, taken = 0, 0, 0
        while number < 4:
            here = (window << taken) & 0xFFF
            if taken + step[here] > LONGEST:
                break
            entry |= first[here] << (8 * number)
            number, taken = number + 1, taken + step[here]
        table[window] = entry | (number << 32) | (taken << 40)
    buffer, held, place, done, n = 0, 0, 0, 0, top.size - 4
    while done < n:
        if held < LONGEST:
            word = int(words[place]) if place < words.size else 0
            buffer, held, place = ((buffer & 0xFFF) << 32) | word, held + 32, place + 1
        entry = table[(buffer >> (held - LONGEST)) & 0xFFF]
        top[done] = entry & 255  # four symbols, of which the next lookup covers the wrong ones
        top[done + 1] = (entry >> 8) & 255
        top[done + 2] = (entry >> 16) & 255
        top[done + 3] = (entry >> 24) & 255
        done += (entry >> 32) & 255
        held -= entry >> 40


def _join(low: Bytes, top: Bytes, out: Any) -> None:
    """Fill `out` with the values of the planes `low` and of the exponents `top`."""
    n = out.size
    if low.size == n:
        for i in range(n):
            value = np.uint32(low[i]) | np.uint32(top[i]) << np.uint32(8)
            out[i] = value >> np.uint32(1) | (value & np.uint32(1)) << np.uint32(15)
    else:
        one, two, three = low[:n], low[n : 2 * n], low[2 * n :]
        for i in range(n):
            value = np.uint32(one[i]) | np.uint32(two[i]) << np.uint32(8)
            value |= np.uint32(three[i]) << np.uint32(16) | np.uint32(top[i]) << np.uint32(24)
            out[i] = value >> np.uint32(1) | value << np.uint32(31)


def _set_after(gaps: Bytes, bits: Bytes) -> bool:
    """Set a bit after each gap, but not after 255 zeros; false if one would be past the end."""
    place = 0
    for i in range(gaps.size):
        place += int(gaps[i])
        if gaps[i] < 255:
            if place >= bits.size:
                return False
            bits[place] = 1
            place += 1
    return place <= bits.size


def _encode(bits: Bytes, data: Bytes, stride: int, contexts: int, depth: int) -> int:
    """Encode `bits` into `data`; the number of bytes."""
    ones = np.zeros(1 << depth if depth else contexts, np.int64)
    count = np.zeros(ones.size, np.int64)
    low, high, place = 0, 0xFFFFFFFF, 0
    c, step = 1 if depth else 0, 0
    for i in range(bits.size):
        # Exact: both are far below 2^53. Floats are divided in a third of the time of integers.
        p = min(max(int((2 * ones[c] + 1) * 65536.0 / (2 * count[c] + 2)), 1), 65535)
        span = high - low
        middle = low + (span >> 16) * p + (((span & 0xFFFF) * p) >> 16)  # the last of a set bit
        bit = bits[i] != 0
        count[c] += 1
        if bit:
            high = middle
            ones[c] += 1
        else:
            low = middle + 1
        step += 1
        if depth:
            c, step = (2 * c + bit, step) if step < depth else (1, 0)
        elif step == stride:
            c, step = (c + 1) % contexts, 0
        while (low ^ high) >> 24 == 0:
            data[place] = high >> 24
            place += 1
            low = (low << 8) & 0xFFFFFFFF
            high = ((high << 8) & 0xFFFFFFFF) | 255
    data[place] = (low >> 24) + 1  # first bytes differ: this one, zeros after it, is between
    return place + 1


def _decode_runs(bits: Bytes, data: Bytes, stride: int, contexts: int) -> None:
    """Decode what `_encode` made without a depth: one context's counts stay in registers.

    ``one`` and ``count`` are ``65536 * (2 * ones + 1)`` and ``2 * count + 2``, exact in floats.
    """
    ones, counts = np.full(contexts, 65536.0), np.full(contexts, 2.0)
    low, high, code, place, end = 0, 0xFFFFFFFF, 0, 0, data.size
    while place < 4:
        code = (code << 8) | (int(data[place]) if place < end else 0)
        place += 1
    c, begin = 0, 0
    while begin < bits.size:
        one, count, stop = ones[c], counts[c], min(begin + stride, bits.size)
        for i in range(begin, stop):
            middle = low + (((high - low) * max(int(one / count), 1)) >> 16)
            count += 2.0
            if code <= middle:
                high, bits[i] = middle, 1
                one += 131072.0
            else:
                low, bits[i] = middle + 1, 0
            while (low ^ high) >> 24 == 0:
                code = ((code << 8) & 0xFFFFFFFF) | (int(data[place]) if place < end else 0)
                place += 1
                low = (low << 8) & 0xFFFFFFFF
                high = ((high << 8) & 0xFFFFFFFF) | 255
        ones[c], counts[c], begin, c = one, count, stop, (c + 1) % contexts


def _decode_numbers(data: Bytes, rest: Bytes, depth: int, width: int, out: Any) -> None:
    """Decode numbers of `width` bits: `depth` of `_encode`, and the others from `rest`."""
    ones, counts = np.full(1 << depth, 65536.0), np.full(1 << depth, 2.0)
    low, high, code, place, end = 0, 0xFFFFFFFF, 0, 0, data.size
    while place < 4:
        code = (code << 8) | (int(data[place]) if place < end else 0)
        place += 1
    held, bits, at, wide = 0, 0, 0, width - depth
    for i in range(out.size):
        c = 1
        for _ in range(depth):
            middle = low + (((high - low) * max(int(ones[c] / counts[c]), 1)) >> 16)
            counts[c] += 2.0
            if code <= middle:
                ones[c] += 131072.0
                high, c = middle, 2 * c + 1
            else:
                low, c = middle + 1, 2 * c
            while (low ^ high) >> 24 == 0:
                code = ((code << 8) & 0xFFFFFFFF) | (int(data[place]) if place < end else 0)
                place += 1
                low = (low << 8) & 0xFFFFFFFF
                high = ((high << 8) & 0xFFFFFFFF) | 255
        while bits < wide:
            held, bits, at = ((held & 0xFFFFFFFF) << 8) | int(rest[at]), bits + 8, at + 1
        bits -= wide
        out[i] = ((c - (1 << depth)) << wide) | ((held >> bits) & ((1 << wide) - 1))


def _spread(kept: Bytes, values: Any, out: Any) -> None:
    """A product, as a selection is compiled to a branch; the value after the last one is read."""
    place = 0
    for i in range(out.size):
        out[i] = values[place] * np.uint32(kept[i])
        place += int(kept[i])


@cache
def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """A loop compiled by numba if possible; plain Python is 300 times slower."""
    try:
        import numba

        return numba.njit(cache=True, nogil=True)(loop)  # type: ignore[no-any-return]
    except Exception as fault:
        logging.getLogger(__name__).warning("exports are coded without numba, slowly: %s", fault)
        return loop
