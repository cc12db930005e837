"""The README.md of an export: a model card in the form of the Hugging Face hub, written offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from spikeformer_lt.errors import shown
from spikeformer_lt.export.packed import Packed
from spikeformer_lt.export.sizes import Size, size_table
from spikeformer_lt.export.verify import Check

__all__ = ["model_card"]


def model_card(packed: Packed, found: Sequence[Size], check: Check) -> str:
    """Text of the card.

    Args:
        packed: the export as it was read back.
        found: its sizes.
        check: what its verification found.
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
        "",
    ]
    return "\n".join(lines)


def _label(key: str, precision: str) -> str:
    """Words of a fact; accuracies are those of the run, before anything was rounded."""
    rounded = key.endswith("_accuracy") and precision != "fp32"
    return key.replace("_", " ") + (
        f" of the run, before rounding to {precision}" if rounded else ""
    )


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return shown(text, 300)[1:-1].replace("|", "\\|").replace("<", "&lt;")
