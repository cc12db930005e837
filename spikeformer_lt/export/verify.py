"""Checks of an export: logits and spikes against their source, sizes against a bound; the card."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeformer_lt.errors import ExportError, shown
from spikeformer_lt.export.file import CONFIG, PRECISIONS, TENSORS, Packed, Row
from spikeformer_lt.export.fold import compact
from spikeformer_lt.layers.neuron import LIF, Heaviside, Sign
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.ticket import Ticket
from spikeformer_lt.tickets.surgery import model_from_ticket

EXACT = 1e-9  # gap of logits in float64 that counts as equal
BATCH = 4

__all__ = [
    "Check",
    "Size",
    "fixed_batch",
    "model_card",
    "size_table",
    "sizes",
    "spike_mismatch",
    "verify",
]


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


def sizes(packed: Packed, folder: str | Path, stem: str = "conv_pep") -> list[Size]:
    """Sizes of the stem and of the rest (if both exist), and of the folder's two files.

    The last counts the bytes on disk, provenance and headers included.

    Args:
        packed: the export.
        folder: its folder.
        stem: name of the stem in the model.
    """
    inside = [row for row in packed.rows if row.name.startswith(f"{stem}.")]
    rest = [row for row in packed.rows if not row.name.startswith(f"{stem}.")]
    groups = [("ConvPEP", inside), ("rest", rest)] if inside and rest else []
    out = [_size(name, rows, packed) for name, rows in groups]
    whole = _size("file", packed.rows, packed)
    on_disk = sum((Path(folder) / name).stat().st_size for name in (CONFIG, TENSORS))
    return [*out, replace(whole, packed=on_disk)]


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


@dataclass(frozen=True)
class Check:
    """Result of the comparison on the fixed batch; gaps are absolute differences of logits.

    Attributes:
        reload_gap: logits of the source against the reloaded network, float32; 0 at fp32.
        compact_gap_float64: the reloaded network against its compact form, float64.
        compact_gap_float32: the same in float32, where rounding may flip spikes.
        same_class: fraction of the batch that source and compact form (float32) classify alike.
        logit_scale: largest absolute logit of the source.
        removed: dead channels that the compact form lacks; None if the model declares no chains.
        stem: name of the model's stem; "" if it has none.
    """

    reload_gap: float
    compact_gap_float64: float
    compact_gap_float32: float
    same_class: float
    logit_scale: float
    removed: int | None = None
    stem: str = ""


def fixed_batch(model: Any, batch: int = BATCH) -> Tensor:
    """Images ``[B, C, H, W]``, or frames ``[B, T, 2, H, W]`` for a network of events; seeded.

    Raises:
        ExportError: the network does not say its input: in_channels and image_size.
    """
    channels, size = getattr(model, "in_channels", None), getattr(model, "image_size", None)
    if channels is None or size is None:
        raise ExportError(
            f"{type(model).__name__} does not say its in_channels and image_size; give images"
        )
    sides = (size, size) if isinstance(size, int) else tuple(size)
    generator = torch.Generator().manual_seed(0)
    if channels != 2:
        return torch.rand(batch, channels, *sides, generator=generator)
    rate = torch.full((batch, int(model.T), channels, *sides), 0.3)
    return torch.poisson(rate, generator=generator)


@torch.no_grad()
def verify(source: Ticket, found: Packed, images: Tensor | None = None) -> Check:
    """Compare an export that was read back with its ticket.

    Args:
        source: the ticket that was exported.
        found: the export.
        images: float32 batch to compare on; None is `fixed_batch`.

    Raises:
        ExportError: a mask, tensor or logit that differs more than the precision accounts for.
    """
    _same_tensors(source, found)
    before, after = model_from_ticket(source).eval(), model_from_ticket(found.ticket).eval()
    x = fixed_batch(before) if images is None else images
    wanted, again = before(x), after(x)
    if not bool(torch.isfinite(wanted).all()):
        raise ExportError("the ticket's own logits are not finite; it cannot be exported")
    fast = compact(after)
    quick = fast(x)
    stem = stem_of(after)
    exact = after.double()
    wide = _gap(compact(exact)(x.double()), exact(x.double()))
    check = Check(
        reload_gap=_gap(wanted, again),
        compact_gap_float64=wide,
        compact_gap_float32=_gap(again, quick),
        same_class=float((_classes(wanted) == _classes(quick)).double().mean()),
        logit_scale=float(wanted.abs().max()),
        removed=None if fast.removed is None else sum(fast.removed.values()),
        stem=next((name for name, module in after.named_modules() if module is stem), ""),
    )
    if found.precision == "fp32" and check.reload_gap != 0:
        raise ExportError(f"the reloaded logits differ by {check.reload_gap:g}; nothing is written")
    # A sum may be rounded in its last bits, and a NaN must fail.
    if not wide <= EXACT * max(1.0, check.logit_scale):
        raise ExportError(
            f"the compact network differs by {wide:g} in float64, more than {EXACT:g}: a spike "
            "flipped or folding is wrong; nothing is written"
        )
    return check


def _same_tensors(source: Ticket, found: Packed) -> None:
    if found.ticket.mask != source.mask or found.ticket.tensors.keys() != source.tensors.keys():
        raise ExportError("the reloaded masks or names differ from the ticket's")
    narrow = PRECISIONS[found.precision]
    forms = {row.name: row.form for row in found.rows}
    for name, tensor in source.tensors.items():
        plain = tensor.detach().cpu()
        if plain.dtype == torch.float32 and forms[name] in ("dense", "sparse"):
            plain = plain.to(narrow).float()
        if not torch.equal(plain, found.ticket.tensors[name]):
            raise ExportError(f"tensor {shown(name)} was not stored as it is; nothing is written")


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _classes(logits: Tensor) -> Tensor:
    return logits.mean(1).argmax(1)


@torch.no_grad()
def spike_mismatch(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Fraction of spikes that differ between a network and its compact form, by layer of neurons.

    q, k and v count as one layer; layers that lost channels are left out. Both networks run on
    `images` in the network's own precision.
    """
    plain, fast = _spikes(model, images), _spikes(compact(model).net, images)
    out = {}
    for name, spikes in fast.items():
        parts = [name.replace("qkv.", f"{part}.") for part in "qkv"] if "qkv." in name else [name]
        parts = [part.replace(".out.", ".proj.") for part in parts]
        wanted = torch.cat([plain[part] for part in parts if part in plain], -1)
        if wanted.shape == spikes.shape:
            out[name] = float((wanted != spikes).double().mean())
    return out


