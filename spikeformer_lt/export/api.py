"""Exports: a ticket packed into a folder that loads by itself, verified before it appears.

The check compares logits, spikes and tensors with their source; sizes stand beside their bound.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from spikeformer_lt.adapted import Adapted
from spikeformer_lt.bundle import staged
from spikeformer_lt.config import check
from spikeformer_lt.errors import ConfigError, ExportError, TicketError, name_of, shown
from spikeformer_lt.export.codec import PRECISIONS
from spikeformer_lt.export.file import (
    CARD,
    CONFIG,
    EXPORT,
    PICTURE,
    TENSORS,
    UNLICENSED,
    Packed,
    Row,
    cell,
    kept_picture,
    licensed,
    read_packed,
    write_packed,
)
from spikeformer_lt.export.inference import compact
from spikeformer_lt.export.prediction import predict
from spikeformer_lt.layers.neuron import LIF, Heaviside, Sign
from spikeformer_lt.layers.stems import stem_of
from spikeformer_lt.named import SHIPPED, shipped
from spikeformer_lt.preprocess import Preprocess, door_of, prepared_for
from spikeformer_lt.ticket import TICKET, Ticket, finished_folder
from spikeformer_lt.tickets.surgery import in_form, model_from_ticket
from spikeformer_lt.training.run import read_report

REPORTED = (
    "test_accuracy", "test_accuracy_interval", "val_accuracy", "test_count", "sparsity",
    "bits_per_weight", "params", "macs", "sops", "run_id",
)  # fmt: skip
ROUNDED = "rounded_to"  # the first precision that values were stored in, if not fp32
EXACT = 1e-9  # gap of logits in float64 that counts as equal
BATCH = 4


@dataclass(frozen=True)
class Size:
    """Bytes of a group of tensors.

    ``packed`` counts streams and the group's share of the table of tensors; ``bound`` n H(kept/n)
    bits a mask, one a kept binary weight, 32 a gain, and every other value at its precision.
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


@dataclass(frozen=True)
class Check:
    """Result of the comparison on the fixed batch; gaps are absolute differences of logits.

    ``same_class`` is the fraction of the batch that source and compact form classify alike.
    """

    reload_gap: float  # source against reloaded network, float32; 0 at fp32
    compact_gap_float64: float  # reloaded network against its compact form
    compact_gap_float32: float  # the same, where rounding may flip spikes
    same_class: float
    logit_scale: float  # largest absolute logit of the source
    removed: int | None = None  # dead channels; None if the model declares no chains
    stem: str = ""  # name of the model's stem, if it has one
    layers: str = ""  # how the layers of the compact form run on this machine


@dataclass(frozen=True, repr=False)
class Exported:
    """An export that was written: its folder, its sizes, and the result of its check."""

    folder: Path
    sizes: list[Size]
    check: Check
    trained: bool = True
    preprocess: Preprocess | None = None
    bits: tuple[float, ...] = ()
    """A weight of convolutions and linear maps, in the tensor file less its table; the bound's."""

    def __repr__(self) -> str:
        size, told = self.sizes[-1], "verified" if self.trained else "verified, start weights"
        return (
            f"Exported({str(self.folder)!r}: {size.packed:,} bytes, {size.smaller:.1f}x smaller "
            f"than float32, {told})"
        )

    def summary(self) -> str:
        """Sizes and check as text of several lines."""
        notices, check = "", self.check
        if not self.trained:
            notices = (
                "NOTICE: this ticket holds its start weights: an untrained network is exported\n"
            )
        if self.preprocess is None:
            notices += "NOTICE: this ticket lacks its preprocess: predict(x) will ask for it\n"
        return (
            f"{notices}{size_table(self.sizes)}\n"
            f"all weights: {self.bits[0]:.3f} bits each in the file (masks and values coded), "
            f"bound {self.bits[1]:.3f} (masks at their entropy, values whole);\n"
            "  both with norms and biases; the bits that evaluate tells are such a bound of the "
            "weights alone\n"
            f"verified: reloaded logits within {check.reload_gap:.3g}; compact within "
            f"{check.compact_gap_float64:.3g} (float64), {check.compact_gap_float32:.3g} "
            f"(float32); same class {100 * check.same_class:.0f} %\n"
            f"on this machine {check.layers}"
        )


