"""The files of an export: tensors packed into streams, and a config.json that seals them.

Each tensor is stored as mask, signs, gains and values, each in the shortest of its codes. The
streams are one safetensors file with a table of the tensors.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeformer_lt.bundle import BundleKind, Stage, open_bundle
from spikeformer_lt.disk import parse_json
from spikeformer_lt.errors import CheckpointError, ExportError, shown
from spikeformer_lt.export.codec import (
    contexts_of,
    decode_bits,
    decode_values,
    digest_of,
    encode_bits,
    encode_values,
    from_signs,
)
from spikeformer_lt.layers.subnet import binary_gains
from spikeformer_lt.mask import Mask
from spikeformer_lt.ticket import Ticket

__all__ = [
    "CARD",
    "CONFIG",
    "EXPORT",
    "PRECISIONS",
    "TENSORS",
    "Packed",
    "Reader",
    "Row",
    "Writer",
    "read_packed",
    "write_packed",
]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
STREAMS = {"bits": torch.uint8, "gains": torch.float32, "raw": torch.uint8}
MAX_ENTRIES = 1 << 34
TABLE_LIMIT = 1 << 26  # bytes of text
FORMAT = "spikeformer_lt.export"
CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
EXPORT = BundleKind(  # format 1 had no coded values
    "export", FORMAT, 2, CONFIG, ExportError, files=(TENSORS, CARD), indent=None
)
Bits = NDArray[np.uint8]


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

    def as_list(self) -> list[object]:
        """Values in the order of the fields, for JSON."""
        return list(astuple(self))


@dataclass
class Writer:
    """Packs tensors, one after another, into four streams.

    Args:
        precision: of the dense values and of kept values that are not binary.
    """

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
        elif kept is None:
            form = "dense"
            value, coded = self._values(plain, name)
        else:
            form, value = "sparse", torch.zeros_like(plain)
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
        narrow = values.reshape(-1).to(PRECISIONS[self.precision])
        if not bool(torch.isfinite(narrow).all()):
            top = float(values.abs().max())
            raise ExportError(
                f"tensor {shown(name)} reaches {top:g}, more than {self.precision} can hold; "
                "take bf16 or fp32"
            )
        found = encode_values(narrow)
        if found is None:
            self._put("values", narrow)
        else:
            self._put("bits", torch.from_numpy(found[1]))
        coded = (0, 0) if found is None else (found[0], len(found[1]))
        return narrow.float().view(values.shape), coded

    def _bits(self, bits: Tensor, shape: Sequence[int]) -> tuple[str, int]:
        flat = bits.reshape(-1).numpy().astype(np.uint8)
        if flat.all():
            return "all", 0
        codes: dict[str, Bits] = {"bits": np.packbits(flat)}
        for code in ("one", "out", "in")[: 3 if len(shape) > 1 else 1]:
            codes[code] = encode_bits(flat, *contexts_of(code, shape))
        best = min(codes, key=lambda code: len(codes[code]))  # the first of the shortest
        self._put("bits", torch.from_numpy(codes[best]))
        return best, len(codes[best])

    def _put(self, stream: str, part: Tensor) -> None:
        self.parts.setdefault(stream, []).append(part.reshape(-1))


class Reader:
    """Unpacks the streams of a `Writer`; every length is checked.

    Args:
        streams: the streams.
        where: the file, for messages.
    """

    def __init__(self, streams: dict[str, Tensor], where: str) -> None:
        self.streams, self.where = streams, where
        self.places = dict.fromkeys(streams, 0)

    def get(self, row: Row) -> tuple[Tensor, Tensor | None]:
        """A tensor and its mask.

        Raises:
            CheckpointError: a row that does not fit the streams, or another sha256; it is named.
        """
        count = math.prod(row.shape)
        if count > MAX_ENTRIES:
            raise self._fault(row, f"{count} entries are more than any model has")
        dtype = getattr(torch, row.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise self._fault(row, f"dtype {shown(row.dtype)} is unknown")
        kept: Tensor | None = None
        if row.form == "raw":
            raw = self._take(row, "raw", count * dtype.itemsize)
            value = raw.clone().view(dtype).view(list(row.shape))
        if row.mask[0] != "none":
            kept = self._bits(row, row.mask, row.shape).bool()
        chosen = torch.ones(list(row.shape), dtype=torch.bool) if kept is None else kept
        number = int(chosen.sum())
        if row.form == "dense":
            value = self._values(row, count).float().view(list(row.shape))
        elif row.form == "sparse":
            value = torch.zeros(list(row.shape))
            value[chosen] = self._values(row, number).float()
        elif row.form == "binary":
            if row.gains not in (1, row.shape[0]):
                raise self._fault(row, f"{row.gains} gains for {row.shape[0]} filters")
            negative = self._bits(row, row.signs, [number]).bool()
            value = from_signs(chosen, negative, self._take(row, "gains", row.gains))
        elif row.form != "raw":
            raise self._fault(row, f"form {shown(row.form)} is unknown")
        if digest_of(value, kept) != row.sha256:
            raise self._fault(row, "its values have another sha256 than was written")
        return value, kept

    def end(self) -> None:
        """Refuse streams that are longer than their rows."""
        for name, stream in self.streams.items():
            if self.places[name] != stream.numel():
                left = stream.numel() - self.places[name]
                raise CheckpointError(f"{self.where}: stream {name} has {left} entries too many")

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
            bits = decode_bits(np.ascontiguousarray(data), count, *contexts_of(kind, shape))
        else:
            raise self._fault(row, f"code {shown(kind)} is unknown")
        return torch.from_numpy(bits).view(list(shape))

    def _take(self, row: Row, stream: str, count: int) -> Tensor:
        begin = self.places[stream]
        part = self.streams[stream][begin : begin + count]
        if count < 0 or len(part) != count:
            raise self._fault(row, f"stream {stream} ends early")
        self.places[stream] = begin + count
        return part

    def _fault(self, row: Row, what: str) -> CheckpointError:
        return CheckpointError(f"{self.where}: damaged: tensor {shown(row.name)}: {what}")


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
    """Write and seal ``model.safetensors`` and ``config.json``.

    Args:
        stage: the export in the making.
        ticket: mask and weights; the provenance is stored with them.
        precision: "fp32", "fp16" or "bf16" of everything but masks, signs, gains and integers.
        about: further values for JSON: accuracy, sparsities...

    Raises:
        ExportError: an unknown precision, a tensor that cannot be stored (named), or a full disk.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}")
    writer = Writer(precision)
    for name, tensor in ticket.tensors.items():
        writer.add(name, tensor, ticket.mask.get(name))
    streams = {**writer.streams(), "table": _pack_table(writer.rows)}
    stage.write_tensors(TENSORS, streams, {"kind": FORMAT})
    body: dict[str, Any] = {"precision": precision}
    if list(ticket.mask) != [row.name for row in writer.rows if row.mask[0] != "none"]:
        body["mask_order"] = list(ticket.mask)  # otherwise that of the tensors
    stage.seal({**body, "provenance": ticket.provenance, "about": dict(about or {})})


