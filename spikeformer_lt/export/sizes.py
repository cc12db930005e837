"""How small a packed ticket is, against float32 and against what information theory asks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spikeformer_lt.export.packed import CONFIG, TENSORS, Packed
from spikeformer_lt.export.packing import PRECISIONS, Row

__all__ = ["Size", "size_table", "sizes"]


@dataclass(frozen=True)
class Size:
    """Bytes of a group of tensors.

    ``packed`` counts the streams and the group's share of the table of tensors; ``bound`` is
    n H(kept/n) bits a mask, one bit a kept binary weight, 32 bits a gain, and every other value at
    its precision.
    """

    group: str
    tensors: int
    values: int
    fp32: int
    bound: float
    packed: int

    @property
    def over_bound(self) -> float:
        """Packed bytes above the bound, as a fraction of the bound."""
        return self.packed / self.bound - 1

    @property
    def smaller(self) -> float:
        """How many times fewer bytes than float32."""
        return self.fp32 / self.packed


def sizes(packed: Packed, folder: str | Path) -> list[Size]:
    """Sizes of the ConvPEP (where there is one), of the rest, and of the whole folder's two files.

    The last counts the bytes on disk, provenance and headers included.
    """
    stem = [row for row in packed.rows if row.name.startswith("conv_pep.")]
    rest = [row for row in packed.rows if not row.name.startswith("conv_pep.")]
    groups = [("ConvPEP", stem), ("rest", rest)] if stem and rest else []
    out = [_size(name, rows, packed) for name, rows in groups]
    whole = _size("file", packed.rows, packed)
    on_disk = sum((Path(folder) / name).stat().st_size for name in (CONFIG, TENSORS))
    return [*out, Size("file", whole.tensors, whole.values, whole.fp32, whole.bound, on_disk)]


def size_table(found: Sequence[Size]) -> str:
    """The sizes as text, one line a group."""
    columns: dict[str, Callable[[Size], str]] = {
        "part": lambda s: s.group,
        "tensors": lambda s: f"{s.tensors}",
        "values": lambda s: f"{s.values:,}",
        "fp32": lambda s: f"{s.fp32:,}",
        "bound": lambda s: f"{s.bound:,.0f}",
        "packed": lambda s: f"{s.packed:,}",
        "over bound": lambda s: f"{100 * s.over_bound:.1f} %",
        "smaller": lambda s: f"{s.smaller:.1f}x",
    }
    lines = [list(columns)] + [[show(size) for show in columns.values()] for size in found]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    rows = (
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    )
    return "\n".join(rows)


def _size(group: str, rows: Sequence[Row], packed: Packed) -> Size:
    wide = PRECISIONS[packed.precision].itemsize
    values = full = stored = 0
    bits = 0.0
    for row in rows:
        n = math.prod(row.shape)
        item = getattr(torch, row.dtype).itemsize
        kept = packed.ticket.mask.get(row.name)
        k = n if kept is None else int(kept.sum())
        p = k / n if n else 1.0
        values, full = values + n, full + n * item
        if p not in (0.0, 1.0):
            bits += n * (-p * math.log2(p) - (1 - p) * math.log2(1 - p))
        each = {"raw": 8 * item * n, "dense": 8 * wide * n, "sparse": 8 * wide * k, "binary": k}
        bits += each[row.form] + 32 * row.gains
        plain = {"raw": item * n, "dense": wide * n, "sparse": wide * k, "binary": 0}[row.form]
        stored += row.values[1] if row.values[0] else plain
        stored += int(row.mask[1]) + int(row.signs[1]) + 4 * row.gains
    stored += round(packed.table_bytes * len(rows) / len(packed.rows))
    return Size(group, len(rows), values, full, bits / 8, stored)
