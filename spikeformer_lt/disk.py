"""Files: names, atomic writes, JSON, YAML, cells of a CSV, tensors.

Tensors are safetensors files in which every tensor, their table and the metadata are hashed:
safetensors alone accepts a flipped bit. Nothing is ever unpickled.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

import yaml

from spikeformer_lt.errors import CheckpointError, ConfigError, SpikeformerError, name_of, shown

if TYPE_CHECKING:
    from torch import Tensor


NAME_LIMIT = 100  # characters; file systems allow 255 bytes and we append to names
FILE_LIMIT = 1_000_000  # bytes; a configuration of ours has a few thousand
DEPTH_LIMIT = 50  # nesting; ours has three levels
RECORD_LIMIT = 1 << 24  # bytes; a report with the confusion of 1,000 classes has 3 million
_NUMBER = (int, float, type(None))
_KINDS: dict[str, Any] = {
    **{"text": str, "whole": int, "real": (int, float)},
    **{"names": dict, "rates": dict, "list": list, "reals": list, "table": list},
}
KEY = "spikeformer_lt"  # of our one entry in the header: safetensors writes several in any order
VERSION = 1
HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
_CONVERT = "convert it with: python recipes/convert.py --source FILE --model NAME --out DIR"
_PICKLE = f"a pickle, which could run code and is never loaded; {_CONVERT}"
_ZIP = f"a zip archive (torch.save writes such files, with a pickle inside); {_CONVERT}"
_MAGIC = {
    b"PK\x03\x04": _ZIP,
    **{b"\x80" + bytes([protocol]): _PICKLE for protocol in (2, 3, 4, 5)},
    **{b"\x1f\x8b": "a gzip archive", b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file"},
    **{b"\x89PNG": "a PNG image", b"7z\xbc\xaf": "a 7z archive"},
}  # first bytes -> what it is
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows


def safe_name(text: str) -> str:
    """Turn any text into one file name: no separator, no leading dot, no control character.

    A text that has to be cleaned gets eight digits of its hash: two texts never share a name.
    """
    clean = re.sub(r"[^A-Za-z0-9._+=-]+", "_", text).lstrip(".-=+")[:NAME_LIMIT].rstrip("._")
    if _DEVICES.fullmatch(clean):
        clean = f"_{clean}"
    if clean and clean == text:
        return clean
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{clean[: NAME_LIMIT - 9] or 'unnamed'}-{digest}"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut; a no-op where the system cannot."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
        handle = os.open(folder, os.O_RDONLY)
        opened.callback(os.close, handle)
        os.fsync(handle)


def write_through(path: Path, data: bytes) -> None:
    """Write a new file and wait until it is on the disk."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def refuse_link(path: Path, error: type[SpikeformerError]) -> None:
    """Refuse to publish at a link: neither it nor what it names is replaced."""
    if path.is_symlink():
        raise error(f"{name_of(path)} is a link, which is never replaced; give a path that is none")


_reasons: list[str] = []  # why nothing is written, the innermost last


@contextlib.contextmanager
def nothing_written(why: str) -> Iterator[None]:
    """Let what publishes, caches, unpacks or fetches files raise an OSError that says why."""
    _reasons.append(why)
    try:
        yield
    finally:
        _reasons.pop()


def allow_write() -> None:
    """Raise an OSError where nothing is to be written."""
    if _reasons:
        raise OSError(errno.EROFS, _reasons[-1])