def export_run(
    run: str | Path, folder: str | Path, *, data: str = "", root: str = "data", **options: Any
) -> Exported:
    """Export the network that a run ended with; accuracies and sparsities of its report go along.

    Args:
        run: a run directory, a ticket folder or an export, or one that comes with us by its name.
        folder: as for `export_ticket`, as are the `options` and what is raised.
        data: name of the data set whose preprocess goes along, for a ticket that lacks its own,
            such as a converted checkpoint.
        root: folder of its files.
    """
    place = Path(shipped(run) or run)
    inner, report, known = finished_folder(place), place / "report.json", dict[str, Any]()
    ticket = read_ticket(inner)
    if report.is_file():
        known = read_report(report, ExportError)
    elif not (inner / TICKET.manifest).is_file():
        packed = read_packed(inner)
        known = dict(packed.about)
        if packed.precision != "fp32":  # its values stay rounded, whatever they are stored as now
            known.setdefault(ROUNDED, packed.precision)
    about = {name: known[name] for name in (*REPORTED, ROUNDED) if name in known}
    if data:
        options["preprocess"] = _preprocess_of(ticket, data, root)
    return export_ticket(ticket, folder, about=about, **options)


def _preprocess_of(ticket: Ticket, data: str, root: str) -> Preprocess | None:
    """How a data set prepares samples for the network of a ticket."""
    from spikeformer_lt.training.options import EventDataConfig, load_splits

    model: Any = model_from_ticket(ticket)
    size = None if (door := door_of(model)) is None else door[1]
    found = load_splits(EventDataConfig(name=data, root=root, image_size=size), model.T).preprocess
    if (own := Preprocess.known(ticket.provenance)) is not None and found is not None:
        own.refuse_other(found, "the ticket", data)
    return found


def export_ticket(
    ticket: Ticket,
    folder: str | Path,
    *,
    precision: str = "fp32",
    about: Mapping[str, Any] | None = None,
    images: Tensor | None = None,
    preprocess: Preprocess | None = None,
    overwrite: bool = False,
    model: nn.Module | None = None,
    license: str = "",
) -> Exported:
    """Pack a ticket, load it back and compare it; the folder appears only if both are equal.

    Args:
        ticket: its provenance must name the model, as that of every recipe's ticket does. Layers
            with a form of their own are stored as they run (a BESTformer's as signs).
        folder: new or empty; with `overwrite` also an export, which is replaced.
        precision, about: as for `write_packed`.
        images: batch of the comparison; None is a fixed one.
        preprocess: how samples become input; None is what the ticket says.
        model: the network of a ticket of no registered model; it stays as it is.
        license: of the weights, in the hub's words, such as "mit"; without one the card says so.

    Raises:
        ConfigError: a licence of other characters than those words have.
        ExportError: the folder is in use, the ticket cannot be stored, or the check failed.
        TicketError: the ticket names no model, or not the one it is of.
    """
    if preprocess is not None:
        ticket = replace(ticket, provenance={**ticket.provenance, **preprocess.noted()})
    with staged(folder, EXPORT, overwrite) as stage:
        ticket = in_form(ticket, model)
        write_packed(stage, ticket, precision, about)
        packed = read_packed(stage.path)
        check = verify(ticket, packed, images, model)
        found = sizes(packed, stage.path, check.stem)
        card = licensed(model_card(packed, found, check), license)
        stage.write(CARD, card.encode("utf-8"))
        stage.write(PICTURE, kept_picture(packed).encode("utf-8"))
    trained = ticket.provenance.get("trained") is not False
    matrices = sum(math.prod(row.shape) for row in packed.rows if len(row.shape) > 1)
    written = (Path(folder) / TENSORS).stat().st_size - packed.table_bytes
    bits = tuple(8 * size / max(1, matrices) for size in (written, found[-1].bound))
    known = Preprocess.known(ticket.provenance)
    return Exported(Path(folder), found, check, trained, known, bits)