def _spikes(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output of each layer of neurons, by name."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, args, out, name=name: found.__setitem__(name, out.clone())
        )
        for name, module in net.named_modules()
        if isinstance(module, LIF | Heaviside | Sign)
    ]
    try:
        net(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def model_card(packed: Packed, found: Sequence[Size], check: Check) -> str:
    """Text of the README.md of an export.

    Args:
        packed: the export as it was read back.
        found: its sizes.
        check: the result of its verification.
    """
    known, about = packed.ticket.provenance, packed.about
    model: Any = known.get("model", {})
    name = _plain(model.get("name", "spiking network"))
    facts = {
        "model": name,
        "arguments": _plain(json.dumps(model.get("args", {}))),
        "search": _plain(known.get("search", "none")),
        "data": _plain(known.get("dataset", "unknown")),
        "split sha256": _plain(known.get("split_sha256", "unknown")),
        "run": _plain(known.get("run_id", "unknown")),
        "seed": _plain(known.get("seed", "unknown")),
        "precision of dense values": packed.precision,
        "mask sparsity": f"{packed.ticket.mask.sparsity:.4f}",
        **{_label(key, packed.precision): _plain(value) for key, value in about.items()},
    }
    dead = "not examined, because the model declares no chains of units"
    if check.removed is not None:
        dead = f"{check.removed} removed from the compact network"
    lines = [
        "---",
        "library_name: spikeformer_lt",
        "tags: [spiking-neural-network, lottery-ticket, pruning, model_hub_mixin]",
        "pipeline_tag: image-classification",
        "---",
        "",
        f"# {name}: a packed lottery ticket",
        "",
        "```python",
        "from spikeformer_lt import load_exported",
        "",
        'model = load_exported("THIS_FOLDER")  # images or frames -> logits [B, T, K]',
        "```",
        "",
        "| fact | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        "",
        "Bytes (bound: mask entropy, 1 bit a kept binary weight, the rest at its precision):",
        "",
        "```",
        size_table(found),
        "```",
        "",
        "Checked when it was written, on a fixed batch:",
        "",
        f"- reloaded against source: logits within {check.reload_gap:.3g}",
        f"- compact against reloaded, float64: {check.compact_gap_float64:.3g}",
        f"- compact against reloaded, float32: {check.compact_gap_float32:.3g} "
        f"(logits reach {check.logit_scale:.3g})",
        f"- same class as the source: {100 * check.same_class:.0f} %",
        f"- dead channels: {dead}",
        "",
    ]
    return "\n".join(lines)


def _label(key: str, precision: str) -> str:
    """Words of a fact; an accuracy is that of the run, before values were rounded."""
    rounded = key.endswith("_accuracy") and precision != "fp32"
    return key.replace("_", " ") + (
        f" of the run, before rounding to {precision}" if rounded else ""
    )


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return shown(text, 300)[1:-1].replace("|", "\\|").replace("<", "&lt;")
