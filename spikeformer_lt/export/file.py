"""One tensor as masks, signs, gains and values, each in the cheapest of its forms.

A packed ticket on disk: one safetensors file of streams and a config.json that seals it.
"""

from __future__ import annotations

import hashlib
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

from spikeformer_lt.disk import (
    content_kind,
    parse_json,
    read_tensors,
    sha256_of,
    write_atomic,
    write_tensors,
)
from spikeformer_lt.errors import CheckpointError, ExportError, shown
from spikeformer_lt.export.codec import (
    binary_gains,
    contexts_of,
    decode_bits,
    decode_values,
    digest_of,
    encode_bits,
    encode_values,
    from_signs,
)
from spikeformer_lt.mask import Mask
from spikeformer_lt.ticket import Ticket

__all__ = [
    "CONFIG",
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
Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """How one tensor is stored.

    ``form`` is "dense", "raw" (not float32: its own bytes), "sparse" (values of the kept entries)
    or "binary" (signs of the kept entries, and one gain or one for each output filter). ``mask``
    and ``signs`` are pairs (code, bytes): "bits", "one" context, "out" or "in" (one context for
    each output or input channel), "all" kept; "none" means that the ticket has no mask here.
    ``values`` is the depth of the code of the values and its bytes; 0 says that they are plain.
    """

    name: str
    dtype: str
    shape: Sequence[int]
    form: str
    mask: Sequence[str | int]
    signs: Sequence[str | int]
    gains: int
    sha256: str
    values: Sequence[int] = (0, 0)  # what the rows of format v1 do not say

    def as_list(self) -> list[object]:
        """Values in the order of the fields, for JSON."""
        return list(astuple(self))


@dataclass
class Writer:
    """Packs tensors one after another into four streams.

    Args:
        precision: of the dense values and of kept values that are not binary.
    """

    precision: str = "fp32"
    rows: list[Row] = field(default_factory=list)
    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    coded: Sequence[int] = (0, 0)  # the `values` of the tensor being added

    def add(self, name: str, tensor: Tensor, kept: Tensor | None) -> None:
        """Pack a tensor whose removed entries are 0; -0.0 there comes back as 0.0.

        Raises:
            ExportError: float64, or a value too large for the precision.
        """
        plain, self.coded = tensor.detach().cpu().contiguous(), (0, 0)
        if plain.dtype == torch.float64:
            raise ExportError(f"tensor {shown(name)} is float64; convert the model with .float()")
        if plain.dtype != torch.float32:
            self._put("raw", plain.reshape(-1).view(torch.uint8))
            mask = self._bits(kept, plain.shape) if kept is not None else ("none", 0)
            self._row(name, plain, plain, kept, "raw", mask, ("all", 0), 0)
            return
        chosen = torch.ones_like(plain, dtype=torch.bool) if kept is None else kept.cpu()
        gains = binary_gains(plain, chosen)
        if kept is None and gains is None:
            value = self._round(plain, name)
            self._row(name, plain, value, None, "dense", ("none", 0), ("all", 0), 0)
            return
        mask = self._bits(chosen, plain.shape) if kept is not None else ("none", 0)
        if gains is None:
            value = torch.zeros_like(plain)
            value[chosen] = self._round(plain[chosen], name)
            self._row(name, plain, value, kept, "sparse", mask, ("all", 0), 0)
            return
        negative = plain[chosen] < 0
        signs = self._bits(negative, negative.shape)
        self._put("gains", gains)
        value = from_signs(chosen, negative, gains)
        self._row(name, plain, value, kept, "binary", mask, signs, len(gains))

    def streams(self) -> dict[str, Tensor]:
        """The four streams as flat tensors."""
        kinds = {**STREAMS, "values": PRECISIONS[self.precision]}
        return {
            name: torch.cat(self.parts[name]) if name in self.parts else torch.empty(0, dtype=kind)
            for name, kind in kinds.items()
        }

    def _round(self, values: Tensor, name: str) -> Tensor:
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
            self.coded = found[0], len(found[1])
            self._put("bits", torch.from_numpy(found[1]))
        return narrow.float().view(values.shape)

    def _bits(self, bits: Tensor, shape: Sequence[int]) -> tuple[str, int]:
        flat = bits.reshape(-1).numpy().astype(np.uint8)
        if flat.all():
            return "all", 0
        codes: dict[str, Bits] = {"bits": np.packbits(flat)}
        for code in ("one", "out", "in")[: 3 if len(shape) > 1 else 1]:
            codes[code] = encode_bits(flat, *contexts_of(code, shape))
        best = min(codes, key=lambda code: len(codes[code]))  # of equal ones the plainer
        self._put("bits", torch.from_numpy(codes[best]))
        return best, len(codes[best])

    def _put(self, stream: str, part: Tensor) -> None:
        self.parts.setdefault(stream, []).append(part.reshape(-1))

    def _row(
        self,
        name: str,
        plain: Tensor,
        value: Tensor,
        kept: Tensor | None,
        form: str,
        mask: Sequence[str | int],
        signs: Sequence[str | int],
        gains: int,
    ) -> None:
        dtype = str(plain.dtype).removeprefix("torch.")
        digest = digest_of(value, kept)
        shape = list(plain.shape)
        self.rows.append(Row(name, dtype, shape, form, mask, signs, gains, digest, self.coded))


class Reader:
    """Unpacks what a `Writer` packed, every length checked.

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


FORMAT = "spikeformer_lt.export"
VERSION = 2  # 1 had no coded values
CONFIG, TENSORS = "config.json", "model.safetensors"
TABLE_LIMIT = 1 << 26  # bytes of text


@dataclass(frozen=True, eq=False)
class Packed:
    """A packed ticket, unpacked: the ticket, how each tensor is stored, and what is said of it."""

    ticket: Ticket
    rows: tuple[Row, ...]
    table_bytes: int
    precision: str
    about: dict[str, Any]


def write_packed(
    folder: Path, ticket: Ticket, precision: str = "fp32", about: Mapping[str, Any] | None = None
) -> None:
    """Write ``model.safetensors`` and ``config.json`` into a folder.

    Args:
        folder: made if missing.
        ticket: mask and weights; provenance is stored with them.
        precision: "fp32", "fp16" or "bf16" of everything but masks, signs, gains and integers.
        about: further values for JSON: accuracy, sparsities...

    Raises:
        ExportError: an unknown precision, or a tensor that cannot be stored; it is named.
        CheckpointError: the disk refuses.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}")
    writer = Writer(precision)
    for name, tensor in ticket.tensors.items():
        writer.add(name, tensor, ticket.mask.get(name))
    streams = {**writer.streams(), "table": _pack_table(writer.rows)}
    write_tensors(folder / TENSORS, streams, {"kind": FORMAT})
    body: dict[str, Any] = {
        "format": FORMAT,
        "format_version": VERSION,
        "precision": precision,
        "mask_order": list(ticket.mask),
        "provenance": ticket.provenance,
        "about": dict(about or {}),
        "sha256": {TENSORS: sha256_of(folder / TENSORS)},
    }
    if list(ticket.mask) == [row.name for row in writer.rows if row.mask[0] != "none"]:
        del body["mask_order"]  # that of the tensors
    try:
        body["seal"] = _seal(body)
        text = json.dumps(body, separators=(",", ":"))
    except (TypeError, ValueError) as fault:
        raise ExportError(f"the provenance cannot be stored as JSON: {fault}") from None
    write_atomic(folder / CONFIG, (text + "\n").encode("ascii"), ExportError)


