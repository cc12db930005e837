"""The files of an export: tensors packed into streams, and a config.json that seals them.

Each tensor is stored as mask, signs, gains and values, each in the shortest of its codes. Bits are
coded by an arithmetic coder of 32-bit integers with adaptive counts, so every machine writes the
same bytes. A stream of n bits, k of them set, costs n H(k/n) + log2(n)/2 bits and a byte a context.
Source: Rissanen & Langdon 1979; the estimator of Krichevsky & Trofimov 1981.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.bundle import BundleKind, Stage, open_bundle
from spikeformer_lt.disk import free_memory, parse_json
from spikeformer_lt.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    TicketError,
    name_of,
    shown,
)
from spikeformer_lt.mask import Mask
from spikeformer_lt.preprocess import Preprocess
from spikeformer_lt.registry import list_models
from spikeformer_lt.ticket import Ticket, compare
from spikeformer_lt.tickets.surgery import expected_tensors

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STREAMS = {"bits": torch.uint8, "gains": torch.float32, "raw": torch.uint8}
TABLE_LIMIT = 1 << 22  # bytes of text; a tensor takes about 150
FEW, PER_BYTE = 1 << 24, 1024  # entries that any export may have, and those to a byte of its file
BYTES, CODED_BYTES = 7, 48  # of memory: of all entries, and of those that are being decoded
DIMENSIONS = 8
TYPES = {"float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
CODES = ("bits", "one", "out", "in", "all")
SMALL = 1 << 16  # values; of larger tensors only one depth is tried
DEEPEST = 14
EXPONENTS = {torch.float32: 8, torch.bfloat16: 8, torch.float16: 5}  # bits of each dtype
FORMAT = "spikeformer_lt.export"
CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
# Format 1 had no coded values, formats 1 and 2 no preprocess.
EXPORT = BundleKind("export", FORMAT, 3, CONFIG, ExportError, (TENSORS, CARD), indent=None)
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """How one tensor is stored.

    ``form`` is "dense", "raw" (bytes of another dtype than float32), "sparse" (values of the kept
    entries) or "binary" (signs of the kept entries, and one gain, or one per output filter).
    ``mask`` and ``signs`` are pairs (code, bytes); the codes are "bits", "one" (one context), "out"
    or "in" (one context per output or input channel), "all" (all kept) and "none" (no mask).
    ``values`` is the depth and the bytes of the code of the values; depth 0 is plain values.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    form: str
    mask: Sequence[str | int]
    signs: Sequence[str | int]
    gains: int
    sha256: str
    values: Sequence[int] = (0, 0)  # rows of format v1 lack it