def write_atomic(
    path: str | Path, data: bytes, error: type[SpikeformerError] = CheckpointError
) -> None:
    """Write a file so that a reader sees the old content or the new one; its folder is made.

    Raises:
        SpikeformerError: (as `error`) the path is a link, or the disk refuses; the previous file is
            untouched.
    """
    path = Path(path)
    refuse_link(path, error)
    stage = path.with_name(f".{path.name[:NAME_LIMIT]}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        allow_write()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_through(stage, data)
            os.replace(stage, path)
        finally:
            stage.unlink(missing_ok=True)
    except OSError as fault:
        raise error(
            f"cannot write {name_of(path)}: {fault.strerror or fault}; {len(data)} bytes "
            f"needed, {free_bytes(path.parent)} free; the previous file, if any, is untouched"
        ) from fault
    sync_folder(path.parent)


def free_bytes(folder: Path) -> int | str:
    """Return the bytes free on the disk of `folder`, or "unknown" if that cannot be asked."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return "unknown"


@contextlib.contextmanager
def regular(path: str | Path, most: int) -> Iterator[tuple[Any, int]]:
    """Open a file as `read_regular`; also its size."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"it has {about.st_size} bytes, more than {most}")
        yield file, about.st_size


def read_regular(path: str | Path, most: int) -> bytes:
    """Return the bytes of a regular file: no pipe is waited for, and no device read for ever.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `most` bytes.
    """
    with regular(path, most) as (file, _):
        return bytes(file.read())


def free_memory() -> int:
    """Bytes that this process may still take, as far as the system tells; 2**63 if it does not."""
    found = [1 << 63]
    with contextlib.suppress(OSError, ValueError, IndexError, ImportError):
        import resource

        limit, used = resource.getrlimit(resource.RLIMIT_AS)[0], Path("/proc/self/statm")
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(used.read_text().split()[0]) * resource.getpagesize())
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    return max(0, min(found))


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file's content as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str, source: str, error: type[SpikeformerError] = ConfigError) -> Any:
    """Parse strict JSON; `source` is the file's name, for messages.

    Raises:
        SpikeformerError: (as `error`) not JSON, a repeated key, or nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key in found if sum(key == name for name, _ in pairs) > 1)
            raise error(f"{source}: the key {shown(twice)} is there twice; keep one")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as fault:
        raise error(f"{source}, line {fault.lineno}: not JSON: {fault.msg}") from None
    except SpikeformerError:
        raise
    except RecursionError:
        raise error(f"{source}: JSON nested too deeply") from None
    except ValueError as fault:  # a number of more digits than Python converts
        raise error(f"{source}: not JSON: {fault}") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core rules (1e-3 is a number, `off` a word); bombs are refused unexpanded."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the base class's protocol)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            self.refuse(event, "an anchor or alias (& or *); write the value out")
        if tag := getattr(event, "tag", None):
            self.refuse(event, f"the tag {shown(tag)}; only plain values are allowed")
        if isinstance(event, yaml.CollectionStartEvent) and self.depth == DEPTH_LIMIT:
            self.refuse(event, f"nested deeper than {DEPTH_LIMIT} levels")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(key_node, "a key must be one plain word")
            key = self.construct_object(key_node)
            if key in seen:
                first = f"(first in line {seen[key]}); keep one"
                self.refuse(key_node, f"the key {shown(key)} is there twice {first}")
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)

    def refuse(self, where: Any, what: str) -> NoReturn:
        raise ConfigError(f"{self.name}, line {where.start_mark.line + 1}: {what}")


_TAG = "tag:yaml.org,2002:"
_DECIMAL = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", rf"{_DECIMAL}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor(_TAG + "bool", lambda _, node: node.value.lower() == "true")
_Loader.add_constructor(
    _TAG + "int", lambda _, node: int(node.value, 0 if node.value[:2] in ("0o", "0x") else 10)
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse one document of plain YAML of the file `source`; a ConfigError names the line."""
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line:
            raise ConfigError(f"{source}, line {number}: a tab; indent with spaces")
    try:
        loader = _Loader(text)
        loader.name = source
        return loader.get_single_data()
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: not YAML: {fault.problem or fault.context}") from None
    except SpikeformerError:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as fault:
        raise ConfigError(f"{source}: not YAML: {shown(str(fault), 200)}") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a ``.yaml``, ``.yml`` or ``.json`` mapping, or raise a ConfigError with its name."""
    name, parsers = name_of(path), {".json": parse_json, ".yaml": parse_yaml, ".yml": parse_yaml}
    parser = parsers.get(Path(path).suffix.lower())
    if parser is None:
        raise ConfigError(f"{name}: the name must end in {', '.join(parsers)}")
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except OSError as fault:
        raise ConfigError(f"cannot read {name}: {fault.strerror or fault}") from None
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{name}: longer than {FILE_LIMIT} bytes; that is no configuration")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{name}: not UTF-8 text (byte {fault.start})") from None
    if (found := parser(text, name)) is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: the top level must be 'key: value' lines, not {shown(found)}")
    return found


def read_record(
    path: str | Path, fields: Mapping[str, str], error: type[SpikeformerError]
) -> dict[str, Any]:
    """Read a JSON object that a program of ours wrote, and check the types of its fields.

    Args:
        path: the file, of at most `RECORD_LIMIT` bytes.
        fields: what some fields hold where they are there and not null: "text", "whole" or "real"
            numbers, "names" (an object), "rates" (an object of numbers or null), "list", "reals" (a
            list of numbers) or "table" (a square one).
        error: class of the exception, which names the field.
    """
    name = name_of(path)
    try:
        found = parse_json(read_regular(path, RECORD_LIMIT).decode("utf-8"), name, error)
    except (OSError, UnicodeDecodeError) as fault:
        raise error(f"cannot read {name}: {getattr(fault, 'strerror', '') or fault}") from None
    if not isinstance(found, dict):
        raise error(f"{name}: the top level must be an object, not {shown(found)}")
    for field, kind in fields.items():
        value = found.get(field)
        members = [*value.values()] if isinstance(value, dict) and kind == "rates" else []
        sound = isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
        if isinstance(value, list) and kind in ("reals", "table"):
            rows = value if kind == "table" else [value]
            sound = all(is_numbers(row) and len(row) == len(value) for row in rows)
        if value is not None and not (sound and all(isinstance(m, _NUMBER) for m in members)):
            raise error(f"{name}: {field}={shown(value)} is not allowed: {kind}")
    return found


def is_numbers(value: object) -> TypeGuard[list[float]]:
    """Whether a value of JSON is a list of numbers."""
    return isinstance(value, list) and all(type(one) in (int, float) for one in value)


def csv_cell(value: object) -> str:
    """Return `value` as one line for a CSV cell, for the csv module to quote.

    A text that begins like a formula (= + - @) gets a leading apostrophe: no spreadsheet runs it.
    """
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else repr(value)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def dump_json(
    value: object, where: str, error: type[SpikeformerError], indent: int | None = None
) -> str:
    """Return `value`, called `where` in messages, as JSON text; tuples come back as lists.

    Raises:
        SpikeformerError: (as `error`) a NaN, an infinity, or what JSON cannot hold, with its place.
    """
    _refuse_odd(value, where, error)
    return json.dumps(value, indent=indent)


def _refuse_odd(value: object, where: str, error: type[SpikeformerError]) -> None:
    if type(value) is dict:
        for key, member in value.items():
            if not isinstance(key, str):
                raise error(f"{where} has the key {shown(key)}; keys must be text")
            _refuse_odd(member, f"{where}.{shown(key)[1:-1]}", error)
    elif isinstance(value, list | tuple):
        for index, member in enumerate(value):
            _refuse_odd(member, f"{where}[{index}]", error)
    elif isinstance(value, float) and not math.isfinite(value):
        raise error(f"{where} is {value}; allowed are finite numbers, and None for 'no value'")
    elif value is not None and not isinstance(value, str | int | float):
        raise error(
            f"{where} is {shown(value)} of type {type(value).__name__}; allowed are None, numbers, "
            "text, lists and dicts; convert it first"
        )


def pack_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None, where: str
) -> bytes:
    """Return tensors and metadata, which JSON must hold, as the bytes of one file.

    Any dense dtype is stored; tensors that share memory one by one. `where` names the file.

    Raises:
        CheckpointError: a value that cannot be stored (named).
    """
    import safetensors.torch

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
    body = dict(metadata or {})
    for key, value in body.items():
        try:
            json.dumps({key: value})
        except (TypeError, ValueError, RecursionError) as fault:
            raise CheckpointError(f"{where}: metadata {shown(key)} is not JSON: {fault}") from None
    hashes = {name: _tensor_sha256(tensor) for name, tensor in stored.items()}
    own = {"format_version": VERSION, "metadata": body, "sha256": hashes}
    own["seal"] = _seal(body, hashes)
    try:
        return safetensors.torch.save(stored, metadata={KEY: json.dumps(own)})
    except (RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as fault:
        raise CheckpointError(f"{where}: cannot be written: {shown(str(fault), 300)}") from None


def unpack_tensors(
    data: bytes | memoryview, where: str | Path, verified: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Verify the bytes of `pack_tensors` and return its tensors, in order on the CPU, and metadata.

    Bytes that are `verified` are not hashed again, and their tensors are parts of `data`.

    Raises:
        CheckpointError: every fault, with the file, the tensor, and what else the file is.
    """
    try:
        return _unpacked(data, verified)
    except CheckpointError as fault:
        place = where if isinstance(where, str) else name_of(where)
        raise CheckpointError(f"{place}: {fault}") from None