def read_packed(folder: str | Path) -> Packed:
    """Read and verify a packed ticket; nothing is ever unpickled.

    Raises:
        ExportError: no export, a newer one, or a config.json that changed since it was written.
        CheckpointError: a damaged or foreign tensor file; the tensor is named where it is one.
    """
    folder = Path(folder)
    where = shown(str(folder), 300)
    body = _read_config(folder, where)
    streams, own = read_tensors(folder / TENSORS)
    expected = body["sha256"].get(TENSORS)
    file = shown(str(folder / TENSORS), 300)
    kinds = {name: part.dtype for name, part in streams.items()}
    wanted = {name: part.dtype for name, part in Writer(body["precision"]).streams().items()}
    wanted["table"] = torch.uint8
    if own != {"kind": FORMAT} or kinds != wanted:
        raise CheckpointError(f"{file}: holds {shown(own)}, not a packed ticket")
    if sha256_of(folder / TENSORS) != expected:
        raise CheckpointError(f"{file}: is not the file that {CONFIG} was written for")
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


def _read_config(folder: Path, where: str) -> dict[str, Any]:
    try:
        if folder.is_file():
            kind = content_kind(folder.read_bytes()[:1024])
            raise ExportError(f"{where}: an export is a folder with {CONFIG}; this is {kind}")
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except OSError as fault:
        raise ExportError(f"{where}: no export: {CONFIG}: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise ExportError(f"{where}: {CONFIG} is damaged: not UTF-8 text") from None
    body = parse_json(text, f"{where}: {CONFIG}", ExportError)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ExportError(f"{where}: {CONFIG} is not that of an export of spikeformer_lt")
    version = body.get("format_version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ExportError(
            f"{where}: found export format v{shown(version)}, supports <= v{VERSION}; "
            "install a newer spikeformer_lt"
        )
    if body.pop("seal", None) != _seal(body):
        raise ExportError(f"{where}: {CONFIG} is damaged or was edited: its checksum differs")
    dicts = ("provenance", "about", "sha256")
    if not all(isinstance(body.get(name), dict) for name in dicts):
        raise ExportError(f"{where}: {CONFIG} lacks {', '.join(dicts)}")
    if body.get("precision") not in PRECISIONS:
        raise ExportError(f"{where}: {CONFIG} has no known precision")
    return body


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


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()