def load_exported(
    folder: str | Path, *, plain: bool = False, model: nn.Module | None = None, **overrides: Any
) -> Any:
    """Load an export; the folder is all that is needed and nothing is ever unpickled.

    Args:
        folder: what `export_ticket` or ``recipes/export.py`` wrote.
        plain: return the network as it was trained instead of its compact form.
        model: takes the weights, in place, and is returned adapted: for an export of a network
            that is not registered.
        overrides: model arguments to change, such as T.

    Returns:
        A module in eval mode: normalised images ``[B, C, H, W]`` or frames ``[B, T, 2, H, W]`` ->
        logits ``[B, T, K]``. Its ``predict`` takes pixels, files and recordings; see `predict`.

    Raises:
        ExportError: no export, a newer one, or files changed since it was written.
        CheckpointError: a damaged tensor file; the tensor is named where it is one.
        TicketError: the stored weights are not of the model that they name.
    """
    ticket = read_packed(folder).ticket
    try:
        net: Any = model_from_ticket(ticket, model, **overrides)
    except (TicketError, ConfigError) as fault:
        raise type(fault)(f"{name_of(folder)}: {fault}") from None
    if not plain and model is None:
        return compact(net)
    net.predict = partial(predict, net)
    return net


def read_ticket(folder: str | Path) -> Ticket:
    """Read a ticket from its folder, or from that of an export.

    Raises:
        ExportError, CheckpointError: as `load_exported`.
        TicketError: neither an export nor a ticket, or a damaged ticket.
    """
    there = [(Path(folder) / name).is_file() for name in (CONFIG, TENSORS, TICKET.manifest)]
    packed = there == [True, True, False]  # a converted checkpoint has all three
    return read_packed(folder).ticket if packed else Ticket.load(folder)


def packed_bytes(run: str | Path) -> int | None:
    """Bytes of a run's network, or a ticket, as an export at float32; None if it has no such form.

    Two files are counted, as `sizes` does.
    """
    with TemporaryDirectory() as place, suppress(ExportError):
        ticket = Ticket.load(finished_folder(run))
        with suppress(TicketError):  # a network of no name is stored as it is
            ticket = in_form(ticket)
        with staged(Path(place) / "export", EXPORT) as stage:
            write_packed(stage, ticket)
        return sum((Path(place) / "export" / name).stat().st_size for name in (CONFIG, TENSORS))
    return None


def pretrained_model(name: str, source: str | Path | bool, **overrides: Any) -> nn.Module:
    """Make a registered model with trained weights, in eval mode.

    Args:
        name: of the model.
        source: a run, ticket or export of that model, or one that comes with us by its name; True
            takes the one of the model's own name.
        overrides: model arguments to change, such as T.

    Raises:
        ConfigError: none comes with us.
        TicketError: the weights are of another model, or do not fit the arguments.
    """
    given = name if source is True else str(source)
    folder = SHIPPED / name if source is True else shipped(given) or Path(given)
    known = ", ".join(sorted(path.name for path in SHIPPED.glob("*")))
    rule = f"the folder of a run, a ticket or an export; what comes along is {known}"
    check(folder.is_dir(), "pretrained", source, rule)
    ticket = read_ticket(finished_folder(folder))
    own = ticket.provenance.get("model")
    if not isinstance(own, dict) or own.get("name") != name:
        what = own.get("name") if isinstance(own, dict) else "no registered model"
        raise TicketError(f"{name_of(folder)} has weights of {shown(what)}, not of {shown(name)}")
    return model_from_ticket(ticket, **overrides)


def sizes(packed: Packed, folder: str | Path, stem: str = "conv_pep") -> list[Size]:
    """Sizes of the model's `stem` and of the rest (if both exist), and of the folder's two files.

    The last counts the bytes on disk, provenance and headers included.
    """
    inside = [row for row in packed.rows if row.name.startswith(f"{stem}.")]
    rest = [row for row in packed.rows if not row.name.startswith(f"{stem}.")]
    parts = [_size("ConvPEP", inside, packed), _size("rest", rest, packed)]
    on_disk = sum((Path(folder) / name).stat().st_size for name in (CONFIG, TENSORS))
    whole = replace(_size("file", packed.rows, packed), packed=on_disk)
    return [*parts, whole] if inside and rest else [whole]


def size_table(found: Sequence[Size]) -> str:
    """The sizes as text, one line a group."""
    lines = [["part", "tensors", "values", "fp32", "bound", "packed", "over bound", "smaller"]]
    lines += [
        [s.group, f"{s.tensors}", f"{s.values:,}", f"{s.fp32:,}", f"{s.bound:,.0f}",
         f"{s.packed:,}", f"{100 * s.over_bound:.1f} %", f"{s.smaller:.1f}x"]
        for s in found
    ]  # fmt: skip
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    rows = ([line[0].ljust(first), *map(str.rjust, line[1:], widths)] for line in lines)
    return "\n".join(map("  ".join, rows))


