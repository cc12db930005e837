"""The files of an export: tensors packed into streams, and a config.json that seals them.

Each tensor is stored as mask, signs, gains and values, each in the shortest of its codes.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.bundle import BundleKind, Stage, open_bundle
from spikeformer_lt.disk import free_memory, parse_json, unpack_tensors
from spikeformer_lt.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    TicketError,
    check_license,
    listed,
    name_of,
    shown,
)
from spikeformer_lt.export.codec import (
    PRECISIONS,
    Bytes,
    decode_bits,
    decode_gaps,
    decode_values,
    encode_bits,
    encode_gaps,
    encode_values,
    spread_values,
)
from spikeformer_lt.mask import Mask
from spikeformer_lt.preprocess import Preprocess
from spikeformer_lt.ticket import Ticket

STREAMS = {"bits": torch.uint8, "gains": torch.float32, "raw": torch.uint8}
TABLE_LIMIT = 1 << 22  # bytes of text; a tensor takes about 150
FEW, PER_BYTE = 1 << 24, 1024  # entries that any export may have, and those to a byte of its file
BYTES, CODED_BYTES = 7, 48  # of memory: of all entries, and of those that are being decoded
DIMENSIONS = 8
TYPES = {"float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"}
CODES = ("bits", "one", "out", "in", "gaps", "all")
FORMAT = "spikeformer_lt.export"
CONFIG, TENSORS, CARD, PICTURE = "config.json", "model.safetensors", "README.md", "kept.svg"
# Format 1 had no coded values, formats 1 and 2 no preprocess, 1 to 3 no Huffman code of values, and
# 1 to 4 none of gaps.
EXPORT = BundleKind("export", FORMAT, 5, CONFIG, ExportError, (TENSORS, CARD, PICTURE), indent=None)


UNLICENSED = (
    "Licence of the weights: none was chosen, so whoever did not make them has no right to pass "
    "them on. Choose one by `spikeformer-lt export --license mit`, or `push --license mit`."
)


def licensed(card: str, license: str) -> str:
    """A model card with a licence in its head and its text, or as it is without one.

    Raises:
        ConfigError: see `check_license`.
    """
    check_license(license)
    if not license:
        return card
    card = re.sub(r"\A---\n(license: .*\n)?", f"---\nlicense: {license}\n", card)
    line = re.compile("^Licence of the weights: .*$", re.MULTILINE)
    return line.sub(f"Licence of the weights: {license}.", card, count=1)


@dataclass(frozen=True)
class Row:
    """How one tensor is stored.

    ``form`` is "dense", "raw" (bytes of another dtype than float32), "sparse" (values of the kept
    entries) or "binary" (signs of the kept entries, and one gain, or one per output filter).
    ``mask`` and ``signs`` are pairs (code, bytes); the codes are "bits", "one" (one context), "out"
    or "in" (one context per output or input channel), "gaps" (the zeros before each one), "all"
    (all kept) and "none" (no mask).
    ``values`` is the depth and the bytes of the code of the values; depth 0 is plain values.
    ``digest`` is the crc32 of values and mask (their sha256 up to format 3), which older readers
    check; the sha256 of the file, which every reader checks, says no less of them.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    form: str
    mask: Sequence[str | int]
    signs: Sequence[str | int]
    gains: int
    digest: str
    values: Sequence[int] = (0, 0)  # rows of format 1 lack it


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
        if str(plain.dtype).removeprefix("torch.") not in TYPES:
            raise ExportError(
                f"tensor {shown(name)} is {plain.dtype}; allowed: {listed(sorted(TYPES), 9)}"
            )
        kept = None if kept is None else kept.cpu()
        chosen = torch.ones_like(plain, dtype=torch.bool) if kept is None else kept
        form, value, signs, coded, count = "raw", plain, ("all", 0), (0, 0), 0
        gains = binary_gains(plain, chosen) if plain.dtype == torch.float32 else None
        # Beside many values, a mask that is read ten times faster may take 1/200 of their bytes.
        sparse = plain.dtype == torch.float32 and gains is None
        spare = int(chosen.sum()) * PRECISIONS[self.precision].itemsize // 200 if sparse else 0
        mask = ("none", 0) if kept is None else self._bits(kept, plain.shape, spare)
        if plain.dtype != torch.float32:
            self._put("raw", plain.reshape(-1).view(torch.uint8))
        elif gains is not None:
            form, count, negative = "binary", len(gains), plain[chosen] < 0
            signs = self._bits(negative, negative.shape)
            self._put("gains", gains)
            value = torch.where(chosen, plain, 0.0) + 0.0  # turns -0.0 into 0.0
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

    def _bits(self, bits: Tensor, shape: Sequence[int], spare: int = 0) -> tuple[str, int]:
        """Store bits in the shortest code, or by gaps if that takes at most `spare` bytes more."""
        flat = bits.reshape(-1).numpy().astype(np.uint8)
        if flat.all():
            return "all", 0
        codes: dict[str, Bytes] = {"bits": np.packbits(flat)}
        for code in ("one", "out", "in")[: 3 if len(shape) > 1 else 1]:
            codes[code] = encode_bits(flat, *contexts_of(code, shape))
        best = min(codes, key=lambda code: len(codes[code]))  # the first of the shortest
        if spare and len(gaps := encode_gaps(flat)) <= len(codes[best]) + spare:
            codes[best := "gaps"] = gaps
        self._put("bits", torch.from_numpy(codes[best]))
        return best, len(codes[best])

    def _put(self, stream: str, part: Tensor) -> None:
        self.parts.setdefault(stream, []).append(part.reshape(-1))


