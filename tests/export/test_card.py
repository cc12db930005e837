"""The model card says what is in the folder and lets no stranger's text break its table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from spikeformer_lt.errors import ConfigError
from spikeformer_lt.export import export_run, export_ticket


def test_the_card_names_model_sizes_and_check(ticket, tmp_path: Path) -> None:
    about = {"test_accuracy": 91.5, "interval": [3.9579528682606364, 23.051775]}
    export_ticket(ticket, tmp_path / "out", about=about)
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: spikeformer_lt\n")
    for part in (
        "| run | toy-1 |",
        "| test accuracy, % | 91.5 |",
        "| interval | [3.958, 23.0518] |",
        "ConvPEP",
        "same class",
        "0.5000",
    ):
        assert part in text


def test_a_card_says_its_licence_or_that_none_was_chosen_and_how(ticket, tmp_path: Path) -> None:
    export_ticket(ticket, tmp_path / "bare")
    export_ticket(ticket, tmp_path / "free", license="apache-2.0")
    heads, lines = [], []
    for name in ("bare", "free"):
        card = (tmp_path / name / "README.md").read_text()
        heads.append(yaml.safe_load(card.split("---\n")[1]).get("license"))
        lines += [line for line in card.splitlines() if line.startswith("Licence of the weights:")]
    assert heads == [None, "apache-2.0"] and len(lines) == 2
    assert "none was chosen" in lines[0] and "--license mit" in lines[0]
    assert lines[1] == "Licence of the weights: apache-2.0."
    with pytest.raises(
        ConfigError, match=r"license='mit\\nx: y' is not allowed: a word of the hub"
    ):
        export_ticket(ticket, tmp_path / "odd", license="mit\nx: y")
    assert not (tmp_path / "odd").exists()


def test_strange_values_stay_in_their_cell(ticket, tmp_path: Path) -> None:
    odd = {**ticket.provenance, "run_id": "a|b\n# <script>"}
    export_ticket(dataclasses.replace(ticket, provenance=odd), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in text and "\n# &lt;" not in text and "a\\|b" in text


def test_an_accuracy_is_not_claimed_for_values_that_were_rounded(ticket, tmp_path: Path) -> None:
    export_ticket(ticket, tmp_path / "out", precision="bf16", about={"test_accuracy": 91.5})
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| test accuracy, % of the run, before rounding to bf16 | 91.5 |" in text


def test_the_head_of_a_card_is_what_the_hub_reads(ticket, tmp_path: Path) -> None:
    about = {"test_accuracy": 91.512, "sparsity": {"patch": 0.3, "total_weight": 0.5, "x<": None}}
    known = {**ticket.provenance, "dataset": "digits"}
    ticket = dataclasses.replace(ticket, provenance=known)
    for precision in ("fp32", "bf16"):
        export_ticket(ticket, tmp_path / precision, precision=precision, about=about)
        text = (tmp_path / precision / "README.md").read_text()
        head = yaml.safe_load(text.split("---\n")[1])
        assert head["datasets"] == ["digits"] and head["pipeline_tag"] == "image-classification"
        (entry,) = head.get("model-index", [None])
        if precision == "bf16":  # its accuracy is not that of the run
            assert entry is None
            continue
        (result,) = entry["results"]
        assert entry["name"] == "toy-1" and result["metrics"][0]["value"] == 91.51
        assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert "](kept.svg)" in text
    picture = ElementTree.parse(tmp_path / "fp32" / "kept.svg").getroot()
    told = [node.text for node in picture if node.tag.endswith("text")]
    shares = ["masked weights", "50.0 %", "patch", "70.0 %", "total weight", "50.0 %"]
    assert told == [*shares, "digits, seed unknown, one network; bars: share kept"]


def test_rounded_values_stay_so_in_an_export_of_an_export(ticket, tmp_path: Path) -> None:
    export_ticket(ticket, tmp_path / "a", precision="bf16", about={"test_accuracy": 91.5})
    for source, target in (("a", "b"), ("b", "c")):
        export_run(tmp_path / source, tmp_path / target)
        text = (tmp_path / target / "README.md").read_text()
        assert "| test accuracy, % of the run, before rounding to bf16 | 91.5 |" in text
        assert "model-index" not in yaml.safe_load(text.split("---\n")[1])


def test_float32_is_four_bytes_a_value_whatever_the_ticket_has(net, tmp_path: Path) -> None:
    _, _, ticket = net()
    half = dataclasses.replace(
        ticket, tensors={n: t.bfloat16() if t.is_floating_point() else t
                         for n, t in ticket.tensors.items()}
    )  # fmt: skip
    sizes = [export_ticket(own, tmp_path / f"{i}").sizes for i, own in enumerate((ticket, half))]
    assert [s.fp32 for s in sizes[0]] == [s.fp32 for s in sizes[1]]