@dataclass
class Writer:
    """Packs tensors into four streams; `precision` is that of values that are not binary."""

    precision: str = "fp32"
    rows: list[Row] = field(default_factory=list)
    parts: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor, kept: Tensor | None) -> None:
        """Pack a tensor whose removed entries are 0; -0.0 there comes back as 0.0.

        Raises:
            ExportError: float64, or a value too large for the precision.
        """
        plain = tensor.detach().cpu().contiguous()
        if plain.dtype == torch.float64:
            raise ExportError(f"tensor {shown(name)} is float64; convert the model with .float()")
        kept = None if kept is None else kept.cpu()
        chosen = torch.ones_like(plain, dtype=torch.bool) if kept is None else kept
        form, value, signs, coded, count = "raw", plain, ("all", 0), (0, 0), 0
        mask = ("none", 0) if kept is None else self._bits(kept, plain.shape)
        if plain.dtype != torch.float32:
            self._put("raw", plain.reshape(-1).view(torch.uint8))
        elif (gains := binary_gains(plain, chosen)) is not None:
            form, count, negative = "binary", len(gains), plain[chosen] < 0
            signs = self._bits(negative, negative.shape)
            self._put("gains", gains)
            value = from_signs(chosen, negative, gains)
        else:
            form, value = "dense" if kept is None else "sparse", torch.zeros_like(plain)
            value[chosen], coded = self._values(plain[chosen], name)
        dtype, shape = str(plain.dtype).removeprefix("torch."), list(plain.shape)
        digest = digest_of(value, kept)
        self.rows.append(Row(name, dtype, shape, form, mask, signs, count, digest, coded))

    def streams(self) -> dict[str, Tensor]:
        """The four streams as flat tensors."""
        kinds = {**STREAMS, "values": PRECISIONS[self.precision]}
        return {
            name: torch.cat(self.parts[name]) if name in self.parts else torch.empty(0, dtype=kind)
            for name, kind in kinds.items()
        }

    def _values(self, values: Tensor, name: str) -> tuple[Tensor, tuple[int, int]]:
        """Store values at the precision; return them rounded, and the depth and bytes of a code."""
        narrow = values.to(PRECISIONS[self.precision])
        if not bool(torch.isfinite(narrow).all()):
            raise ExportError(
                f"tensor {shown(name)} reaches {float(values.abs().max()):g}, more than "
                f"{self.precision} can hold; take bf16 or fp32"
            )
        found = encode_values(narrow)
        if found is None:
            self._put("values", narrow)
            return narrow.float(), (0, 0)
        self._put("bits", torch.from_numpy(found[1]))
        return narrow.float(), (found[0], len(found[1]))

    def _bits(self, bits: Tensor, shape: Sequence[int]) -> tuple[str, int]:
        flat = bits.reshape(-1).numpy().astype(np.uint8)
        if flat.all():
            return "all", 0
        codes: dict[str, Bytes] = {"bits": np.packbits(flat)}
        for code in ("one", "out", "in")[: 3 if len(shape) > 1 else 1]:
            codes[code] = encode_bits(flat, *contexts_of(code, shape))
        best = min(codes, key=lambda code: len(codes[code]))  # the first of the shortest
        self._put("bits", torch.from_numpy(codes[best]))
        return best, len(codes[best])

    def _put(self, stream: str, part: Tensor) -> None:
        self.parts.setdefault(stream, []).append(part.reshape(-1))


