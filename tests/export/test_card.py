"""The model card says what is in the folder and lets no stranger's text break its table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from spikeformer_lt.export import export_ticket


def test_the_card_names_model_sizes_and_check(ticket, tmp_path: Path) -> None:
    export_ticket(ticket, tmp_path / "out", about={"test_accuracy": 91.5})
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: spikeformer_lt\n")
    for part in ("| run | toy-1 |", "| test accuracy | 91.5 |", "ConvPEP", "same class", "0.5000"):
        assert part in text


def test_strange_values_stay_in_their_cell(ticket, tmp_path: Path) -> None:
    odd = {**ticket.provenance, "run_id": "a|b\n# <script>"}
    export_ticket(dataclasses.replace(ticket, provenance=odd), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in text and "\n# &lt;" not in text and "a\\|b" in text


def test_an_accuracy_is_not_claimed_for_values_that_were_rounded(ticket, tmp_path: Path) -> None:
    export_ticket(ticket, tmp_path / "out", precision="bf16", about={"test_accuracy": 91.5})
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| test accuracy of the run, before rounding to bf16 | 91.5 |" in text
