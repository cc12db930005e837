"""A packed ticket on disk: one safetensors file of streams and a config.json that seals it."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spikeformer_lt.errors import CheckpointError, ExportError, shown
from spikeformer_lt.export.packing import PRECISIONS, Reader, Row, Writer
from spikeformer_lt.mask import Mask
from spikeformer_lt.paths import sha256_of, write_atomic
from spikeformer_lt.tensorfile import content_kind, read_tensors, write_tensors
from spikeformer_lt.textfile import parse_json
from spikeformer_lt.ticket import Ticket

__all__ = ["CONFIG", "TENSORS", "Packed", "read_packed", "write_packed"]

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