class Reader:
    """Unpacks the streams of a `Writer`; every length is checked."""

    def __init__(self, streams: dict[str, Tensor]) -> None:
        self.streams, self.places = streams, dict.fromkeys(streams, 0)

    def get(self, row: Row) -> tuple[Tensor, Tensor | None]:
        """A tensor and its mask.

        Raises:
            CheckpointError: a row that does not fit the streams, or another sha256; it is named.
        """
        if row.form == "raw":
            dtype: torch.dtype = getattr(torch, row.dtype)
            raw = self._take(row, "raw", math.prod(row.shape) * dtype.itemsize)
            if dtype == torch.bool and bool((raw > 1).any()):
                raise self._fault(row, "a byte of it is neither true nor false")
            value = raw.clone().view(dtype).view(list(row.shape))
        unmasked = row.mask[0] == "none"
        kept = None if unmasked else self._bits(row, row.mask, row.shape).bool()
        chosen = torch.ones(list(row.shape), dtype=torch.bool) if kept is None else kept
        number = int(chosen.sum())
        if row.form in ("dense", "sparse"):
            value = torch.zeros(list(row.shape))
            value[chosen] = self._values(row, number).float()
        elif row.form == "binary":
            if row.gains not in (1, row.shape[0]):
                raise self._fault(row, f"{row.gains} gains for {row.shape[0]} filters")
            negative = self._bits(row, row.signs, [number]).bool()
            value = from_signs(chosen, negative, self._take(row, "gains", row.gains))
        if digest_of(value, kept) != row.sha256:
            raise self._fault(row, "its values have another sha256 than was written")
        return value, kept

    def end(self) -> None:
        """Refuse streams that are longer than their rows."""
        for name, stream in self.streams.items():
            if self.places[name] != stream.numel():
                left = stream.numel() - self.places[name]
                raise CheckpointError(f"stream {name} has {left} entries too many")

    def _values(self, row: Row, count: int) -> Tensor:
        depth, size = row.values
        if depth == 0:
            return self._take(row, "values", count)
        data = self._take(row, "bits", size).numpy()
        found = decode_values(data, depth, count, self.streams["values"].dtype)
        if found is None:
            raise self._fault(row, f"{size} bytes of depth {depth} cannot be {count} values")
        return found

    def _bits(self, row: Row, code: Sequence[str | int], shape: Sequence[int]) -> Tensor:
        kind, size, count = str(code[0]), int(code[1]), math.prod(shape)
        data = self._take(row, "bits", size).numpy()
        if kind == "all":
            bits = np.ones(count, np.uint8)
        elif kind == "bits":
            if size != -(-count // 8):
                raise self._fault(row, f"{size} bytes for {count} bits")
            bits = np.unpackbits(data, count=count)
        elif kind in ("one", "out", "in") and (kind == "one" or len(shape) > 1):
            bits = decode_bits(data, count, *contexts_of(kind, shape))
        else:
            raise self._fault(row, f"code {shown(kind)} does not suit shape {shown(shape)}")
        return torch.from_numpy(bits).view(list(shape))

    def _take(self, row: Row, stream: str, count: int) -> Tensor:
        begin = self.places[stream]
        part = self.streams[stream][begin : begin + count]
        if count < 0 or len(part) != count:
            raise self._fault(row, f"stream {stream} ends early")
        self.places[stream] = begin + count
        return part

    def _fault(self, row: Row, what: str) -> CheckpointError:
        return CheckpointError(f"damaged: tensor {shown(row.name)}: {what}")


@dataclass(frozen=True, eq=False)
class Packed:
    """An unpacked export: the ticket, the storage of each tensor, and the values of `about`."""

    ticket: Ticket
    rows: tuple[Row, ...]
    table_bytes: int
    precision: str
    about: dict[str, Any]


def write_packed(
    stage: Stage, ticket: Ticket, precision: str = "fp32", about: Mapping[str, Any] | None = None
) -> None:
    """Write and seal ``model.safetensors`` and ``config.json``; `about` is any further JSON.

    `precision`, "fp32", "fp16" or "bf16", is that of all but masks, signs, gains and integers.

    Raises:
        ExportError: an unknown precision, a tensor that cannot be stored (named), or a full disk.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision={shown(precision)} is not one of {', '.join(PRECISIONS)}")
    writer = Writer(precision)
    for name, tensor in ticket.tensors.items():
        writer.add(name, tensor, ticket.mask.get(name))
    text = json.dumps([list(astuple(row)) for row in writer.rows], separators=(",", ":"))
    table = bytearray(zlib.compress(text.encode("ascii"), 9))
    streams = {**writer.streams(), "table": torch.frombuffer(table, dtype=torch.uint8)}
    stage.write_tensors(TENSORS, streams, {"kind": FORMAT})
    body: dict[str, Any] = {"precision": precision}
    if list(ticket.mask) != [row.name for row in writer.rows if row.mask[0] != "none"]:
        body["mask_order"] = list(ticket.mask)  # otherwise that of the tensors
    body |= {"provenance": dict(ticket.provenance), "about": dict(about or {})}
    if "preprocess" in ticket.provenance:
        body["preprocess"] = body["provenance"].pop("preprocess")
    stage.seal(body)


def read_packed(folder: str | Path) -> Packed:
    """Read and verify an export; each file is read once, and nothing is ever unpickled.

    Raises:
        ExportError: no export, a newer one, or files changed since it was written.
        CheckpointError: a damaged or foreign tensor file, or one of another model than is named;
            the tensor is named where it is one.
    """
    bundle = open_bundle(folder, EXPORT)
    streams, own = bundle.tensors(TENSORS)
    try:
        return _unpacked(bundle.about, streams, own)
    except (CheckpointError, TicketError, ConfigError) as fault:
        raise CheckpointError(f"{name_of(bundle.folder / TENSORS)}: {fault}") from None
    except MemoryError:
        raise CheckpointError(f"{name_of(bundle.folder / TENSORS)}: too large to unpack") from None
    except ExportError as fault:
        raise ExportError(f"{name_of(folder)}: {CONFIG} {fault}") from None


def _unpacked(body: dict[str, Any], streams: dict[str, Tensor], own: Mapping[str, Any]) -> Packed:
    if not all(isinstance(body.get(name), dict) for name in ("provenance", "about")):
        raise ExportError("lacks provenance, about")
    if body.get("precision") not in PRECISIONS:
        raise ExportError("has no known precision")
    kinds = {name: part.dtype for name, part in streams.items()}
    wanted = {**STREAMS, "values": PRECISIONS[body["precision"]], "table": torch.uint8}
    if own != {"kind": FORMAT} or kinds != wanted:
        raise CheckpointError(f"holds {shown(own)}, not a packed ticket")
    provenance = dict(body["provenance"])
    if "preprocess" in body:
        provenance["preprocess"] = body["preprocess"]
        Preprocess.known(provenance)
    table = streams.pop("table")
    rows, reader = _unpack_table(table), Reader(streams)
    _refuse_sizes(rows, streams, body["provenance"])
    tensors, masks = {}, {}
    for row in rows:
        tensors[row.name], kept = reader.get(row)
        if kept is not None:
            masks[row.name] = kept
    reader.end()
    order = body.get("mask_order", list(masks))
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(masks):
        raise ExportError("names other masks than it stores")
    ticket = Ticket(Mask({name: masks[name] for name in order}), tensors, provenance)
    return Packed(ticket, tuple(rows), table.numel(), body["precision"], body["about"])


def _unpack_table(table: Tensor) -> list[Row]:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(table.numpy().tobytes(), TABLE_LIMIT).decode("ascii")
    except (zlib.error, UnicodeDecodeError) as fault:
        raise CheckpointError(f"damaged: its table of tensors: {fault}") from None
    if unpacker.unconsumed_tail:
        raise CheckpointError(f"its table of tensors is longer than {TABLE_LIMIT} bytes")
    entries = parse_json(text, "its table of tensors", CheckpointError)
    if not isinstance(entries, list) or not entries:
        raise CheckpointError("its table of tensors has another form")
    rows = {(row := _row(entry)).name: row for entry in entries}
    if len(rows) < len(entries):
        raise CheckpointError("its table of tensors names a tensor twice")
    return list(rows.values())


def _row(entry: Any) -> Row:
    """A row of the table, whose values have their types and keep within their bounds."""

    def whole(*values: Any) -> bool:
        return all(type(value) is int and 0 <= value < 1 << 40 for value in values)

    def code(pair: Any, *known: str) -> bool:
        return isinstance(pair, list) and len(pair) == 2 and pair[0] in known and whole(pair[1])

    if not isinstance(entry, list) or len(entry) not in (8, 9) or not isinstance(entry[0], str):
        raise CheckpointError("its table of tensors has another form")
    row = Row(*entry)
    forms = ("dense", "sparse", "binary") if row.dtype == "float32" else ("raw",)
    checks = {
        "dtype": isinstance(row.dtype, str) and row.dtype in TYPES,
        "shape": isinstance(row.shape, list) and len(row.shape) <= DIMENSIONS and whole(*row.shape),
        "form": row.form in forms and (row.form != "binary" or len(row.shape) > 1),
        "mask": code(row.mask, "none", *CODES),
        "signs": code(row.signs, *CODES),
        "gains": whole(row.gains),
        "sha256": isinstance(row.sha256, str),
        "values": isinstance(row.values, list | tuple) and len(row.values) == 2
        and whole(*row.values),
    }  # fmt: skip
    for name, sound in checks.items():
        if not sound:
            odd = shown(getattr(row, name))
            raise CheckpointError(f"damaged: tensor {shown(row.name)}: {name} {odd} is impossible")
    return row


def _refuse_sizes(rows: Sequence[Row], streams: Mapping[str, Tensor], known: Any) -> None:
    """Compare names and shapes with the model's and the sizes with what can be, before decoding."""
    if isinstance(known.get("model"), dict) and known["model"].get("name") in list_models():
        expected = expected_tensors(known, len(rows))
        found = {row.name: torch.empty(row.shape, device="meta") for row in rows}
        compare(found, expected)
    counts = [math.prod(row.shape) for row in rows]
    stored = sum(stream.nbytes for stream in streams.values())
    if sum(counts) > max(FEW, PER_BYTE * stored):
        raise CheckpointError(f"{sum(counts)} entries cannot come from {stored} bytes")
    coded = max((n for n, row in zip(counts, rows, strict=True) if row.values[0]), default=0)
    needed, free = BYTES * sum(counts) + CODED_BYTES * coded, free_memory()
    if needed > free:
        raise CheckpointError(f"{needed} bytes of memory are needed to unpack it, {free} are free")


def binary_gains(weight: Tensor, kept: Tensor) -> Tensor | None:
    """Gain of the layer ``[1]``, or of each output filter ``[out]``, of a binary weight.

    A weight is binary if its kept entries share one magnitude, in the layer or in each filter. None
    is returned if it is not, or if its gains are more than half of its kept entries.
    """
    if weight.ndim < 2 or weight.numel() == 0:
        return None
    size = torch.where(kept, weight.abs(), weight.new_zeros(())).flatten(1)
    top = size.amax(1)
    if not bool(((size == top[:, None]) | ~kept.flatten(1)).all()):
        return None
    found = top[kept.flatten(1).any(1)]
    if len(found) == 0 or bool((found == found[0]).all()):
        return found[:1] if len(found) else weight.new_zeros(1)
    # As many gains as weights would say nothing shorter than the weights themselves.
    return top if 2 * len(top) <= int(kept.sum()) else None


def encode_bits(bits: Bytes, stride: int = 1, contexts: int = 1, depth: int = 0) -> Bytes:
    """Code a stream of bits.

    Args:
        bits: zeros and ones, [n] uint8.
        stride, contexts: bit i is counted in context ``(i // stride) % contexts``.
        depth: if not 0, the bits are numbers of `depth` bits, highest first, and each bit is
            counted in a context of those before it in its number.

    Returns:
        At most ``17 * n / 8 + 2`` bytes; n itself is not among them.
    """
    out = np.empty(17 * bits.size // 8 + 2, np.uint8)
    size = _coder()(bits, out, stride, contexts, depth, False)
    return out[:size].copy()


def decode_bits(
    data: Bytes, count: int, stride: int = 1, contexts: int = 1, depth: int = 0
) -> Bytes:
    """Decode `count` bits of `encode_bits`; foreign data give other bits, so check a hash."""
    bits = np.empty(count, np.uint8)
    _coder()(bits, np.array(data), stride, contexts, depth, True)
    return bits


def encode_values(values: Tensor) -> tuple[int, Bytes] | None:
    """Code float32, float16 or bfloat16 [n] without loss.

    The leading bits of values of similar size are unevenly distributed: each of the first `depth`
    bits is coded in the context of those before it. The rest is nearly random and stays as it is.

    Returns:
        The depth and the bytes, or None if plain values are as short.
    """
    size = values.element_size()
    whole = values.contiguous().view(torch.int32 if size == 4 else torch.int16).numpy()
    ordered = whole.astype(f">i{size}").view(np.uint8).reshape(len(values), size)
    bits: Bytes = np.unpackbits(ordered, axis=1)  # [n, width], sign first
    width, first = 8 * size, 1 + EXPONENTS[values.dtype]
    deepest = DEEPEST if len(bits) <= SMALL else first
    best: tuple[int, Bytes] | None = None
    for depth in range(first, deepest + 1):
        coded = encode_bits(bits[:, :depth].reshape(-1), depth=depth)
        total = len(coded) + -(-len(bits) * (width - depth) // 8)
        if total < (values.nbytes if best is None else len(best[1])):
            best = depth, np.concatenate([coded, np.packbits(bits[:, depth:])])
    return best


def decode_values(data: Bytes, depth: int, count: int, dtype: torch.dtype) -> Tensor | None:
    """Decode `count` values of `encode_values`; None if length or depth are impossible."""
    width = 8 * dtype.itemsize
    rest = -(-count * (width - depth) // 8)
    if not 0 < depth <= DEEPEST or len(data) < rest:
        return None
    cut = len(data) - rest
    bits = np.empty((count, width), np.uint8)
    top = decode_bits(data[:cut], count * depth, depth=depth)
    bits[:, :depth] = top.reshape(count, depth)
    low = np.unpackbits(data[cut:], count=count * (width - depth))
    bits[:, depth:] = low.reshape(count, width - depth)
    whole = np.packbits(bits, axis=1).view(f">i{width // 8}").reshape(-1)
    return torch.from_numpy(whole.astype(f"=i{width // 8}")).view(dtype)


def digest_of(value: Tensor, kept: Tensor | None) -> str:
    """sha256 of dtype, shape, values and mask."""
    digest = hashlib.sha256(f"{value.dtype} {list(value.shape)}\n".encode())
    if value.numel():
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if kept is not None:
        digest.update(np.packbits(kept.numpy().reshape(-1)).data)
    return digest.hexdigest()


def from_signs(kept: Tensor, negative: Tensor, gains: Tensor) -> Tensor:
    """Weights: the sign of each kept entry times the gain of its layer or filter."""
    value = torch.zeros(kept.shape)
    value[kept] = torch.where(negative, -1.0, 1.0)
    return value * gains.view(-1, *[1] * (kept.ndim - 1)) + 0.0  # turns -0.0 into 0.0


def contexts_of(code: str, shape: Sequence[int]) -> tuple[int, int]:
    """Stride and number of the contexts of a code: "one", or one per "out" or "in" channel."""
    if code == "one":
        return 1, 1
    axis = ("out", "in").index(code)
    return max(1, math.prod(shape[axis + 1 :])), max(1, shape[axis])


def _code(bits: Bytes, data: Bytes, stride: int, contexts: int, depth: int, decodes: bool) -> int:
    """Encode `bits` into `data`, or decode them from it; the number of bytes that were coded."""
    contexts = 1 << depth if depth else contexts
    ones, count = np.zeros(contexts, np.int64), np.zeros(contexts, np.int64)
    low, high, code, place, node = 0, 0xFFFFFFFF, 0, 0, 1
    while decodes and place < 4:
        code = (code << 8) | (int(data[place]) if place < data.size else 0)
        place += 1
    for i in range(bits.size):
        c, span = node if depth else (i // stride) % contexts, high - low
        p = min(max(((2 * ones[c] + 1) << 16) // (2 * count[c] + 2), 1), 65535)
        middle = low + (span >> 16) * p + (((span & 0xFFFF) * p) >> 16)  # the last of a set bit
        if decodes:
            bits[i] = code <= middle
        if bits[i]:
            high = middle
            ones[c] += 1
        else:
            low = middle + 1
        count[c] += 1
        if depth:
            node = 2 * node + int(bits[i]) if (i + 1) % depth else 1
        while (low ^ high) >> 24 == 0:
            if decodes:
                code = ((code << 8) & 0xFFFFFFFF) | (int(data[place]) if place < data.size else 0)
            else:
                data[place] = high >> 24
            place += 1
            low = (low << 8) & 0xFFFFFFFF
            high = ((high << 8) & 0xFFFFFFFF) | 255
    if not decodes:  # the first bytes of low and high differ: this one, zeros after it, is between
        data[place] = (low >> 24) + 1
    return place + 1


@cache
def _coder() -> Callable[..., int]:
    """The coder, compiled by numba if possible; plain Python is 300 times slower."""
    try:
        import numba

        return numba.njit(cache=True)(_code)  # type: ignore[no-any-return]
    except Exception as fault:
        logging.getLogger(__name__).warning("masks are coded without numba, slowly: %s", fault)
        return _code