def read_packed(folder: str | Path) -> Packed:
    """Read and verify an export; each file is read once, and nothing is ever unpickled.

    Raises:
        ExportError: no export, a newer one, or files changed since it was written.
        CheckpointError: a damaged or foreign tensor file; the tensor is named where it is one.
    """
    bundle = open_bundle(folder, EXPORT)
    body, where = bundle.about, shown(str(folder), 300)
    if not all(isinstance(body.get(name), dict) for name in ("provenance", "about")):
        raise ExportError(f"{where}: {CONFIG} lacks provenance, about")
    if body.get("precision") not in PRECISIONS:
        raise ExportError(f"{where}: {CONFIG} has no known precision")
    streams, own = bundle.tensors(TENSORS)
    file = shown(str(bundle.folder / TENSORS), 300)
    kinds = {name: part.dtype for name, part in streams.items()}
    wanted = {name: part.dtype for name, part in Writer(body["precision"]).streams().items()}
    if own != {"kind": FORMAT} or kinds != {**wanted, "table": torch.uint8}:
        raise CheckpointError(f"{file}: holds {shown(own)}, not a packed ticket")
    table = streams.pop("table")
    rows = _unpack_table(table, file)
    reader = Reader(streams, file)
    tensors, masks = {}, {}
    for row in rows:
        tensors[row.name], kept = reader.get(row)
        if kept is not None:
            masks[row.name] = kept
    reader.end()
    order = body.get("mask_order", list(masks))
    if sorted(order) != sorted(masks):
        raise ExportError(f"{where}: {CONFIG} names other masks than it stores")
    ticket = Ticket(Mask({name: masks[name] for name in order}), tensors, body["provenance"])
    return Packed(ticket, tuple(rows), table.numel(), body["precision"], body["about"])


def _pack_table(rows: Sequence[Row]) -> torch.Tensor:
    text = json.dumps([row.as_list() for row in rows], separators=(",", ":"))
    return torch.frombuffer(bytearray(zlib.compress(text.encode("ascii"), 9)), dtype=torch.uint8)


def _unpack_table(table: torch.Tensor, file: str) -> Sequence[Row]:
    try:
        text = zlib.decompressobj().decompress(table.numpy().tobytes(), TABLE_LIMIT).decode("ascii")
    except (zlib.error, UnicodeDecodeError) as fault:
        raise CheckpointError(f"{file}: damaged: its table of tensors: {fault}") from None
    entries = parse_json(text, f"{file}: its table of tensors", CheckpointError)
    try:
        return [Row(*entry) for entry in entries]
    except TypeError:
        raise CheckpointError(f"{file}: its table of tensors has another form") from None
