"""The one door for tensors on disk: safetensors files with a format version and checksums.

safetensors alone accepts a file with a flipped bit. Here every tensor, the table of tensors and the
metadata are hashed, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeformer_lt.errors import CheckpointError, shown
from spikeformer_lt.paths import write_atomic
from spikeformer_lt.textfile import parse_json

if TYPE_CHECKING:
    from torch import Tensor

KEY = "spikeformer_lt"  # of our one entry in the header: safetensors writes several in any order
VERSION = 1
HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_CONVERT = "convert it with: python recipes/convert.py --source FILE --model NAME --out DIR"


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write tensors and JSON metadata to one file, atomically.

    Args:
        path: the file; its folder is made if missing.
        tensors: any names, any dense dtype; tensors that share memory are written one by one.
        metadata: values that JSON can hold; lists come back for tuples.

    Raises:
        CheckpointError: a value that cannot be stored (named), or a disk that refuses.
    """
    import safetensors.torch

    where = shown(str(path), 300)
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise CheckpointError(f"{where}: {shown(name)} cannot be the name of a tensor")
        stored[name] = _plain(tensor, name, where)
        storage = stored[name].untyped_storage().data_ptr()
        if storage in storages:
            stored[name] = stored[name].clone()
        storages.add(storage)
    body = _checked(metadata or {}, where)
    hashes = {name: _tensor_sha256(tensor) for name, tensor in stored.items()}
    own = {
        "format_version": VERSION,
        "metadata": body,
        "sha256": hashes,
        "seal": _seal(body, hashes),
    }
    try:
        data = safetensors.torch.save(stored, metadata={KEY: json.dumps(own)})
    except (RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as fault:
        raise CheckpointError(f"{where}: cannot be written: {shown(str(fault), 300)}") from None
    write_atomic(path, data)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a file of `write_tensors`.

    Returns:
        Tensors on the CPU in the order they were given to `write_tensors`, and the metadata.

    Raises:
        CheckpointError: every fault, with the file, the tensor if it is one tensor, and what the
            file is if it is none of ours.
    """
    import safetensors
    import safetensors.torch

    where = shown(str(path), 300)
    try:
        data = Path(path).read_bytes()
    except OSError as fault:
        raise CheckpointError(f"cannot read {where}: {fault.strerror or fault}") from None
    header = _header(data, where)
    body, hashes = _verified_metadata(header, where)
    try:
        loaded = safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as fault:
        raise CheckpointError(f"{where}: damaged: {shown(str(fault), 300)}") from None
    if loaded.keys() != hashes.keys():
        odd = sorted(loaded.keys() ^ hashes.keys())
        raise CheckpointError(f"{where}: damaged: no matching checksum for tensor {shown(odd[0])}")
    for name, expected in hashes.items():
        found = _tensor_sha256(loaded[name])
        if found != expected:
            raise CheckpointError(
                f"{where}: damaged: tensor {shown(name)} has sha256 {found[:12]}..., "
                f"{expected[:12]}... was written; restore the file from a copy"
            )
    return {name: loaded[name] for name in hashes}, body


def content_kind(head: bytes) -> str:
    """Say in words what a file with these first bytes is, if it is not a safetensors file."""
    start = head.lstrip()[:64].lower()
    if not head:
        return "an empty file (0 bytes)"
    if head.startswith(b"PK\x03\x04"):
        return f"a zip archive (torch.save writes such files, with a pickle inside); {_CONVERT}"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return f"a pickle, which could run code and is never loaded; {_CONVERT}"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "an HTML or XML page, probably a failed download; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the content with: git lfs pull"
    for magic, kind in (
        (b"\x1f\x8b", "a gzip archive"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x89PNG", "a PNG image"),
        (b"7z\xbc\xaf", "a 7z archive"),
    ):
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if all(32 <= byte < 127 or byte in b"\t\n\r\f" for byte in head[:512]):
        return "a text file"
    return f"unknown binary data (it begins with {head[:8].hex(' ')})"


def _header(data: bytes, where: str) -> dict[str, Any]:
    """Return the parsed header after checking every length against the file's size."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or data[8:9] != b"{" or length > HEADER_LIMIT:
        short = "" if len(data) >= 9 or not data else f" of {len(data)} bytes, perhaps truncated"
        raise CheckpointError(
            f"{where}: not a safetensors file but {content_kind(data[:1024])}{short}"
        )
    if 8 + length > len(data):
        raise CheckpointError(
            f"{where}: truncated: {8 + length} bytes of header announced, {len(data)} bytes there"
        )
    try:
        text = data[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"{where}: damaged: its header is not UTF-8 text") from None
    header = parse_json(text, f"{where}: damaged header", CheckpointError)
    ends = [0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        span = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(span, list) or len(span) != 2 or any(type(s) is not int for s in span):
            raise CheckpointError(f"{where}: damaged: tensor {shown(name)} has no data_offsets")
        ends.append(span[1])
    expected = 8 + length + max(ends)
    if expected != len(data):
        word = "truncated" if len(data) < expected else "damaged"
        raise CheckpointError(
            f"{where}: {word}: {expected} bytes expected, {len(data)} bytes there"
        )
    return dict(header)


def _verified_metadata(header: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, str]]:
    entries = header.get("__metadata__")
    text = entries.get(KEY) if isinstance(entries, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f"{where}: a safetensors file that spikeformer_lt did not write, or one with a damaged "
            f"header; {_CONVERT}"
        )
    own = parse_json(text, f"{where}: damaged metadata", CheckpointError)
    version = own.get("format_version") if isinstance(own, dict) else None
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        advice = "install a newer spikeformer_lt" if newer else "the header is damaged"
        raise CheckpointError(
            f"{where}: found format v{shown(version)}, supports <= v{VERSION}; {advice}"
        )
    body, hashes = own.get("metadata"), own.get("sha256")
    if not (isinstance(body, dict) and isinstance(hashes, dict)):
        raise CheckpointError(f"{where}: damaged: no metadata or no checksums")
    if _seal(body, hashes) != own.get("seal"):
        raise CheckpointError(f"{where}: damaged: metadata and its checksum differ")
    return body, hashes


def _seal(body: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([body, list(hashes.items())]).encode("ascii")).hexdigest()


def _checked(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key, value in metadata.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError, RecursionError) as fault:
            raise CheckpointError(f"{where}: metadata {shown(key)} is not JSON: {fault}") from None
    return dict(metadata)


def _plain(tensor: Tensor, name: str, where: str) -> Tensor:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        kind = getattr(tensor, "layout", type(tensor).__name__)
        raise CheckpointError(f"{where}: {shown(name)} is no dense tensor but {kind}")
    if tensor.is_meta or tensor.is_quantized:
        raise CheckpointError(f"{where}: tensor {shown(name)} has no plain values to store")
    return tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()


def _tensor_sha256(tensor: Tensor) -> str:
    """Hash dtype, shape and bytes of a contiguous CPU tensor."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    if tensor.numel():
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