def _size(group: str, rows: Sequence[Row], packed: Packed) -> Size:
    wide = PRECISIONS[packed.precision].itemsize
    values = full = stored = 0
    bits = 0.0
    for row in rows:
        n, item = math.prod(row.shape), getattr(torch, row.dtype).itemsize
        kept = packed.ticket.mask.get(row.name)
        k = n if kept is None else int(kept.sum())
        values, full = values + n, full + n * (max(4, item) if "float" in row.dtype else item)
        if 0 < k < n:
            bits -= k * math.log2(k / n) + (n - k) * math.log2(1 - k / n)
        plain = {"raw": item * n, "dense": wide * n, "sparse": wide * k, "binary": 0}[row.form]
        bits += 8 * plain + (k if row.form == "binary" else 0) + 32 * row.gains
        stored += row.values[1] if row.values[0] else plain
        stored += int(row.mask[1]) + int(row.signs[1]) + 4 * row.gains
    stored += round(packed.table_bytes * len(rows) / len(packed.rows))
    return Size(group, len(rows), values, full, bits / 8, stored)


def fixed_batch(model: Any, batch: int = BATCH) -> Tensor:
    """Images ``[B, C, H, W]``, or frames ``[B, T, 2, H, W]`` for a network of events; seeded.

    Raises:
        ExportError: the network does not say its input: in_channels and image_size.
    """
    door, generator = door_of(model), torch.Generator().manual_seed(0)
    if door is None:
        raise ExportError(
            f"{model._get_name()} does not say its in_channels and image_size; give images"
        )
    if door[0] != 2:
        return torch.rand(batch, *door, generator=generator)
    rate = torch.full((batch, int(model.T), *door), 0.3)
    return torch.poisson(rate, generator=generator)