class Reader:
    """Unpacks the streams of a `Writer`; every length is checked."""

    def __init__(self, streams: dict[str, Tensor]) -> None:
        self.kind, self.places = streams["values"].dtype, dict.fromkeys(streams, 0)
        # Numpy cuts bytes in a tenth of torch's time, but knows no bfloat16.
        self.streams: dict[str, Any] = {
            name: part.numpy() if part.dtype == torch.uint8 else part
            for name, part in streams.items()
        }

    def get(self, rows: Sequence[Row]) -> list[tuple[Tensor, Tensor | None]]:
        """Every tensor and its mask, on torch's number of threads; a CheckpointError names one."""
        masks, others = zip(*map(self._coded, rows), strict=True)
        kept = _together(self._mask, rows, masks)
        plain = [self._plain(row, mask) for row, mask in zip(rows, kept, strict=True)]
        # One memory has large pages, which take a quarter of the time of many small ones.
        ends = np.cumsum([0 if row.form == "raw" else math.prod(row.shape) for row in rows])
        rooms = np.split(np.empty(ends[-1], np.float32), ends[:-1])
        values = _together(self._value, rows, kept, plain, others, rooms)
        for name, stream in self.streams.items():
            if left := len(stream) - self.places[name]:
                raise CheckpointError(f"stream {name} has {left} entries too many")
        return list(zip(values, kept, strict=True))

    def _coded(self, row: Row) -> tuple[Bytes, Bytes]:
        """The parts of the bits: a mask, and signs or coded values."""
        rest = {"binary": row.signs[1], "raw": 0}.get(row.form, row.values[1])
        mask = self._take(row, "bits", int(row.mask[1]))
        return mask, self._take(row, "bits", int(rest))

    def _mask(self, row: Row, coded: Bytes) -> Tensor | None:
        if row.mask[0] == "none":
            return None
        return self._bits(row, row.mask[0], coded, row.shape).view(torch.bool)

    def _plain(self, row: Row, kept: Tensor | None) -> Any:
        """What is not coded: raw bytes, gains or values."""
        if row.form == "raw":
            return self._take(row, "raw", math.prod(row.shape) * getattr(torch, row.dtype).itemsize)
        if row.form != "binary":
            return None if row.values[0] else self._take(row, "values", _count(row, kept))
        if row.gains not in (1, row.shape[0]):
            raise self._fault(row, f"{row.gains} gains for {row.shape[0]} filters")
        return self._take(row, "gains", row.gains)

    def _value(
        self, row: Row, kept: Tensor | None, plain: Any, coded: Bytes, room: NDArray[np.float32]
    ) -> Tensor:
        count, depth = _count(row, kept), row.values[0]
        if row.form == "raw":
            if row.dtype == "bool" and bool((plain > 1).any()):
                raise self._fault(row, "a byte of it is neither true nor false")
            kind = getattr(torch, row.dtype)
            if not plain.size:
                return torch.empty(list(row.shape), dtype=kind)
            return torch.from_numpy(plain.copy()).view(kind).view(list(row.shape))
        if row.form == "binary":
            chosen = torch.ones(list(row.shape), dtype=torch.bool) if kept is None else kept
            negative = self._bits(row, row.signs[0], coded, [count]).view(torch.bool)
            from_signs(chosen, negative, plain, room)
        else:
            whole = room if kept is None else None
            found = decode_values(coded, depth, count, self.kind, whole) if depth else plain
            if found is None:
                what = f"{len(coded)} bytes of depth {depth} cannot be {count} values"
                raise self._fault(row, what)
            wide = found.float().numpy()
            if kept is not None:
                spread(kept, wide, room)
            elif not np.may_share_memory(wide, room):
                room[:] = wide
        return torch.from_numpy(room).view(list(row.shape))

    def _bits(self, row: Row, code: str | int, data: Bytes, shape: Sequence[int]) -> Tensor:
        count = math.prod(shape)
        if code == "all":
            bits = np.ones(count, np.uint8)
        elif code == "bits":
            if len(data) != -(-count // 8):
                raise self._fault(row, f"{len(data)} bytes for {count} bits")
            bits = np.unpackbits(data, count=count)
        elif code == "gaps":
            found = decode_gaps(data, count)
            if found is None:
                raise self._fault(row, f"{len(data)} bytes cannot be the gaps of {count} bits")
            bits = found
        elif code in ("one", "out", "in") and (code == "one" or len(shape) > 1):
            bits = decode_bits(data, count, *contexts_of(str(code), shape))
        else:
            raise self._fault(row, f"code {shown(code)} does not suit shape {shown(shape)}")
        return torch.from_numpy(bits).view(list(shape))

    def _take(self, row: Row, stream: str, count: int) -> Any:
        begin = self.places[stream]
        part = self.streams[stream][begin : begin + count]
        if count < 0 or len(part) != count:
            raise self._fault(row, f"stream {stream} ends early")
        self.places[stream] = begin + count
        return part

    def _fault(self, row: Row, what: str) -> CheckpointError:
        return CheckpointError(f"damaged: tensor {shown(row.name)}: {what}")


def _together(call: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """``call`` of each row of the columns, in threads that take the next row when they are free."""
    found: list[Any] = [None] * len(columns[0])
    left = enumerate(zip(*columns, strict=True))

    def work(_: int) -> None:
        for place, args in left:
            found[place] = call(*args)

    with ThreadPoolExecutor(threads := torch.get_num_threads()) as pool:
        list(pool.map(work, range(threads)))
    return found


def _count(row: Row, kept: Tensor | None) -> int:
    return math.prod(row.shape) if kept is None else int(np.count_nonzero(kept.numpy()))


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

    Whether the tensors are of the model that is named is seen where its network takes them.

    Raises:
        ExportError: no export, a newer one, or files changed since it was written.
        CheckpointError: a damaged or foreign tensor file; the tensor is named where it is one.
    """
    bundle = open_bundle(folder, EXPORT)
    try:
        with bundle.reading(TENSORS) as data:
            streams, own = unpack_tensors(data, bundle.folder / TENSORS, verified=True)
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
    _refuse_sizes(rows, streams)
    found = {row.name: pair for row, pair in zip(rows, reader.get(rows), strict=True)}
    tensors = {name: value for name, (value, _) in found.items()}
    masks = {name: kept for name, (_, kept) in found.items() if kept is not None}
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
        "digest": isinstance(row.digest, str),
        "values": isinstance(row.values, list | tuple) and len(row.values) == 2
        and whole(*row.values),
    }  # fmt: skip
    for name, sound in checks.items():
        if not sound:
            odd = shown(getattr(row, name))
            raise CheckpointError(f"damaged: tensor {shown(row.name)}: {name} {odd} is impossible")
    return row


def _refuse_sizes(rows: Sequence[Row], streams: Mapping[str, Tensor]) -> None:
    """Compare the sizes with what can be, before decoding."""
    counts = [math.prod(row.shape) for row in rows]
    stored = sum(stream.nbytes for stream in streams.values())
    if sum(counts) > max(FEW, PER_BYTE * stored):
        raise CheckpointError(f"{sum(counts)} entries cannot come from {stored} bytes")
    coded = sorted((n for n, row in zip(counts, rows, strict=True) if row.values[0]), reverse=True)
    at_once, free = sum(coded[: torch.get_num_threads()]), free_memory()
    needed = BYTES * sum(counts) + CODED_BYTES * at_once
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


def digest_of(value: Tensor, kept: Tensor | None) -> str:
    """crc32 of dtype, shape, values and mask, as 8 hex digits."""
    parts = [value.contiguous(), *([] if kept is None else [kept.contiguous()])]
    found = zlib.crc32(f"{value.dtype} {list(value.shape)}\n".encode())
    for part in parts:
        found = zlib.crc32(part.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


# Numpy beside the reader's threads: each operation of torch would start threads of its own.
def spread(kept: Tensor, values: NDArray[np.float32], room: NDArray[np.float32]) -> None:
    """Put values [k] where `kept`, of the n entries of `room`, is set; 0 elsewhere."""
    spread_values(kept.numpy().reshape(-1).view(np.uint8), values, room)


def from_signs(kept: Tensor, negative: Tensor, gains: Tensor, room: NDArray[np.float32]) -> None:
    """Put in `room` the sign of each kept entry times the gain of its layer or filter."""
    axes = tuple(range(1, kept.ndim)) if len(gains) == len(kept) else None
    each = np.repeat(gains.numpy(), np.count_nonzero(kept.numpy(), axes))
    spread(kept, np.where(negative.numpy(), -each, each) + np.float32(0), room)  # no -0.0


def contexts_of(code: str, shape: Sequence[int]) -> tuple[int, int]:
    """Stride and number of the contexts of a code: "one", or one per "out" or "in" channel."""
    if code == "one":
        return 1, 1
    axis = ("out", "in").index(code)
    return max(1, math.prod(shape[axis + 1 :])), max(1, shape[axis])


def kept_picture(packed: Packed) -> str:
    """An SVG of the shares that are kept: of all that the run's report counts, else of the mask."""
    shares = packed.about.get("sparsity")
    removed = {"masked weights": packed.ticket.mask.sparsity}
    if isinstance(shares, dict):
        removed |= {str(k): v for k, v in shares.items() if isinstance(v, int | float)}
    bars = "".join(
        f'<text x="150" y="{30 * i + 20}" text-anchor="end">{cell(what.replace("_", " "))}</text>'
        f'<rect x="160" y="{30 * i + 6}" width="{300 * (1 - share):.1f}" height="18"/>'
        f'<text x="465" y="{30 * i + 20}">{100 * (1 - share):.1f} %</text>'
        for i, (what, share) in enumerate(removed.items())
    )
    known, foot = packed.ticket.provenance, 30 * len(removed) + 18
    told = (
        f"{known.get('dataset', 'data unknown')}, seed {known.get('seed', 'unknown')}, one network"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 540 {foot + 8}" '
        f'font-family="sans-serif" font-size="14" fill="#4477aa" role="img">'
        f"<title>Shares that are kept</title>{bars}"
        f'<text x="160" y="{foot}" font-size="11">{cell(told)}; bars: share kept</text></svg>\n'
    )


def cell(value: object) -> str:
    """Text or JSON for a cell of a card: one line, without markup, at most 300 characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text.replace("\\", "\\\\"))
    text = text if len(text) <= 300 else f"{text[:280]}...{text[-10:]}"
    return text.replace("|", "\\|").replace("<", "&lt;")