def _unpacked(data: bytes | memoryview, verified: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import safetensors
    import safetensors.torch

    header = _header(data)
    body, hashes = _verified_metadata(header)
    odd = (
        safetensors.SafetensorError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        OverflowError,
    )
    try:
        loaded = _parts_of(data, header) if verified else safetensors.torch.load(bytes(data))
    except odd as fault:
        raise CheckpointError(f"damaged: {shown(str(fault), 300)}") from None
    if other := sorted(loaded.keys() ^ hashes.keys()):
        raise CheckpointError(f"damaged: no matching checksum for tensor {shown(other[0])}")
    for name, expected in hashes.items() if not verified else ():
        found = _tensor_sha256(loaded[name])
        if found != expected:
            raise CheckpointError(
                f"damaged: tensor {shown(name)} has sha256 {found[:12]}..., "
                f"{expected[:12]}... was written; restore the file from a copy"
            )
    return {name: loaded[name] for name in hashes}, body


def _parts_of(data: bytes | memoryview, header: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file, as parts of one memory: torch's own reader makes two copies."""
    import safetensors.torch
    import torch

    memory, begin = torch.frombuffer(data, dtype=torch.uint8), len(data)
    begin -= max(e["data_offsets"][1] for name, e in header.items() if name != "__metadata__")
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            part = memory[begin + first : begin + end]
            kind: Any = safetensors.torch._TYPES[entry["dtype"]]
            found[name] = part.view(kind).view(entry["shape"])
    return found


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a file of `pack_tensors`, atomically; raises as it does, and if the disk refuses."""
    write_atomic(path, pack_tensors(tensors, metadata, name_of(path)))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify a file of `write_tensors`; raises as `unpack_tensors`."""
    try:
        data = read_regular(path, free_memory())
    except OSError as fault:
        raise CheckpointError(f"cannot read {name_of(path)}: {fault.strerror or fault}") from None
    return unpack_tensors(data, Path(path))


def content_kind(head: bytes) -> str:
    """Say in words what a file with these first bytes is, if it is not a safetensors file."""
    if not head:
        return "an empty file (0 bytes)"
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "an HTML or XML page, probably a failed download; download it again"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the content with: git lfs pull"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head[:512])
        if all(sign.isprintable() or sign in "\t\n\r\f" for sign in text):
            return "a text file"
    return f"unknown binary data (it begins with {head[:8].hex(' ')})"


def _header(data: bytes | memoryview) -> dict[str, Any]:
    """Return the parsed header after checking every length against the file's size."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or data[8:9] != b"{" or length > HEADER_LIMIT:
        short = "" if len(data) >= 9 or not data else f" of {len(data)} bytes, perhaps truncated"
        kind = content_kind(bytes(data[:1024]))
        raise CheckpointError(f"not a safetensors file but {kind}{short}")
    if 8 + length > len(data):
        header = f"{8 + length} bytes of header announced"
        raise CheckpointError(f"truncated: {header}, {len(data)} bytes there")
    try:
        text = bytes(data[8 : 8 + length]).decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError("damaged: its header is not UTF-8 text") from None
    entries = parse_json(text, "damaged header", CheckpointError)
    ends = [0]
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        span = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(span, list) or len(span) != 2 or any(type(s) is not int for s in span):
            raise CheckpointError(f"damaged: tensor {shown(name)} has no data_offsets")
        ends.append(span[1])
    expected = 8 + length + max(ends)
    if expected != len(data):
        word = "truncated" if len(data) < expected else "damaged"
        raise CheckpointError(f"{word}: {expected} bytes expected, {len(data)} bytes there")
    return dict(entries)


def _verified_metadata(header: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    entries = header.get("__metadata__")
    text = entries.get(KEY) if isinstance(entries, dict) else None
    if not isinstance(text, str):
        what = "a safetensors file that spikeformer_lt did not write, or one with a damaged header"
        raise CheckpointError(f"{what}; {_CONVERT}")
    own = parse_json(text, "damaged metadata", CheckpointError)
    version = own.get("format_version") if isinstance(own, dict) else None
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        advice = "install a newer spikeformer_lt" if newer else "the header is damaged"
        raise CheckpointError(f"found format v{shown(version)}, supports <= v{VERSION}; {advice}")
    body, hashes = own.get("metadata"), own.get("sha256")
    if not (isinstance(body, dict) and isinstance(hashes, dict)):
        raise CheckpointError("damaged: no metadata or no checksums")
    if _seal(body, hashes) != own.get("seal"):
        raise CheckpointError("damaged: metadata and its checksum differ")
    return body, hashes


def _seal(body: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([body, list(hashes.items())]).encode("ascii")).hexdigest()


def _plain(tensor: Tensor, name: str, where: str) -> Tensor:
    import torch

    kind = getattr(tensor, "layout", type(tensor).__name__)
    if kind is not torch.strided:
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
