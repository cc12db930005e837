"""Exports on the Hugging Face hub: the model card, from_pretrained and save_pretrained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin, snapshot_download

from spikeformer_lt.errors import ExportError, shown
from spikeformer_lt.export.file import CARD, CONFIG, TENSORS, Packed, read_packed
from spikeformer_lt.export.fold import CompactModel, compact
from spikeformer_lt.export.verify import Check, Size, size_table
from spikeformer_lt.tickets.surgery import model_from_ticket

__all__ = ["HubTicket", "model_card"]

FILES = (CONFIG, TENSORS, CARD)


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


class HubTicket(
    CompactModel,
    PyTorchModelHubMixin,
    library_name="spikeformer_lt",
    tags=["spiking-neural-network", "lottery-ticket", "pruning"],
    pipeline_tag="image-classification",
):
    """A compact network that knows the folder of its export.

    ``HubTicket.from_pretrained("exported/x")`` reads a folder offline, and a name of the hub
    through huggingface_hub; every byte is verified as by `load_exported`. ``save_pretrained``
    copies the packed files.

    Args:
        folder: an export.

    Raises:
        ExportError: no export, a newer one, or an edited config.json.
        CheckpointError: a damaged tensor file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.about = read_packed(folder)
        made = compact(model_from_ticket(self.about.ticket))
        super().__init__(made.net, made.removed)
        self.folder = Path(folder)
        self.eval()

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> HubTicket:
        if Path(model_id).is_dir():
            return cls(model_id)
        try:
            folder = snapshot_download(
                model_id, revision=revision, cache_dir=cache_dir, token=token,
                force_download=force_download, local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )  # fmt: skip
        except Exception as fault:
            raise ExportError(
                f"{shown(model_id)} is no folder here, and the hub did not give it: "
                f"{shown(str(fault), 200)}"
            ) from fault
        return cls(folder)

    def _save_pretrained(self, save_directory: Path) -> None:
        for name in FILES:
            source = self.folder / name
            if source.is_file() and source.resolve() != (save_directory / name).resolve():
                shutil.copyfile(source, save_directory / name)