@torch.no_grad()
def verify(
    source: Ticket, found: Packed, images: Tensor | None = None, model: nn.Module | None = None
) -> Check:
    """Compare an export that was read back with its ticket, by logits of `images` (float32).

    Raises:
        ExportError: a mask, tensor or logit that differs more than the precision accounts for; a
            preprocess of another network.
    """
    _same_tensors(source, found)
    before, after = (
        model_from_ticket(ticket, copy.deepcopy(model)) for ticket in (source, found.ticket)
    )
    if before.preprocess is not None:
        prepared_for(before)
    x = fixed_batch(before) if images is None else images
    wanted, again = before(x), after(x)
    if not bool(torch.isfinite(wanted).all()):
        raise ExportError("the ticket's own logits are not finite; it cannot be exported")
    fast, stem = compact(after), stem_of(after)
    quick, wide = fast(x), 0.0
    if not isinstance(after, Adapted):  # of which nothing is folded; some have no float64 form
        exact = after.double()
        wide = _gap(compact(exact)(x.double()), exact(x.double()))
    same = wanted.mean(1).argmax(1) == quick.mean(1).argmax(1)
    check = Check(
        reload_gap=_gap(wanted, again),
        compact_gap_float64=wide,
        compact_gap_float32=_gap(again, quick),
        same_class=float(same.double().mean()),
        logit_scale=float(wanted.abs().max()),
        removed=None if fast.removed is None else sum(fast.removed.values()),
        stem=next((name for name, module in after.named_modules() if module is stem), ""),
        layers=fast.describe(),
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


@torch.no_grad()
def spike_mismatch(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Fraction of spikes that differ between a network and its compact form, by layer of neurons.

    q, k and v count as one layer; layers that lost channels are left out. Both networks run on
    `images` in the network's own precision.
    """
    plain, fast = _spikes(model, images), _spikes(compact(model).net, images)
    out = {}
    for name, spikes in fast.items():
        parts = dict.fromkeys(name.replace("qkv.", f"{part}.") for part in "qkv")
        names = [part.replace(".out.", ".proj.") for part in parts]
        wanted = torch.cat([plain[part] for part in names if part in plain], -1)
        if wanted.shape == spikes.shape:
            out[name] = float((wanted != spikes).double().mean())
    return out


def _spikes(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output of each layer of neurons, by name."""
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, layer in net.named_modules():
            if isinstance(layer, LIF | Heaviside | Sign):
                keep = partial(_keep, found, name)
                hooks.callback(layer.register_forward_hook(keep).remove)
        net(images)
    return found


def _keep(found: dict[str, Tensor], name: str, module: nn.Module, args: Any, out: Tensor) -> None:
    found[name] = out.clone()


_USE = """load_exported("THIS_FOLDER")
x = {sample}
print(model.predict(x))  # [Prediction(label, name, probability, probabilities)]"""


def model_card(packed: Packed, found: Sequence[Size], check: Check) -> str:
    """Text of the README.md of an export that was read back, with its sizes and its check."""
    known, about = packed.ticket.provenance, packed.about
    model: Any = known.get("model", {})
    name = cell(model.get("name", "spiking network"))
    said = {"data": "dataset", "split sha256": "split_sha256", "run": "run_id", "seed": "seed"}
    facts = {
        "model": name,
        "arguments": cell(model.get("args", {})),
        "search": cell(known.get("search", "none")),
        **{label: cell(known.get(key, "unknown")) for label, key in said.items()},
        "precision of dense values": packed.precision,
        "mask sparsity": f"{packed.ticket.mask.sparsity:.4f}",
    }
    prepared = Preprocess.known(known)
    imports, use = "", 'load_exported("THIS_FOLDER")  # normalised images or frames -> [B, T, K]'
    if prepared is not None:
        facts["input"] = prepared.described()
        imports, use = "import numpy as np\n", _USE.format(sample=prepared.sample())
    coarse = _rounded(packed)
    for key, value in about.items():  # an accuracy is that of the run, before values were rounded
        rounded = key.startswith(("test_acc", "val_acc")) and coarse
        words = f" of the run, before rounding to {coarse}" if rounded else ""
        unit = ", %" if "accuracy" in key else ""
        short = json.loads(json.dumps(value, default=str), parse_float=lambda x: round(float(x), 4))
        facts[key.replace("_", " ") + unit + words] = cell(short)
    dead = "not examined, because the model declares no chains of units"
    if check.removed is not None:
        dead = f"{check.removed} removed from the compact network"
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""---
{yaml.safe_dump(_metadata(packed, prepared), sort_keys=False, allow_unicode=True)}---

# {name}: a packed lottery ticket

```python
{imports}from spikeformer_lt import load_exported

model = {use}
```

{UNLICENSED}

![Weights and patches that are kept, in percent]({PICTURE})

| fact | value |
|---|---|
{rows}

Bytes (bound: mask entropy, 1 bit a kept binary weight, the rest at its precision):

```
{size_table(found)}
```

Checked when it was written, on a fixed batch:

- reloaded against source: logits within {check.reload_gap:.3g}
- compact against reloaded, float64: {check.compact_gap_float64:.3g}
- compact against reloaded, float32: {check.compact_gap_float32:.3g} \
(logits reach {check.logit_scale:.3g})
- same class as the source: {100 * check.same_class:.0f} %
- dead channels: {dead}
"""


def _rounded(packed: Packed) -> str:
    """The precision that its values were rounded to, now or in an export before; or nothing."""
    own = "" if packed.precision == "fp32" else packed.precision
    return str(packed.about.get(ROUNDED, own))


def _metadata(packed: Packed, prepared: Preprocess | None) -> dict[str, Any]:
    """The head of a card, in the hub's words; an accuracy at float32 is an entry of model-index."""
    known, about = packed.ticket.provenance, packed.about
    data = cell(known.get("dataset", "unknown"))
    events = prepared is not None and prepared.recordings is not None
    task = "video-classification" if events else "image-classification"
    found: dict[str, Any] = {
        "library_name": "spikeformer_lt",
        "tags": ["spiking-neural-network", "lottery-ticket", "pruning", "model_hub_mixin"],
        "pipeline_tag": task,
        "datasets": [data],
    }
    accuracy = about.get("test_accuracy")
    if not _rounded(packed) and isinstance(accuracy, float):
        metric = {"type": "accuracy", "value": round(accuracy, 2), "name": "test accuracy, %"}
        result = {
            "task": {"type": task},
            "dataset": {"name": data, "type": data, "split": "test"},
            "metrics": [metric],
        }
        name = cell(known.get("run_id", "ticket"))
        found["model-index"] = [{"name": name, "results": [result]}]
    return found
